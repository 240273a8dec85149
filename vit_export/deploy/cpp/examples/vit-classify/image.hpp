// Decode JPEG and PNG files to the pixels that vit-export's Python package decodes.
//
// EXIF orientation is applied, 16-bit grey is scaled to 8 bits, CMYK is converted, and
// transparency is dropped: the rules of vit_export/images/decode.py, which follow Pillow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace image {

// The largest number of pixels that is decoded; the same limit as Python's.
constexpr std::uint64_t max_pixels = 178'956'970;

// An image that cannot be read: what was found, and what was expected.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Pixels of an image: `height` rows of `width` pixels of red, green, blue, without padding.
struct Image {
  Image() = default;
  Image(std::uint32_t columns, std::uint32_t rows);

  // Size of the pixels in bytes.
  std::size_t size() const { return std::size_t{3} * width * height; }
  std::uint8_t* row(std::size_t y) { return rgb.get() + y * width * 3; }

  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::unique_ptr<std::uint8_t[]> rgb;  // not set to zero: a false claim of a size costs nothing
};

// Read a JPEG or PNG file, turned upright. Throws `Error`, whose message begins with the path.
Image read(const std::string& path);

// Decode the content of a JPEG or PNG file; `name` begins the messages of errors.
Image decode(const std::uint8_t* data, std::size_t size, const std::string& name);

}  // namespace image
