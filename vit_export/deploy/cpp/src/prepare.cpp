#include "prepare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "failure.h"

namespace vit_export {

namespace {

Failure image_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_IMAGE_ERROR, std::move(message), std::move(hint)};
}

struct Size {
  double height = 0, width = 0;
};

// Size before the crop of an image that has the model's aspect.
Size size_before_crop(const Preprocess& preprocess) {
  return {std::floor(static_cast<double>(preprocess.height) / preprocess.crop_pct),
          std::floor(static_cast<double>(preprocess.width) / preprocess.crop_pct)};
}

// Size before the crop: timm 1.0 `transforms_imagenet_eval`, with its roundings.
Size resized(double height, double width, const Preprocess& preprocess) {
  const auto [rows, columns] = size_before_crop(preprocess);
  if (preprocess.crop_mode == "squash") return {rows, columns};
  if (preprocess.crop_mode == "border") {  // timm's ResizeKeepRatio(longest=1), which can give 0
    const double ratio = std::max(height / rows, width / columns);
    return {std::max(1.0, std::nearbyint(height / ratio)),
            std::max(1.0, std::nearbyint(width / ratio))};
  }
  if (rows != columns) {  // timm's ResizeKeepRatio
    const double ratio = std::min(height / rows, width / columns);
    return {std::nearbyint(height / ratio), std::nearbyint(width / ratio)};
  }
  if (width <= height) return {std::trunc(rows * height / width), rows};
  return {rows, std::trunc(rows * width / height)};
}

std::string size_text(double height, double width) {
  return std::to_string(static_cast<std::int64_t>(height)) + ", " +
         std::to_string(static_cast<std::int64_t>(width));
}

// The level of each channel of a border: the mean, as timm rounds it.
std::vector<std::uint8_t> border_color(const Preprocess& preprocess) {
  std::vector<std::uint8_t> levels;
  for (const double mean : preprocess.mean)
    levels.push_back(static_cast<std::uint8_t>(std::clamp(std::nearbyint(255 * mean), 0.0, 255.0)));
  return levels;
}

// Cuts out the centre as torchvision's `center_crop` and timm's `center_crop_or_pad`.
Pixels center_crop(const Pixels& image, const Preprocess& preprocess) {
  const std::int64_t height = preprocess.height, width = preprocess.width;
  const auto start = [](std::int64_t have, std::int64_t want) -> std::int64_t {
    if (have < want) return -((want - have) / 2);
    return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(have - want) / 2));
  };
  if (image.height == height && image.width == width) return image;
  Pixels out{height, width, image.channels, {}};
  out.samples.resize(static_cast<std::size_t>(height * width * image.channels));
  if (preprocess.crop_mode == "border") {
    const std::vector<std::uint8_t> color = border_color(preprocess);
    for (std::size_t i = 0; i < out.samples.size(); ++i) out.samples[i] = color[i % color.size()];
  }
  const std::int64_t top = start(image.height, height), left = start(image.width, width);
  const std::int64_t columns = std::min(width, image.width);
  for (std::int64_t y = std::max<std::int64_t>(0, -top); y < height && y + top < image.height;
       ++y) {
    const std::int64_t from = ((y + top) * image.width + std::max<std::int64_t>(0, left));
    const std::int64_t to = y * width + std::max<std::int64_t>(0, -left);
    std::memcpy(out.samples.data() + to * image.channels,
                image.samples.data() + from * image.channels,
                static_cast<std::size_t>(columns * image.channels));
  }
  return out;
}

// Checks the samples and sizes of an image.
void check_image(const PixelView& image) {
  if (!image.samples) throw image_error("an image has no pixels (a null pointer was given)");
  if (image.height < 1 || image.width < 1 || image.channels < 1)
    throw image_error(
        "an image of (H, W, C) = (" +
        size_text(static_cast<double>(image.height), static_cast<double>(image.width)) + ", " +
        std::to_string(image.channels) + ") was given, expected at least one pixel");
  if (static_cast<double>(image.height) * static_cast<double>(image.width) > kMostPixels)
    throw image_error("an image of " + std::to_string(image.width) + " x " +
                      std::to_string(image.height) + " pixels was given, expected at most " +
                      std::to_string(static_cast<std::int64_t>(kMostPixels)) + " in all");
  if (image.stride < image.width * image.channels)
    throw image_error("an image has rows of " + std::to_string(image.stride) +
                      " bytes, expected at least " + std::to_string(image.width * image.channels) +
                      " (width times channels)");
}

