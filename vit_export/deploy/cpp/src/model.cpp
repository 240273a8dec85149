#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "failure.h"
#include "half.h"
#include "number_text.h"
#include "prepare.h"

namespace vit_export {

namespace {

constexpr std::size_t kMostImages = 32;  // of one run, where the model takes any number
constexpr double kMostRange = 16;        // of a normalised image's range
constexpr const char* kCopyAgain = "copy the file again, or export the model again";
constexpr const char* kLogits = "logits";
constexpr const char* kFeatures = "features";

Failure input_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_INPUT_ERROR, std::move(message), std::move(hint)};
}

OnnxFile read_file(const std::string& path) {
  const FileBytes bytes(path, "model");
  if (bytes.size() == 0) throw artifact_error(path + ": the file is empty", kCopyAgain);
  std::string reason;
  try {
    return read_onnx(bytes);
  } catch (const std::logic_error& error) {
    reason = error.what();
  } catch (const std::runtime_error& error) {
    reason = error.what();
  }
  throw artifact_error(path + ": not an ONNX file, or a truncated one (" + reason + "; " +
                           std::to_string(bytes.size()) + " bytes)",
                       kCopyAgain);
}

Manifest manifest_of(const OnnxFile& file, const std::string& name) {
  if (!file.has_manifest)
    throw artifact_error(name + ": has no vit-export manifest, so how to prepare images is unknown",
                         "export the model with vit-export");
  return read_manifest(file.manifest, name);
}

SessionSettings with_precision(SessionSettings settings, const Manifest& manifest) {
  settings.precision = manifest.precision;
  return settings;
}

bool has_output(const Session& session, const std::string& name) {
  const auto& specs = session.outputs();
  return std::any_of(specs.begin(), specs.end(),
                     [&](const TensorSpec& spec) { return spec.name == name; });
}

// How many rows one run takes: the fixed batch size, or up to `kMostImages`.
std::size_t batch_size(const TensorSpec& input, std::size_t images) {
  const auto fixed = input.fixed_batch();
  return fixed ? static_cast<std::size_t>(*fixed) : std::min(images, kMostImages);
}

// Checks that values can be those of a normalised image, unlike e.g. 0 to 255.
void check_range(const float* values, std::size_t count, const Preprocess& preprocess) {
  double lowest = std::numeric_limits<double>::infinity(), highest = -lowest;
  for (std::size_t c = 0; c < preprocess.mean.size(); ++c) {
    lowest = std::min(lowest, (0 - preprocess.mean[c]) / preprocess.std[c]);
    highest = std::max(highest, (1 - preprocess.mean[c]) / preprocess.std[c]);
  }
  float low = values[0], high = values[0];
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(values[i]);
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  if (!finite) throw input_error("input 'pixel_values' holds NaN or infinite values");
  const double most = kMostRange * std::max(std::fabs(lowest), std::fabs(highest));
  if (std::fabs(low) > most || std::fabs(high) > most)
    throw input_error("input 'pixel_values' holds values from " + short_number(low) + " to " +
                          short_number(high) +
                          ", but a normalised image of this model has values from " +
                          short_number(lowest) + " to " + short_number(highest),
                      "normalise it, or call classify, which takes uint8 images");
}

}  // namespace

Model::Model(const std::string& path, const ModelOptions& options)
    : path_(path),
      name_(path.substr(path.rfind('/') + 1)),
      file_(read_file(path)),
      manifest_(manifest_of(file_, name_)),
      library_(load_onnxruntime(options.library)),
      settings_(with_precision(options.session, manifest_)),
      session_(std::make_shared<Session>(library_, path, settings_)) {
  check_session();
  takes_images_ = session_->inputs().front().dtype == "uint8";
}

void Model::check_session() const {
  const auto& inputs = session_->inputs();
  if (inputs.size() != 1)
    throw artifact_error(name_ + ": takes " + std::to_string(inputs.size()) +
                         " inputs, and this library runs models of one");
  const TensorSpec &given = inputs.front(), &promised = manifest_.inputs.front();
  if (given.name != promised.name || given.dtype != promised.dtype || given.shape.size() != 4)
    throw artifact_error(
        name_ + ": its graph takes " + given.str() + ", and its manifest says " + promised.str(),
        given.shape.size() == 4 ? kCopyAgain : "");
  for (const TensorSpec& output : manifest_.outputs)
    if (!has_output(*session_, output.name))
      throw artifact_error(name_ + ": its manifest promises the output '" + output.name +
                               "', and its graph has none of that name",
                           kCopyAgain);
  const TensorSpec& output = manifest_.outputs.front();
  const auto labels = static_cast<std::int64_t>(manifest_.labels.size());
  if (labels && output.shape.size() == 2 && output.shape[1] >= 0 && output.shape[1] != labels)
    throw artifact_error(name_ + ": " + std::to_string(labels) + " labels for a model of " +
                         std::to_string(output.shape[1]) + " classes");
}

