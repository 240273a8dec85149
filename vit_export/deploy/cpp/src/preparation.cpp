#include "preparation.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>

#include "failure.h"
#include "number_text.h"
#include "prepare.h"

namespace vit_export {

namespace {

constexpr double kMostLevels = 1;
// Each pass of ONNX Runtime's Resize is within one level of Pillow's. Bicubic weights can turn that
// of the first pass into two, in a few pixels at hard edges.
constexpr double kMostLevelsBeyond = 2, kShareBeyond = 1e-3;
constexpr double kRoundings = 4;  // of the dtype, between a level and its normalised value
constexpr std::size_t kMostReasons = 3;

using Side = std::int64_t;

std::vector<std::pair<Side, Side>> sizes_of(const Preprocess& how) {
  const Side height = how.height, width = how.width;
  return {{2 * height + 1, 3 * width - 1},
          {3 * height - 2, 2 * width},
          {(height + 1) / 2, (2 * width + 2) / 3},
          {height + 1, width},
          {1, 17},
          {23, 1}};
}

// Noise, squares of one colour or a ramp, by the number of the image.
Pixels picture(std::size_t number, Side height, Side width, Side channels) {
  Pixels image{height, width, channels, {}};
  image.samples.resize(static_cast<std::size_t>(height * width * channels));
  std::uint32_t random = static_cast<std::uint32_t>(number) + 1;
  for (std::uint8_t& sample : image.samples)
    sample = static_cast<std::uint8_t>((random = random * 1664525u + 1013904223u) >> 24);
  if (number % 3 == 0) return image;
  const std::vector<std::uint8_t> noise = image.samples;
  std::uint8_t* to = image.samples.data();
  for (Side y = 0; y < height; ++y)
    for (Side x = 0; x < width; ++x)
      for (Side c = 0; c < channels; ++c, ++to)
        *to = number % 3 == 1
                  ? noise[static_cast<std::size_t>((y / 7 * 7 * width + x / 7 * 7) * channels + c)]
                  : static_cast<std::uint8_t>(std::abs((3 * y + 2 * x + 40 * c) % 510 - 255));
  return image;
}

double rounding_of(const std::string& dtype) {
  if (dtype == "float16") return 1.0 / (1 << 10);
  if (dtype == "bfloat16") return 1.0 / (1 << 7);
  return std::numeric_limits<float>::epsilon();
}

// Compares the pixels of images; adds up what `measure_preparation` returns.
class Comparison {
 public:
  Comparison(const Preprocess& how, double allowed) : how_(how), allowed_(allowed) {}

  // Returns what is wrong with `values` (C, H, W), where the levels should be `wanted` (H, W, C).
  std::string add(const std::vector<float>& values, const std::string& dtype,
                  const Pixels& wanted) {
    const std::size_t channels = how_.mean.size(), pixels = wanted.samples.size() / channels;
    double most = 0, off = 0, largest = 1, product = 0, squares = 0, wanted_squares = 0;
    for (std::size_t c = 0; c < channels; ++c)
      for (std::size_t i = 0; i < pixels; ++i) {
        const double value = values[c * pixels + i], expected = wanted.samples[i * channels + c];
        const double level = std::nearbyint((value * how_.std[c] + how_.mean[c]) * 255);
        const double distance = std::fabs(level - expected);
        const double exact = (level / 255 - how_.mean[c]) / how_.std[c];
        if (!(distance <= most)) most = distance;  // NaN stays
        if (!(distance <= kMostLevels)) ++beyond_;
        off = std::max(off, std::fabs(value - exact));
        largest = std::max(largest, std::fabs(exact));
        product += level * expected;
        squares += level * level;
        wanted_squares += expected * expected;
      }
    count_ += wanted.samples.size();
    if (std::isnan(most)) most = std::numeric_limits<double>::infinity();
    levels = std::max(levels, most);
    const double norms = std::sqrt(squares) * std::sqrt(wanted_squares);
    if (norms > 0) cosine = std::min(cosine, product / norms);
    if (!(most <= allowed_))
      return "a pixel differs from Pillow's by " + fixed_number(most, 0) + " levels, allowed " +
             fixed_number(allowed_, 0);
    const double allowed = kRoundings * rounding_of(dtype) * largest;
    if (off <= allowed) return {};
    return "values are off by " + short_number(off) + " from the normalised pixels, allowed " +
           short_number(allowed);
  }

  double share_beyond() const {
    return count_ ? static_cast<double>(beyond_) / static_cast<double>(count_) : 0;
  }

  double levels = 0, cosine = 1;

 private:
  const Preprocess& how_;
  const double allowed_;
  std::size_t beyond_ = 0, count_ = 0;
};

}  // namespace

PreparationError measure_preparation(const Feed& feed, const Session& part,
                                     const Manifest& manifest) {
  const Preprocess& how = feed.preprocess();
  const TensorSpec& spec = manifest.inputs.front();
  const bool is_cubic = manifest.resize == "op" && how.interpolation == "bicubic";
  PreparationError found;
  found.allowed = is_cubic ? kMostLevelsBeyond : kMostLevels;
  Comparison comparison(how, found.allowed);
  const auto sizes = sizes_of(how);
  const auto batch = static_cast<std::size_t>(spec.fixed_batch().value_or(1));
  const Side channels = spec.shape[3] > 0 ? spec.shape[3] : static_cast<Side>(how.mean.size());
  for (std::size_t number = 0; number < sizes.size(); ++number) {
    const auto [height, width] = sizes[number];
    const Pixels image = picture(number, height, width, channels);
    const PixelView view{image.samples.data(), height, width, channels, width * channels};
    const std::string size =
        "an image of " + std::to_string(height) + "x" + std::to_string(width) + " px";
    try {
      const Pixels wanted = resize_and_crop(view, how);
      std::vector<std::uint8_t> samples;
      for (std::size_t i = 0; i < batch; ++i)
        samples.insert(samples.end(), image.samples.begin(), image.samples.end());
      const Output result =
          feed.run_whole_images(part, samples, batch, height, width, {kPixelValues}).front();
      const std::vector<std::int64_t> shape{static_cast<std::int64_t>(batch),
                                            static_cast<std::int64_t>(how.mean.size()), how.height,
                                            how.width};
      if (!result.is_float || result.shape != shape) {
        found.failures.push_back(size + " gives " + shape_text(result.shape));
        continue;
      }
      if (const std::string why = comparison.add(result.values, result.dtype, wanted); !why.empty())
        found.failures.push_back("of " + size + ", " + why);
    } catch (const Failure& error) {
      found.failures.push_back(size + " fails: " + error.message);
    }
  }
  if (found.failures.empty() && comparison.share_beyond() > kShareBeyond)
    found.failures.push_back(fixed_number(100 * comparison.share_beyond(), 2) +
                             " % of the pixels differ from Pillow's by more than 1 level, allowed "
                             "0.1 %");
  if (found.failures.size() > kMostReasons) {
    const std::size_t rest = found.failures.size() - kMostReasons;
    found.failures.resize(kMostReasons);
    found.failures.push_back("and so for " + std::to_string(rest) + " more images");
  }
  found.levels = comparison.levels;
  found.cosine = comparison.cosine;
  return found;
}

}  // namespace vit_export
