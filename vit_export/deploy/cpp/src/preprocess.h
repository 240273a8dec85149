// How an image becomes `pixel_values`: a part of the manifest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vit_export {

constexpr std::int64_t kLargestSide = 1 << 16;  // of the model's input, in pixels
constexpr std::size_t kMostChannels = 1 << 10;
constexpr double kMostPixels = 178'956'970;  // of an image, as Pillow

struct Preprocess {
  std::int64_t height = 224;
  std::int64_t width = 224;
  double crop_pct = 0.9;
  std::string interpolation = "bicubic";
  std::string crop_mode = "center";
  std::string color = "RGB";
  std::vector<double> mean{0.5, 0.5, 0.5};
  std::vector<double> std{0.5, 0.5, 0.5};
  bool known = true;  // false: mean and std are placeholders, and no image is prepared by them
};

// Throws std::runtime_error where no image can be prepared by these values.
void check_preprocess(const Preprocess& preprocess);

}  // namespace vit_export