const Preprocess& Model::preprocess() const {
  if (!manifest_.preprocess)
    throw artifact_error(name_ + ": has no image preparation in its manifest",
                         "export the model with vit-export");
  return *manifest_.preprocess;
}

void Model::check_classifies() const {
  const TensorSpec& output = manifest_.outputs.front();
  if (output.shape.size() != 2 || output.name != kLogits)
    throw artifact_error(
        name_ + ": its first output (" + output.str() + ") is not logits (batch, classes)",
        "export it with --outputs logits, or call the model for its outputs");
}

std::vector<std::vector<Prediction>> Model::classify(const std::vector<PixelView>& images,
                                                     int top) const {
  if (top < 1)
    throw input_error("top=" + std::to_string(top) + ": expected a whole number, at least 1");
  check_classifies();
  std::vector<std::vector<Prediction>> all;
  for (const std::vector<float>& row : rows(images, *session_, kLogits))
    all.push_back(predict(row.data(), row.size(), manifest_.activation, manifest_.labels,
                          static_cast<std::size_t>(top)));
  return all;
}

Output Model::embed(const std::vector<PixelView>& images, bool normalize) const {
  const auto session = session_with(kFeatures);
  if (!session) {
    std::string outputs;
    for (const TensorSpec& spec : manifest_.outputs)
      outputs += (outputs.empty() ? "" : ", ") + spec.name;
    throw artifact_error(name_ + ": has no tensor 'features' (its outputs: " + outputs + ")",
                         "export the .onnx file with --outputs logits,features");
  }
  Output features;
  features.name = kFeatures;
  for (std::vector<float>& row : rows(images, *session, kFeatures)) {
    if (normalize) {
      double squares = 0;
      for (const float value : row) squares += static_cast<double>(value) * value;
      const auto length =
          std::max(static_cast<float>(std::sqrt(squares)), std::numeric_limits<float>::min());
      for (float& value : row) value /= length;
    }
    features.shape = {0, static_cast<std::int64_t>(row.size())};
    features.values.insert(features.values.end(), row.begin(), row.end());
  }
  features.shape[0] = static_cast<std::int64_t>(images.size());
  return features;
}

std::vector<Output> Model::run(const float* pixel_values, std::size_t batch, std::size_t height,
                               std::size_t width) const {
  const TensorSpec& spec = session_->inputs().front();
  if (takes_images_)
    throw input_error(name_ + ": takes uint8 images (" + spec.str() + "), not pixel_values",
                      "call classify or embed");
  if (!pixel_values) throw input_error("input '" + spec.name + "' is a null pointer");
  const Preprocess* preprocess = manifest_.preprocess ? &*manifest_.preprocess : nullptr;
  if (preprocess && height == 0) height = static_cast<std::size_t>(preprocess->height);
  if (preprocess && width == 0) width = static_cast<std::size_t>(preprocess->width);
  const std::int64_t channels = spec.shape[1] > 0 ? spec.shape[1]
                                : preprocess ? static_cast<std::int64_t>(preprocess->mean.size())
                                             : 3;
  constexpr std::size_t kMost = std::size_t{1} << 40;
  const auto sizes = {batch, static_cast<std::size_t>(channels), height, width};
  std::size_t count = 1;
  for (const std::size_t size : sizes) {
    if (size == 0 || size > kMost / count)
      throw input_error("input '" + spec.name + "' is empty, or larger than memory: batch " +
                        std::to_string(batch) + ", height " + std::to_string(height) + ", width " +
                        std::to_string(width));
    count *= size;
  }
  if (preprocess) check_range(pixel_values, count, *preprocess);
  std::vector<std::string> outputs;
  for (const TensorSpec& output : manifest_.outputs) outputs.push_back(output.name);
  return run_pixels(*session_, pixel_values, batch, height, width, outputs);
}

std::vector<Output> Model::run_pixels(const Session& session, const float* pixel_values,
                                      std::size_t batch, std::size_t height, std::size_t width,
                                      const std::vector<std::string>& outputs) const {
  const TensorSpec& spec = session.inputs().front();
  const auto channels =
      static_cast<std::size_t>(manifest_.preprocess ? manifest_.preprocess->mean.size()
                               : spec.shape[1] > 0  ? spec.shape[1]
                                                    : 3);
  const std::vector<std::int64_t> shape{
      static_cast<std::int64_t>(batch), static_cast<std::int64_t>(channels),
      static_cast<std::int64_t>(height), static_cast<std::int64_t>(width)};
  if (!spec.fits(shape))
    throw input_error("input '" + spec.name + "' has shape " + shape_text(shape) + ", expected " +
                      manifest_.inputs.front().str());
  const std::size_t count = batch * channels * height * width;
  if (spec.dtype == "float32")
    return session.run({spec.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape, pixel_values,
                        count * sizeof(float)},
                       outputs);
  if (spec.dtype != "float16")
    throw artifact_error(name_ + ": takes " + spec.dtype + ", expected float32 or float16");
  std::vector<std::uint16_t> halves(count);
  std::transform(pixel_values, pixel_values + count, halves.begin(), to_half);
  return session.run({spec.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, shape, halves.data(),
                      count * sizeof(std::uint16_t)},
                     outputs);
}

