// JPEG by libjpeg-turbo, with the settings of Pillow: the library's defaults, which are the slow
// integer DCT, fancy upsampling and block smoothing.
//
// libjpeg reports an error by a function that must not return. A C++ exception cannot cross the
// frames of a C library, so `Reader::guarded` jumps over them, and then throws.
// jpeglib.h uses types of <cstdio> and does not include it
// clang-format off
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include <csetjmp>
#include <cstring>

#include "decoders.hpp"

namespace image {
namespace {

const std::string exif_prefix("Exif\0\0", 6);
const std::string xmp_prefix("http://ns.adobe.com/xap/1.0/\0", 29);

// a * b / 255 to the nearest integer, as Pillow computes it.
int multiply(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

// One pixel of CMYK, inverted as Adobe stores it, to RGB: Pillow's formula.
void to_rgb(const std::uint8_t* cmyk, std::uint8_t* rgb) {
  const int light = cmyk[3];  // 255 - black
  for (int i = 0; i < 3; ++i) {
    rgb[i] = static_cast<std::uint8_t>(light - multiply(255 - cmyk[i], light));
  }
}

void expand(const std::uint8_t* samples, int channels, std::uint32_t width, std::uint8_t* rgb) {
  for (std::uint32_t x = 0; x < width; ++x, samples += channels, rgb += 3) {
    if (channels == 4) {
      to_rgb(samples, rgb);
    } else {
      rgb[0] = rgb[1] = rgb[2] = samples[0];
    }
  }
}

class Reader {
 public:
  Reader() {
    info_.err = jpeg_std_error(&errors_);
    info_.client_data = this;
    errors_.error_exit = [](j_common_ptr info) { of(info).fail(nullptr); };
    errors_.output_message = [](j_common_ptr) {};  // no warnings on standard error
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { jpeg_destroy_decompress(&info_); }

  Stored read(const std::uint8_t* data, std::size_t size) {
    guarded([&, this] {
      jpeg_create_decompress(&info_);
      jpeg_mem_src(&info_, data, static_cast<unsigned long>(size));
      // the library's own would go on with grey pixels
      info_.src->fill_input_buffer = [](j_decompress_ptr info) -> boolean {
        of(reinterpret_cast<j_common_ptr>(info)).fail("the file is truncated");
      };
      jpeg_save_markers(&info_, JPEG_APP0 + 1, 0xffff);
      jpeg_read_header(&info_, TRUE);
    });
    const int components = info_.num_components;
    if (components != 1 && components != 3 && components != 4) {
      throw Error("cannot be read as an image (it has " + std::to_string(components) +
                  " components, expected 1, 3 or 4)");
    }
    check_size(info_.image_width, info_.image_height);
    Stored stored = metadata();
    stored.image = Image(info_.image_width, info_.image_height);
    guarded([&, this] {
      info_.out_color_space = components == 1   ? JCS_GRAYSCALE
                              : components == 3 ? JCS_RGB
                                                : JCS_CMYK;
      jpeg_start_decompress(&info_);
      // libjpeg frees this row
      JSAMPARRAY row = info_.mem->alloc_sarray(reinterpret_cast<j_common_ptr>(&info_), JPOOL_IMAGE,
                                               info_.output_width * components, 1);
      while (info_.output_scanline < info_.output_height) {
        std::uint8_t* rgb = stored.image.row(info_.output_scanline);
        if (components == 3) {
          jpeg_read_scanlines(&info_, &rgb, 1);
        } else {
          jpeg_read_scanlines(&info_, row, 1);
          expand(row[0], components, info_.output_width, rgb);
        }
      }
    });
    return stored;
  }

 private:
  static Reader& of(j_common_ptr info) { return *static_cast<Reader*>(info->client_data); }

  // Run calls of libjpeg; throw where it reports an error. `calls` must own nothing: the jump
  // skips destructors.
  template <typename Calls>
  void guarded(const Calls& calls) {
    if (setjmp(place_) != 0) {
      throw Error("cannot be decoded to 'RGB' (" + std::string(message_) + ")");
    }
    calls();
  }

  [[noreturn]] void fail(const char* message) {
    if (message != nullptr) {
      std::snprintf(message_, sizeof message_, "%s", message);
    } else {
      errors_.format_message(reinterpret_cast<j_common_ptr>(&info_), message_);
    }
    std::longjmp(place_, 1);
  }

  // EXIF may be split over several markers; of several XMP packets Pillow takes the last.
  Stored metadata() const {
    Stored stored;
    for (auto marker = info_.marker_list; marker != nullptr; marker = marker->next) {
      const std::string content(reinterpret_cast<const char*>(marker->data), marker->data_length);
      if (content.compare(0, exif_prefix.size(), exif_prefix) == 0) {
        stored.exif += stored.has_exif ? content.substr(exif_prefix.size()) : content;
        stored.has_exif = true;
      } else if (content.compare(0, xmp_prefix.size(), xmp_prefix) == 0) {
        stored.xmp = content.substr(xmp_prefix.size());
      }
    }
    return stored;
  }

  jpeg_decompress_struct info_{};
  jpeg_error_mgr errors_{};
  std::jmp_buf place_{};
  char message_[JMSG_LENGTH_MAX]{};
};

}  // namespace

Stored decode_jpeg(const std::uint8_t* data, std::size_t size) { return Reader().read(data, size); }

}  // namespace image
