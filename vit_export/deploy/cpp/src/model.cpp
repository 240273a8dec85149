#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "failure.h"
#include "number_text.h"
#include "providers.h"

namespace vit_export {

namespace {

constexpr double kMostRange = 16;  // of a normalised image's range
constexpr const char* kCopyAgain = "copy the file again, or export the model again";
constexpr const char* kLogits = "logits";
constexpr const char* kFeatures = "features";

Failure input_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_INPUT_ERROR, std::move(message), std::move(hint)};
}

OnnxFile read_file(const std::string& path) {
  const FileBytes bytes(path, "file");
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

// The settings for one file; throws Failure where its provider cannot run such a file.
SessionSettings settings_for(SessionSettings settings, const Manifest& manifest,
                             const std::string& name) {
  settings.provider = short_provider_name(settings.provider);
  settings.precision = manifest.precision;
  check_options(settings);
  if (settings.provider == "tensorrt" && manifest.embedded())
    throw Failure(VIT_EXPORT_PROVIDER_ERROR,
                  name +
                      ": prepares images of any size itself, and provider 'tensorrt' builds an " +
                      "engine for one range of sizes",
                  "export the model with --preprocess none, or use provider cuda");
  return settings;
}

bool has_output(const Session& session, const std::string& name) {
  const auto& specs = session.outputs();
  return std::any_of(specs.begin(), specs.end(),
                     [&](const TensorSpec& spec) { return spec.name == name; });
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
      settings_(settings_for(options.session, manifest_, name_)),
      session_(std::make_shared<Session>(library_, path, settings_)),
      feed_(manifest_, name_, largest_batch(settings_.provider)) {
  check_session();
}

void Model::check_session() const {
  const auto& inputs = session_->inputs();
  if (inputs.size() != 1)
    throw artifact_error(name_ + ": takes " + std::to_string(inputs.size()) +
                         " inputs, and this library runs models of one");
  const TensorSpec &given = inputs.front(), &promised = manifest_.inputs.front();
  const bool is_image = given.shape.size() == 4;
  if (given.name != promised.name || given.dtype != promised.dtype ||
      given.shape != promised.shape || !is_image)
    throw artifact_error(
        name_ + ": its graph takes " + given.str() + ", and its manifest says " + promised.str(),
        is_image ? kCopyAgain : "");
  if (const auto& how = manifest_.preprocess; how && !manifest_.embedded()) {
    const auto channels = static_cast<std::int64_t>(how->mean.size());
    if (!promised.fits({1, channels, how->height, how->width}, 1))
      throw artifact_error(name_ + ": its manifest prepares images of " + std::to_string(channels) +
                               "x" + std::to_string(how->height) + "x" +
                               std::to_string(how->width) + ", and its graph takes " +
                               promised.str(),
                           kCopyAgain);
  }
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
  for (const std::vector<float>& row : rows(*session_, images, kLogits))
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
  for (std::vector<float>& row : rows(*session, images, kFeatures)) {
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
  const TensorSpec& spec = manifest_.inputs.front();
  if (feed_.takes_whole_images())
    throw input_error(name_ + ": takes uint8 images (" + spec.str() + "), not pixel_values",
                      "call classify or embed");
  if (!pixel_values) throw input_error("input '" + spec.name + "' is a null pointer");
  const Preprocess* preprocess = manifest_.preprocess ? &*manifest_.preprocess : nullptr;
  if (preprocess && height == 0) height = static_cast<std::size_t>(preprocess->height);
  if (preprocess && width == 0) width = static_cast<std::size_t>(preprocess->width);
  const std::size_t channels =
      preprocess ? preprocess->mean.size()
                 : static_cast<std::size_t>(std::max<std::int64_t>(spec.shape[1], 1));
  constexpr std::size_t kMost = std::size_t{1} << 40;
  const auto sizes = {batch, channels, height, width};
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
  return feed_.run_pixel_values(*session_, pixel_values, batch, height, width, outputs);
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

std::vector<std::vector<float>> Model::rows(const Session& session,
                                            const std::vector<PixelView>& images,
                                            const std::string& output) const {
  auto all = feed_.rows(session, images, output);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (!std::all_of(all[i].begin(), all[i].end(), [](float x) { return std::isfinite(x); }))
      throw Failure(VIT_EXPORT_GATE_ERROR,
                    name_ + " on '" + settings_.provider + "' computes NaN or infinity for image " +
                        std::to_string(i),
                    "measure it on this provider: vit-export validate " + path_ + " --provider " +
                        settings_.provider);
  return all;
}

Selftest Model::selftest(const std::string& golden) const {
  std::string path = golden;
  if (path.empty()) {
    const std::size_t dot = path_.rfind('.'), slash = path_.rfind('/');
    const bool has_suffix = dot != std::string::npos && (slash == std::string::npos || dot > slash);
    path = (has_suffix ? path_.substr(0, dot) : path_) + ".golden.npz";
    if (::access(path.c_str(), F_OK) != 0)
      throw artifact_error(path_ + ": there is no golden file " + path.substr(path.rfind('/') + 1) +
                               " beside it, so it cannot be measured",
                           "copy the golden file that was written beside the model");
  }
  return measure(*this, read_golden(FileBytes(path, "golden file"), path));
}

}  // namespace vit_export