std::shared_ptr<const Session> Model::session_with(const std::string& tensor) const {
  if (has_output(*session_, tensor)) return session_;
  if (!file_.tensors.count(tensor)) return nullptr;
  if (tensor != kFeatures) return std::make_shared<Session>(library_, path_, settings_, tensor);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!with_features_)
    with_features_ = std::make_shared<Session>(library_, path_, settings_, tensor);
  return with_features_;
}

std::vector<std::vector<float>> Model::rows(const std::vector<PixelView>& images,
                                            const Session& session,
                                            const std::string& output) const {
  if (images.empty())
    throw Failure(VIT_EXPORT_IMAGE_ERROR, "no images were given, expected at least one");
  std::vector<std::vector<float>> all;
  const std::size_t most = batch_size(session.inputs().front(), images.size());
  for (std::size_t start = 0; start < images.size();) {
    std::size_t end = std::min(start + most, images.size());
    if (takes_images_)  // one run takes images of one size
      for (std::size_t i = start + 1; i < end; ++i)
        if (images[i].height != images[start].height || images[i].width != images[start].width)
          end = i;
    const std::vector<PixelView> batch(images.begin() + static_cast<std::ptrdiff_t>(start),
                                       images.begin() + static_cast<std::ptrdiff_t>(end));
    const Output result =
        takes_images_ ? run_raw_images(batch, session, output) : run_images(batch, session, output);
    const std::size_t given = result.shape.empty() ? 0 : static_cast<std::size_t>(result.shape[0]);
    if (given < batch.size() || !result.is_float)
      throw artifact_error(name_ + ": output '" + output + "' has shape " +
                           shape_text(result.shape) + " for a batch of " +
                           std::to_string(batch.size()));
    const std::size_t length = result.values.size() / given;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const float* row = result.values.data() + i * length;
      if (!std::all_of(row, row + length, [](float value) { return std::isfinite(value); }))
        throw Failure(VIT_EXPORT_GATE_ERROR,
                      name_ + " on '" + settings_.provider +
                          "' computes NaN or infinity for image " + std::to_string(start + i),
                      "measure it on this provider: vit-export validate " + path_ + " --provider " +
                          settings_.provider);
      all.emplace_back(row, row + length);
    }
    start = end;
  }
  return all;
}

Output Model::run_images(const std::vector<PixelView>& images, const Session& session,
                         const std::string& output) const {
  const Preprocess& how = preprocess();
  const auto pixels = static_cast<std::size_t>(how.height * how.width);
  const std::size_t one = pixels * how.mean.size();
  const std::size_t size = batch_size(session.inputs().front(), images.size());
  std::vector<float> values(size * one);
  for (std::size_t i = 0; i < size; ++i) {
    float* to = values.data() + i * one;
    if (i < images.size())
      normalize(resize_and_crop(images[i], how).samples.data(), pixels, how, to);
    else  // unlike zeros, repeated rows leave the activation range of dynamic INT8 as it is
      std::memcpy(to, to - images.size() * one, one * sizeof(float));
  }
  return std::move(run_pixels(session, values.data(), size, static_cast<std::size_t>(how.height),
                              static_cast<std::size_t>(how.width), {output})
                       .front());
}

Output Model::run_raw_images(const std::vector<PixelView>& images, const Session& session,
                             const std::string& output) const {
  const TensorSpec& spec = session.inputs().front();
  const std::size_t size = batch_size(spec, images.size());
  std::vector<std::uint8_t> samples;
  for (std::size_t i = 0; i < size; ++i) {
    const PixelView& image = images[i % images.size()];
    check_image(image);
    const Pixels converted = convert_color(image, preprocess().color);
    samples.insert(samples.end(), converted.samples.begin(), converted.samples.end());
  }
  const std::vector<std::int64_t> shape{
      static_cast<std::int64_t>(size), images[0].height, images[0].width,
      static_cast<std::int64_t>(samples.size()) /
          (static_cast<std::int64_t>(size) * images[0].height * images[0].width)};
  if (!spec.fits(shape))
    throw input_error("input '" + spec.name + "' has shape " + shape_text(shape) + ", expected " +
                      manifest_.inputs.front().str());
  return std::move(session
                       .run({spec.name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, shape, samples.data(),
                             samples.size()},
                            {output})
                       .front());
}

Selftest Model::selftest(const std::string& golden) const {
  std::string path = golden;
  if (path.empty()) {
    const std::size_t dot = path_.rfind('.'), slash = path_.rfind('/');
    const bool has_suffix = dot != std::string::npos && (slash == std::string::npos || dot > slash);
    path = (has_suffix ? path_.substr(0, dot) : path_) + ".golden.npz";
  }
  return measure(*this, read_golden(FileBytes(path, "golden file"), path));
}

}  // namespace vit_export