// Returns the size of an image before the crop.
Size checked_size(const PixelView& given, const Preprocess& preprocess) {
  check_image(given);
  if (!preprocess.known)
    throw image_error("the model does not say how its images are prepared",
                      "export it with --mean and --std as it was trained with");
  const auto [height, width] =
      resized(static_cast<double>(given.height), static_cast<double>(given.width), preprocess);
  if (!(height * width <= kMostPixels))
    throw image_error(
        "an image of (H, W) = (" +
            size_text(static_cast<double>(given.height), static_cast<double>(given.width)) +
            ") is too elongated: resized for the model it would have more than " +
            std::to_string(static_cast<std::int64_t>(kMostPixels)) + " pixels",
        "crop it first");
  if (height < 1 || width < 1)
    throw image_error("crop_pct=" + std::to_string(preprocess.crop_pct) +
                      " leaves nothing of an image");
  return {height, width};
}

}  // namespace

void check_size(const PixelView& image, const Preprocess& preprocess) {
  checked_size(image, preprocess);
}

void check_preprocess(const Preprocess& preprocess) {
  const std::size_t named = preprocess.color == "RGB" ? 3 : preprocess.color == "L" ? 1 : 0;
  const auto wrong = [](const std::string& text) { return std::runtime_error(text); };
  if (preprocess.color != "RGB" && preprocess.color != "L" && !preprocess.color.empty())
    throw wrong("color='" + preprocess.color + "': expected one of 'RGB', 'L', ''");
  const std::string& mode = preprocess.crop_mode;
  if (mode != "center" && mode != "squash" && mode != "border")
    throw wrong("crop_mode='" + mode + "': expected one of 'center', 'squash', 'border'");
  if (!interpolation_of(preprocess.interpolation))
    throw wrong("interpolation='" + preprocess.interpolation + "': expected one of " +
                interpolation_names());
  const auto is_side = [](std::int64_t side) { return side >= 1 && side <= kLargestSide; };
  if (!is_side(preprocess.height) || !is_side(preprocess.width))
    throw wrong("size: expected a height and a width of 1 to " + std::to_string(kLargestSide));
  if (static_cast<double>(preprocess.height) * static_cast<double>(preprocess.width) > kMostPixels)
    throw wrong(
        "size (" +
        size_text(static_cast<double>(preprocess.height), static_cast<double>(preprocess.width)) +
        "): more than " + std::to_string(static_cast<std::int64_t>(kMostPixels)) + " pixels");
  const std::size_t channels = named ? named : preprocess.mean.size();
  if (channels < 1 || channels > kMostChannels)
    throw wrong("mean has " + std::to_string(channels) + " values, expected 1 to " +
                std::to_string(kMostChannels));
  for (const auto* values : {&preprocess.mean, &preprocess.std}) {
    const std::string name = values == &preprocess.mean ? "mean" : "std";
    if (values->size() != channels)
      throw wrong(name + " has " + std::to_string(values->size()) +
                  " values for in_chans=" + std::to_string(channels));
    for (const double value : *values) {
      if (!std::isfinite(value)) throw wrong(name + ": must be finite");
      if (values == &preprocess.std && value <= 0) throw wrong("std: every value must be positive");
    }
  }
  if (!(preprocess.crop_pct > 0) || !std::isfinite(preprocess.crop_pct))
    throw wrong("crop_pct=" + std::to_string(preprocess.crop_pct) + ": must be above 0");
}

