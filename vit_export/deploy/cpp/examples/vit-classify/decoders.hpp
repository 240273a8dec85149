// The decoder of each format, and what they share. `image.hpp` is the door.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "image.hpp"

namespace image {

// A decoded image as it is stored, and the metadata that may hold its orientation.
struct Stored {
  Image image;
  bool has_exif = false;
  std::string exif;  // with or without the prefix "Exif\0\0"
  std::string xmp;
};

Stored decode_jpeg(const std::uint8_t* data, std::size_t size);
Stored decode_png(const std::uint8_t* data, std::size_t size);

// Throw `Error` where an image has no pixels, or more than `max_pixels`.
void check_size(std::uint64_t width, std::uint64_t height);

// The EXIF orientation of an image, 1 to 8; 1 where it has none, or a damaged one.
int orientation(const Stored& stored);

// Undo an EXIF orientation.
Image upright(Image stored, int orientation);

}  // namespace image
