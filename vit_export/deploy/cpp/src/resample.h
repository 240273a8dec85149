// Resize 8-bit images as Pillow's `Image.resize` does, to the bit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vit_export {

enum class Interpolation { nearest, box, bilinear, hamming, bicubic, lanczos };

// Returns the interpolation of a name in lower case; none where it is unknown.
std::optional<Interpolation> interpolation_of(const std::string& name);
std::string interpolation_names();  // separated by commas

// Samples of an image row after row, the channels of a pixel side by side.
struct Pixels {
  std::int64_t height = 0, width = 0, channels = 0;
  std::vector<std::uint8_t> samples;
};

// A view on the samples of an image; `stride` is the number of bytes from row to row.
struct PixelView {
  const std::uint8_t* samples = nullptr;
  std::int64_t height = 0, width = 0, channels = 0;
  std::int64_t stride = 0;
};

Pixels resize(const PixelView& image, std::int64_t height, std::int64_t width,
              Interpolation interpolation);

}  // namespace vit_export
