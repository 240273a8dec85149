#include "feed.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "cpus.h"
#include "failure.h"
#include "half.h"
#include "number_text.h"
#include "prepare.h"

namespace vit_export {

namespace {

constexpr std::size_t kMostPrepared = 32;          // images of one run
constexpr std::size_t kPreparedPerCpu = 2;         // of one run on the CPU
constexpr std::size_t kMostWhole = 8;              // the same of whole photographs
constexpr std::size_t kMostWholeBytes = 1u << 26;  // of all images of one run

using Numbers = std::vector<std::size_t>;

// The channels of an image that a graph prepares itself: it converts RGB to grey, too.
std::string whole_color(const Preprocess& preprocess) {
  return preprocess.color.empty() ? "" : "RGB";
}

}  // namespace

std::size_t largest_batch(const std::string& provider) {
  if (provider != "cpu") return kMostPrepared;
  return std::min(kMostPrepared, kPreparedPerCpu * static_cast<std::size_t>(usable_cpus()));
}

const Preprocess& Feed::preprocess() const {
  if (!manifest_.preprocess)
    throw artifact_error(name_ + ": has no image preparation in its manifest",
                         "export the model with vit-export");
  return *manifest_.preprocess;
}

std::size_t Feed::fixed_or(std::size_t most) const {
  const auto fixed = manifest_.inputs.front().fixed_batch();
  return fixed ? static_cast<std::size_t>(*fixed) : most;
}

void Feed::check_shape(const std::vector<std::int64_t>& shape) const {
  const TensorSpec& spec = manifest_.inputs.front();
  if (!spec.fits(shape))
    throw Failure(VIT_EXPORT_INPUT_ERROR, "input '" + spec.name + "' has shape " +
                                              shape_text(shape) + ", expected " + spec.str());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::string& name = spec.dimensions[i];
    if ((name == "height" || name == "width") && shape[i] % manifest_.patch_size)
      throw Failure(VIT_EXPORT_INPUT_ERROR, "input '" + spec.name + "': " + name + " " +
                                                std::to_string(shape[i]) +
                                                " px is no multiple of the patch size (" +
                                                std::to_string(manifest_.patch_size) + " px)");
  }
}

std::vector<std::vector<float>> Feed::rows(const Session& session,
                                           const std::vector<PixelView>& images,
                                           const std::string& output) const {
  if (images.empty())
    throw Failure(VIT_EXPORT_IMAGE_ERROR, "no images were given, expected at least one");
  std::vector<std::vector<float>> all(images.size());
  const bool whole = takes_whole_images();
  const std::size_t most = fixed_or(whole ? kMostWhole : most_prepared_);
  for (std::size_t start = 0; start < images.size(); start += most) {
    Numbers numbers;
    for (std::size_t i = start; i < std::min(start + most, images.size()); ++i)
      numbers.push_back(i);
    whole ? run_whole(session, images, numbers, output, all)
          : run_prepared(session, images, numbers, output, all);
  }
  return all;
}

void Feed::run_prepared(const Session& session, const std::vector<PixelView>& images,
                        const Numbers& numbers, const std::string& output,
                        std::vector<std::vector<float>>& rows) const {
  const Preprocess& how = preprocess();
  const auto pixels = static_cast<std::size_t>(how.height * how.width);
  const std::size_t one = pixels * how.mean.size(), size = fixed_or(numbers.size());
  for (const std::size_t number : numbers) check_size(images[number], how);  // before the memory
  std::vector<float> values(size * one);
  for (std::size_t i = 0; i < size; ++i) {
    float* to = values.data() + i * one;
    if (i < numbers.size())
      normalize(resize_and_crop(images[numbers[i]], how).samples.data(), pixels, how, to);
    else  // unlike zeros, repeated rows leave the activation range of dynamic INT8 as it is
      std::memcpy(to, to - numbers.size() * one, one * sizeof(float));
  }
  auto results =
      run_pixel_values(session, values.data(), size, static_cast<std::size_t>(how.height),
                       static_cast<std::size_t>(how.width), {output});
  put_rows(std::move(results.front()), numbers, rows);
}