Pixels convert_color(const PixelView& image, const std::string& color) {
  const std::int64_t given = image.channels;
  if (!color.empty() && given != 1 && given != 3 && given != 4)
    throw image_error("an image of " + std::to_string(given) +
                      " channels was given, expected 1, 3 or 4");
  const std::int64_t wanted = color.empty() ? given : color == "RGB" ? 3 : 1;
  Pixels out{image.height, image.width, wanted, {}};
  out.samples.resize(static_cast<std::size_t>(image.height * image.width * wanted));
  std::uint8_t* to = out.samples.data();
  for (std::int64_t y = 0; y < image.height; ++y) {
    const std::uint8_t* from = image.samples + y * image.stride;
    if (given == wanted) {
      const auto length = static_cast<std::size_t>(image.width * given);
      std::memcpy(to, from, length);
      to += length;
      continue;
    }
    for (std::int64_t x = 0; x < image.width; ++x, from += given) {
      if (wanted == 1) {  // ITU-R 601-2 in 16 bits, as Pillow
        *to++ = static_cast<std::uint8_t>(
            (from[0] * 19595u + from[1] * 38470u + from[2] * 7471u + 0x8000u) >> 16);
      } else {
        for (std::int64_t c = 0; c < wanted; ++c) *to++ = given == 1 ? from[0] : from[c];
      }
    }
  }
  return out;
}

Pixels resize_and_crop(const PixelView& given, const Preprocess& preprocess) {
  const auto [height, width] = checked_size(given, preprocess);
  PixelView image = given;
  Pixels converted;
  const std::int64_t wanted = preprocess.color.empty()    ? given.channels
                              : preprocess.color == "RGB" ? 3
                                                          : 1;
  if (given.channels != wanted) {
    converted = convert_color(given, preprocess.color);
    image = {converted.samples.data(), converted.height, converted.width, wanted,
             converted.width * wanted};
  }
  if (image.channels != static_cast<std::int64_t>(preprocess.mean.size()))
    throw image_error("an image of " + std::to_string(image.channels) +
                      " channels was given, the model reads " +
                      std::to_string(preprocess.mean.size()));
  const Pixels pixels =
      resize(image, static_cast<std::int64_t>(height), static_cast<std::int64_t>(width),
             *interpolation_of(preprocess.interpolation));
  return center_crop(pixels, preprocess);
}

Pixels before_preparation(const std::uint8_t* pixels, const Preprocess& preprocess) {
  const Size whole = size_before_crop(preprocess);
  if (!(whole.height * whole.width <= kMostPixels))
    throw image_error("crop_pct=" + std::to_string(preprocess.crop_pct) +
                      " needs too large images");
  const auto channels = static_cast<std::int64_t>(preprocess.mean.size());
  const std::int64_t copies = preprocess.color == "L" ? 3 : 1;
  Pixels out{static_cast<std::int64_t>(whole.height),
             static_cast<std::int64_t>(whole.width),
             channels * copies,
             {}};
  if (out.height < preprocess.height || out.width < preprocess.width)
    throw image_error("crop_pct=" + std::to_string(preprocess.crop_pct) +
                      ": expected at most 1 of a graph that prepares images, so that golden images "
                      "fill the model's input");
  out.samples.resize(static_cast<std::size_t>(out.height * out.width * out.channels));
  const auto margin = [](std::int64_t have, std::int64_t want) {
    return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(have - want) / 2));
  };
  const std::int64_t top = margin(out.height, preprocess.height);
  const std::int64_t left = margin(out.width, preprocess.width);
  for (std::int64_t y = 0; y < preprocess.height; ++y) {
    std::uint8_t* to = out.samples.data() + ((y + top) * out.width + left) * out.channels;
    for (std::int64_t i = 0; i < preprocess.width * channels; ++i, ++pixels)
      for (std::int64_t copy = 0; copy < copies; ++copy) *to++ = *pixels;
  }
  return out;
}

void normalize(const std::uint8_t* pixels, std::size_t count, const Preprocess& preprocess,
               float* to) {
  const auto channels = preprocess.mean.size();
  for (std::size_t c = 0; c < channels; ++c) {
    const auto mean = static_cast<float>(preprocess.mean[c]);
    const auto std = static_cast<float>(preprocess.std[c]);
    float levels[256];  // all computed in float32, as torchvision's ToTensor and Normalize
    for (int level = 0; level < 256; ++level)
      levels[level] = (static_cast<float>(level) / 255.0f - mean) / std;
    for (std::size_t i = 0; i < count; ++i) *to++ = levels[pixels[i * channels + c]];
  }
}

}  // namespace vit_export
