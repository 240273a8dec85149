// The method is Pillow's: a separable filter whose support grows with the reduction (no aliasing),
// first along rows, then along columns, with 8-bit results of both passes. Weights are computed
// in float64 and rounded to fixed-point numbers of 22 bits behind the point.
#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace vit_export {

namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr std::int32_t kHalf = 1 << (kPrecisionBits - 1);
constexpr double kPi = 3.14159265358979323846;

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double triangle(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
  x = std::fabs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= kPi;
  return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));  // Pillow's constants are float
}

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= kPi;
  return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Filter {
  double (*weight)(double);
  double support;  // weights are zero beyond this distance
};

Filter filter_of(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::box:
      return {box, 0.5};
    case Interpolation::bilinear:
      return {triangle, 1.0};
    case Interpolation::hamming:
      return {hamming, 1.0};
    case Interpolation::bicubic:
      return {cubic, 2.0};
    default:
      return {lanczos, 3.0};
  }
}

// The weights of one direction: output `i` is the sum of `count[i]` inputs from `first[i]` on.
struct Weights {
  std::vector<std::int64_t> first, count;
  std::vector<std::int32_t> values;  // `width` per output, fixed-point
  std::size_t width = 0;
};

Weights weights_of(std::int64_t in, std::int64_t out, const Filter& filter) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale, inverse = 1.0 / filter_scale;
  Weights made;
  // no more than the inputs that there are
  made.width =
      static_cast<std::size_t>(std::min(std::ceil(support) * 2 + 1, static_cast<double>(in)));
  made.values.resize(static_cast<std::size_t>(out) * made.width);
  std::vector<double> row(made.width);
  for (std::int64_t i = 0; i < out; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const auto low = static_cast<std::int64_t>(center - support + 0.5);
    const auto high = static_cast<std::int64_t>(center + support + 0.5);
    const std::int64_t first = std::max<std::int64_t>(low, 0);
    const std::int64_t count = std::min(high, in) - first;
    double sum = 0.0;
    for (std::int64_t x = 0; x < count; ++x) {
      const double weight =
          filter.weight((static_cast<double>(x + first) - center + 0.5) * inverse);
      row[static_cast<std::size_t>(x)] = weight;
      sum += weight;
    }
    std::int32_t* fixed = &made.values[static_cast<std::size_t>(i) * made.width];
    for (std::int64_t x = 0; x < count; ++x) {
      double weight = row[static_cast<std::size_t>(x)];
      if (sum != 0.0) weight /= sum;
      weight *= 1 << kPrecisionBits;
      fixed[x] = static_cast<std::int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    made.first.push_back(first);
    made.count.push_back(count);
  }
  return made;
}