void Feed::run_whole(const Session& session, const std::vector<PixelView>& images,
                     const Numbers& numbers, const std::string& output,
                     std::vector<std::vector<float>>& rows) const {
  std::vector<Numbers> groups;  // images of one size run together
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> group_of;
  std::vector<Pixels> converted(images.size());
  for (const std::size_t number : numbers) {
    check_size(images[number], preprocess());
    converted[number] = convert_color(images[number], whole_color(preprocess()));
    const auto [found, is_new] =
        group_of.try_emplace({converted[number].height, converted[number].width}, groups.size());
    if (is_new) groups.emplace_back();
    groups[found->second].push_back(number);
  }
  for (const Numbers& group : groups) {
    const Pixels& first = converted[group.front()];
    const std::size_t count = std::max<std::size_t>(1, kMostWholeBytes / first.samples.size());
    for (std::size_t start = 0; start < group.size(); start += count) {
      const Numbers batch(
          group.begin() + static_cast<std::ptrdiff_t>(start),
          group.begin() + static_cast<std::ptrdiff_t>(std::min(start + count, group.size())));
      const std::size_t size = fixed_or(batch.size());
      std::vector<std::uint8_t> samples;
      samples.reserve(size * first.samples.size());
      for (std::size_t i = 0; i < size; ++i) {
        const std::vector<std::uint8_t>& image = converted[batch[i % batch.size()]].samples;
        samples.insert(samples.end(), image.begin(), image.end());
      }
      auto results = run_whole_images(session, samples, size, first.height, first.width, {output});
      put_rows(std::move(results.front()), batch, rows);
    }
  }
}

void Feed::put_rows(Output result, const Numbers& numbers,
                    std::vector<std::vector<float>>& rows) const {
  const std::size_t given = result.shape.empty() ? 0 : static_cast<std::size_t>(result.shape[0]);
  if (given < numbers.size() || result.values.empty() || !result.is_float)
    throw artifact_error(name_ + ": output '" + result.name + "' has shape " +
                         shape_text(result.shape) + " for a batch of " +
                         std::to_string(numbers.size()));
  const std::size_t length = result.values.size() / given;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const float* row = result.values.data() + i * length;
    rows[numbers[i]].assign(row, row + length);
  }
}

std::vector<Output> Feed::run_pixel_values(const Session& session, const float* values,
                                           std::size_t batch, std::size_t height, std::size_t width,
                                           const std::vector<std::string>& outputs) const {
  const TensorSpec& spec = manifest_.inputs.front();
  const std::size_t channels =
      manifest_.preprocess ? manifest_.preprocess->mean.size()
                           : static_cast<std::size_t>(std::max<std::int64_t>(spec.shape[1], 1));
  const std::vector<std::int64_t> shape{
      static_cast<std::int64_t>(batch), static_cast<std::int64_t>(channels),
      static_cast<std::int64_t>(height), static_cast<std::int64_t>(width)};
  check_shape(shape);
  const std::size_t count = batch * channels * height * width;
  if (spec.dtype == "float32")
    return session.run(
        {spec.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape, values, count * sizeof(float)},
        outputs);
  if (spec.dtype != "float16")
    throw artifact_error(name_ + ": takes " + spec.dtype + ", expected float32 or float16");
  std::vector<std::uint16_t> halves(count);
  std::transform(values, values + count, halves.begin(), to_half);
  return session.run({spec.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, shape, halves.data(),
                      count * sizeof(std::uint16_t)},
                     outputs);
}

std::vector<Output> Feed::run_whole_images(const Session& session,
                                           const std::vector<std::uint8_t>& samples,
                                           std::size_t batch, std::int64_t height,
                                           std::int64_t width,
                                           const std::vector<std::string>& outputs) const {
  const TensorSpec& spec = manifest_.inputs.front();
  const auto rows = static_cast<std::int64_t>(batch) * height * width;
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(batch), height, width,
                                        static_cast<std::int64_t>(samples.size()) / rows};
  check_shape(shape);
  return session.run(
      {spec.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, shape, samples.data(), samples.size()},
      outputs);
}

}  // namespace vit_export
