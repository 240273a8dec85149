// PNG by libpng: every bit depth, palettes and interlaced files, to 8-bit RGB.
//
// libpng reports an error by a function that must not return. A C++ exception cannot cross the
// frames of a C library, so `Reader::guarded` jumps over them, and then throws.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "decoders.hpp"

namespace image {
namespace {

// Colour profiles and the like: Pillow does not apply them either.
const png_byte ignored_chunks[] = "iCCP\0sRGB\0gAMA\0cHRM\0sBIT\0sPLT\0hIST\0bKGD\0pHYs\0tIME";

int hex_digit(char letter) {
  if (letter >= '0' && letter <= '9') return letter - '0';
  if (letter >= 'a' && letter <= 'f') return letter - 'a' + 10;
  if (letter >= 'A' && letter <= 'F') return letter - 'A' + 10;
  return -1;
}

// The bytes of ImageMagick's "Raw profile type exif": three lines of header, then hexadecimal.
// Text that is not hexadecimal gives bytes that are no EXIF.
std::string from_raw_profile(const std::string& text) {
  std::size_t start = 0;
  for (int line = 0; line < 3; ++line) {
    start = text.find('\n', start);
    if (start == std::string::npos) return "";
    ++start;
  }
  std::string bytes;
  int high = -1;
  for (std::size_t i = start; i < text.size(); ++i) {
    const int digit = hex_digit(text[i]);
    if (digit < 0 && std::strchr(" \t\n\v\f\r", text[i]) != nullptr) continue;
    if (digit < 0) return "damaged";
    if (high < 0) {
      high = digit;
    } else {
      bytes += static_cast<char>(16 * high + digit);
      high = -1;
    }
  }
  return high < 0 ? bytes : "damaged";
}

class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size) : next_(data), left_(size) {
    png_ = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, this,
        [](png_structp png, png_const_charp message) {
          static_cast<Reader*>(png_get_error_ptr(png))->fail(message);
        },
        [](png_structp, png_const_charp) {});  // no warnings on standard error
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    end_ = info_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (end_ == nullptr) {
      png_destroy_read_struct(&png_, &info_, &end_);
      throw Error("cannot be decoded (libpng cannot start)");
    }
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png_, &info_, &end_); }

  Stored read() {
    guarded([this] {
      png_set_read_fn(png_, this, [](png_structp png, png_bytep target, std::size_t count) {
        static_cast<Reader*>(png_get_io_ptr(png))->copy(target, count);
      });
      png_set_benign_errors(png_, 1);
      png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // `check_size` has the limit
      png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, ignored_chunks,
                                  static_cast<int>(sizeof ignored_chunks / 5));
      png_read_info(png_, info_);
    });
    const std::uint32_t width = png_get_image_width(png_, info_);
    const std::uint32_t height = png_get_image_height(png_, info_);
    check_size(width, height);
    const bool wide_grey = png_get_color_type(png_, info_) == PNG_COLOR_TYPE_GRAY &&
                           png_get_bit_depth(png_, info_) == 16;
    guarded([this, wide_grey] {
      const png_byte color = png_get_color_type(png_, info_);
      if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png_);
      if (color == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png_);
      if (!wide_grey) png_set_strip_16(png_);
      png_set_interlace_handling(png_);
      png_read_update_info(png_, info_);
    });
    Stored stored;
    stored.image = pixels(width, height, wide_grey);
    try {
      guarded([this] { png_read_end(png_, end_); });
    } catch (const Error&) {
      // what follows the pixels is damaged; as in Pillow, the image counts
    }
    read_metadata(info_, stored);
    read_metadata(end_, stored);
    return stored;
  }

 private:
  Image pixels(std::uint32_t width, std::uint32_t height, bool wide_grey) {
    const std::size_t row_bytes = png_get_rowbytes(png_, info_);
    const int channels = png_get_channels(png_, info_);
    Image image(width, height);
    std::unique_ptr<std::uint8_t[]> raw;
    std::vector<png_bytep> rows(height);
    const bool direct = channels == 3;
    if (!direct) raw.reset(new std::uint8_t[row_bytes * height]);
    for (std::uint32_t y = 0; y < height; ++y) {
      rows[y] = direct ? image.row(y) : raw.get() + y * row_bytes;
    }
    png_bytepp first = rows.data();
    guarded([this, first] { png_read_image(png_, first); });
    for (std::uint32_t y = 0; y < height && !direct; ++y) {
      std::uint8_t* rgb = image.row(y);
      const std::uint8_t* sample = rows[y];
      for (std::uint32_t x = 0; x < width; ++x, rgb += 3) {
        if (wide_grey) {  // round(value / 257), which maps 65535 to 255
          const unsigned value = 256u * sample[0] + sample[1];
          rgb[0] = rgb[1] = rgb[2] = static_cast<std::uint8_t>((value + 128) / 257);
          sample += 2;
        } else if (channels == 4) {
          std::memcpy(rgb, sample, 3);
          sample += 4;
        } else {
          rgb[0] = rgb[1] = rgb[2] = sample[0];
          sample += channels;
        }
      }
    }
    return image;
  }

  void read_metadata(png_infop info, Stored& stored) {
    png_textp texts = nullptr;
    const int count = png_get_text(png_, info, &texts, nullptr);
    for (int i = 0; i < count; ++i) {
      const std::string key = texts[i].key;
      const std::size_t length =
          texts[i].text_length != 0 ? texts[i].text_length : texts[i].itxt_length;
      const std::string text(texts[i].text == nullptr ? "" : texts[i].text,
                             texts[i].text == nullptr ? 0 : length);
      if (key == "XML:com.adobe.xmp") stored.xmp = text;
      if (key == "Raw profile type exif" && !stored.has_exif) {
        stored.exif = from_raw_profile(text);
        stored.has_exif = true;
      }
    }
#ifdef PNG_eXIf_SUPPORTED
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(png_, info, &size, &exif) != 0 && exif != nullptr) {
      stored.exif.assign(reinterpret_cast<const char*>(exif), size);
      stored.has_exif = true;
    }
#endif
  }

  void copy(png_bytep target, std::size_t count) {
    if (count > left_) png_error(png_, "the file is truncated");
    std::memcpy(target, next_, count);
    next_ += count;
    left_ -= count;
  }

  // Run calls of libpng; throw where it reports an error. `calls` must own nothing: the jump
  // skips destructors.
  template <typename Calls>
  void guarded(const Calls& calls) {
    if (setjmp(place_) != 0) {
      throw Error("cannot be decoded to 'RGB' (" + std::string(message_) + ")");
    }
    calls();
  }

  [[noreturn]] void fail(const char* message) {
    std::snprintf(message_, sizeof message_, "%s", message);
    std::longjmp(place_, 1);
  }

  const std::uint8_t* next_;
  std::size_t left_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  png_infop end_ = nullptr;
  std::jmp_buf place_{};
  char message_[200]{};
};

}  // namespace

Stored decode_png(const std::uint8_t* data, std::size_t size) { return Reader(data, size).read(); }

}  // namespace image