std::uint8_t clip(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

// Resizes one row of an image, `weights.first.size()` pixels long afterwards.
template <int kChannels>
void resize_row(const std::uint8_t* row, std::int64_t channels, const Weights& weights,
                std::uint8_t* to) {
  for (std::size_t x = 0; x < weights.first.size(); ++x) {
    const std::int32_t* weight = &weights.values[x * weights.width];
    const std::uint8_t* from = row + weights.first[x] * channels;
    const std::int64_t count = weights.count[x];
    if constexpr (kChannels == 3) {
      std::int32_t r = kHalf, g = kHalf, b = kHalf;
      for (std::int64_t i = 0; i < count; ++i, from += 3) {
        r += from[0] * weight[i];
        g += from[1] * weight[i];
        b += from[2] * weight[i];
      }
      *to++ = clip(r);
      *to++ = clip(g);
      *to++ = clip(b);
    } else {
      for (std::int64_t c = 0; c < channels; ++c) {
        std::int32_t sum = kHalf;
        for (std::int64_t i = 0; i < count; ++i) sum += from[i * channels + c] * weight[i];
        *to++ = clip(sum);
      }
    }
  }
}

// The rows of an image at their final width. They are resized when they are first asked for, in
// rising order, and kept as long as one output row needs them.
class NarrowRows {
 public:
  // `kept` rows are in memory at once; `columns` is null where the width stays.
  NarrowRows(const PixelView& image, const Weights* columns, std::size_t kept)
      : image_(image), columns_(columns), kept_(static_cast<std::int64_t>(kept)) {
    if (!columns) return;
    length_ = static_cast<std::int64_t>(columns->first.size()) * image.channels;
    rows_.resize(static_cast<std::size_t>(kept_ * length_));
  }

  const std::uint8_t* row(std::int64_t y) {
    if (!columns_) return image_.samples + y * image_.stride;
    for (next_ = std::max(next_, y - kept_ + 1); next_ <= y; ++next_) {
      const std::uint8_t* from = image_.samples + next_ * image_.stride;
      image_.channels == 3 ? resize_row<3>(from, 3, *columns_, slot(next_))
                           : resize_row<0>(from, image_.channels, *columns_, slot(next_));
    }
    return slot(y);
  }

 private:
  std::uint8_t* slot(std::int64_t y) { return rows_.data() + y % kept_ * length_; }

  const PixelView& image_;
  const Weights* columns_;
  std::int64_t kept_, length_ = 0, next_ = 0;
  std::vector<std::uint8_t> rows_;
};

void resize_columns(NarrowRows& source, const Weights& weights, Pixels& out) {
  const auto length = static_cast<std::size_t>(out.width * out.channels);
  std::vector<std::int32_t> sums(length);
  std::uint8_t* to = out.samples.data();
  for (std::size_t y = 0; y < weights.first.size(); ++y) {
    const std::int32_t* weight = &weights.values[y * weights.width];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (std::int64_t i = 0; i < weights.count[y]; ++i) {
      const std::uint8_t* from = source.row(weights.first[y] + i);
      for (std::size_t x = 0; x < length; ++x) sums[x] += from[x] * weight[i];
    }
    for (std::size_t x = 0; x < length; ++x) *to++ = clip(sums[x]);
  }
}

Pixels blank(std::int64_t height, std::int64_t width, std::int64_t channels) {
  Pixels made{height, width, channels, {}};
  made.samples.resize(static_cast<std::size_t>(height * width * channels));
  return made;
}

// The input of each output along one side; -1 beyond the last one. Positions are added up as
// Pillow does, with the same rounding.
std::vector<std::int64_t> nearest_inputs(std::int64_t in, std::int64_t out) {
  const double step = static_cast<double>(in) / static_cast<double>(out);
  double position = step * 0.5;
  std::vector<std::int64_t> inputs;
  for (std::int64_t i = 0; i < out; ++i, position += step) {
    const auto input = static_cast<std::int64_t>(position);
    inputs.push_back(input < in ? input : -1);
  }
  return inputs;
}

Pixels resize_nearest(const PixelView& image, std::int64_t height, std::int64_t width) {
  Pixels out = blank(height, width, image.channels);
  const auto columns = nearest_inputs(image.width, width);
  const auto rows = nearest_inputs(image.height, height);
  std::uint8_t* to = out.samples.data();
  for (const std::int64_t row : rows)
    for (const std::int64_t column : columns) {
      if (row >= 0 && column >= 0)
        std::memcpy(to, image.samples + row * image.stride + column * image.channels,
                    static_cast<std::size_t>(image.channels));
      to += image.channels;
    }
  return out;
}

Pixels copy(const PixelView& image) {
  Pixels out = blank(image.height, image.width, image.channels);
  const std::int64_t length = image.width * image.channels;
  for (std::int64_t y = 0; y < image.height; ++y)
    std::memcpy(out.samples.data() + y * length, image.samples + y * image.stride,
                static_cast<std::size_t>(length));
  return out;
}

constexpr std::pair<const char*, Interpolation> kNames[] = {
    {"nearest", Interpolation::nearest},   {"box", Interpolation::box},
    {"bilinear", Interpolation::bilinear}, {"hamming", Interpolation::hamming},
    {"bicubic", Interpolation::bicubic},   {"lanczos", Interpolation::lanczos},
};

}  // namespace

std::optional<Interpolation> interpolation_of(const std::string& name) {
  for (const auto& [known, interpolation] : kNames)
    if (name == known) return interpolation;
  return std::nullopt;
}

std::string interpolation_names() {
  std::string names;
  for (const auto& [known, interpolation] : kNames) {
    (void)interpolation;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  return names;
}

Pixels resize(const PixelView& image, std::int64_t height, std::int64_t width,
              Interpolation interpolation) {
  if (height == image.height && width == image.width) return copy(image);
  if (interpolation == Interpolation::nearest) return resize_nearest(image, height, width);
  const Filter filter = filter_of(interpolation);
  Weights columns, rows;
  if (width != image.width) columns = weights_of(image.width, width, filter);
  if (height != image.height) rows = weights_of(image.height, height, filter);
  Pixels out = blank(height, width, image.channels);
  NarrowRows narrow(image, width != image.width ? &columns : nullptr,
                    height != image.height ? rows.width : 1);
  if (height != image.height) {
    resize_columns(narrow, rows, out);
    return out;
  }
  for (std::int64_t y = 0; y < height; ++y)
    std::memcpy(out.samples.data() + y * width * image.channels, narrow.row(y),
                static_cast<std::size_t>(width * image.channels));
  return out;
}

}  // namespace vit_export
