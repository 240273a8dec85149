// The table of the C interface: checks arguments, and turns exceptions into statuses.
#include <vit_export/vit_export.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpus.h"
#include "failure.h"
#include "model.h"
#include "prepare.h"
#include "utf8.h"

struct vit_export_status {
  vit_export_code code;
  std::string message;
  std::string hint;
};

struct vit_export_predictions {
  std::vector<std::vector<vit_export::Prediction>> images;
  std::vector<std::vector<vit_export_prediction>> views;
};

struct vit_export_outputs {
  std::vector<vit_export::Output> outputs;
};

struct vit_export_selftest_result {
  vit_export::Selftest result;
  std::string provider;
  std::vector<vit_export_measurement> measurements;
};

namespace {

using vit_export::Failure;
using vit_export::Output;

constexpr std::int32_t kMostThreads = 256;

// Memory is exhausted where even a status cannot be made; it is never released.
vit_export_status& exhausted() {
  static vit_export_status status{VIT_EXPORT_MEMORY_ERROR, "out of memory", ""};  // short: no heap
  return status;
}

vit_export_status* failed(vit_export_code code, const char* message, const char* hint) noexcept {
  try {
    return new vit_export_status{code, vit_export::valid_utf8(message),
                                 vit_export::valid_utf8(hint)};
  } catch (...) {
    return &exhausted();
  }
}

// Calls a function; what it throws becomes a status.
template <typename Function>
vit_export_status* guarded(Function function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const Failure& failure) {
    return failed(failure.code, failure.message.c_str(), failure.hint.c_str());
  } catch (const std::bad_alloc&) {
    return &exhausted();
  } catch (const std::exception& error) {
    return failed(VIT_EXPORT_INTERNAL_ERROR, error.what(), "");
  } catch (...) {
    return failed(VIT_EXPORT_INTERNAL_ERROR, "an unknown exception", "");
  }
}

Failure usage_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_USAGE_ERROR, std::move(message), std::move(hint)};
}

template <typename T>
T& required(T* pointer, const char* name) {
  if (!pointer) throw usage_error(std::string(name) + " is a null pointer");
  return *pointer;
}

// Copies a struct of the caller, who may know an earlier version of it: the rest is zero.
template <typename Struct>
Struct read_struct(const Struct* from, const char* name) {
  const std::size_t size = required(from, name).struct_size;
  if (size < sizeof(size) || size > 4096)
    throw usage_error(std::string(name) + ".struct_size is " + std::to_string(size) +
                      ", expected sizeof of the struct");
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = sizeof(Struct); i < size; ++i)
    if (bytes[i])
      throw usage_error(std::string(name) +
                        " sets a field that this library does not know: it is "
                        "older than its headers");
  Struct made{};
  std::memcpy(&made, from, std::min(size, sizeof(Struct)));
  return made;
}

// Writes a struct to a caller, who may know an earlier version of it.
template <typename Struct>
void write_struct(const Struct& from, Struct* to, const char* name) {
  const std::size_t size = required(to, name).struct_size;
  if (size < sizeof(size))
    throw usage_error(std::string(name) + ".struct_size is " + std::to_string(size) +
                      ", expected sizeof of the struct");
  std::memcpy(to, &from, std::min(size, sizeof(Struct)));
  to->struct_size = size;
}

std::vector<vit_export::PixelView> views(const vit_export_image* images, std::size_t count) {
  std::vector<vit_export::PixelView> all;
  if (count) required(images, "images");
  for (std::size_t i = 0; i < count; ++i) {
    const vit_export_image& image = images[i];
    if (image.channels > vit_export::kMostChannels)  // so that the product below fits
      throw Failure(VIT_EXPORT_IMAGE_ERROR, "an image has " + std::to_string(image.channels) +
                                                " channels, expected 1 to " +
                                                std::to_string(vit_export::kMostChannels));
    const auto row = static_cast<std::int64_t>(image.width) * image.channels;
    constexpr auto kMost = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());
    if (image.stride > kMost * 4)
      throw Failure(VIT_EXPORT_IMAGE_ERROR,
                    "an image has a stride of " + std::to_string(image.stride) + " bytes");
    all.push_back({image.pixels, image.height, image.width, image.channels,
                   image.stride ? static_cast<std::int64_t>(image.stride) : row});
  }
  return all;
}

std::string text(const char* given) { return given ? given : ""; }

double or_nan(const std::optional<double>& value) {
  return value.value_or(std::numeric_limits<double>::quiet_NaN());
}

vit_export::ModelOptions model_options(const vit_export_options& given) {
  vit_export::ModelOptions made;
  if (given.threads < 0 || given.threads > kMostThreads)
    throw usage_error("threads=" + std::to_string(given.threads) + ": expected 0 to " +
                      std::to_string(kMostThreads));
  if (given.device < 0)
    throw usage_error("device=" + std::to_string(given.device) + ": expected 0 or more");
  if (given.provider) made.session.provider = given.provider;
  made.session.device = given.device;
  made.session.threads =
      given.threads ? given.threads : std::min(vit_export::usable_cpus(), kMostThreads);
  made.session.cpu_fallback = given.cpu_fallback != 0;
  for (std::size_t i = 0; i < given.provider_option_count; ++i) {
    const char* const name = (&required(given.provider_option_names, "provider_option_names"))[i];
    const char* const value =
        (&required(given.provider_option_values, "provider_option_values"))[i];
    made.session.provider_options[&required(name, "the name of a provider option")] =
        &required(value, "the value of a provider option");
  }
  made.library = text(given.library);
  return made;
}

}  // namespace

// A model, and what the C structs point to.
struct vit_export_model {
  vit_export_model(const char* path, const vit_export::ModelOptions& options)
      : model(path, options) {
    const vit_export::Manifest& manifest = model.manifest();
    if (manifest.preprocess) {
      const vit_export::Preprocess& p = *manifest.preprocess;
      preprocess = {sizeof preprocess,
                    static_cast<std::uint32_t>(p.height),
                    static_cast<std::uint32_t>(p.width),
                    p.crop_pct,
                    p.interpolation.c_str(),
                    p.crop_mode.c_str(),
                    p.color.c_str(),
                    p.mean.data(),
                    p.std.data(),
                    static_cast<std::uint32_t>(p.mean.size())};
    }
    for (const std::string& label : manifest.labels) labels.push_back(label.c_str());
    add_specs(manifest.inputs, inputs);
    add_specs(manifest.outputs, outputs);
  }

  vit_export::Model model;
  vit_export_preprocess preprocess{};
  std::vector<const char*> labels;
  std::vector<vit_export_tensor_spec> inputs, outputs;

 private:
  void add_specs(const std::vector<vit_export::TensorSpec>& specs,
                 std::vector<vit_export_tensor_spec>& views) {
    for (const vit_export::TensorSpec& spec : specs) {
      auto names = std::make_unique<std::vector<const char*>>();
      for (const std::string& name : spec.dimensions) names->push_back(name.c_str());
      views.push_back({spec.name.c_str(), spec.dtype.c_str(), spec.shape.data(), names->data(),
                       spec.shape.size()});
      dimensions_.push_back(std::move(names));
    }
  }

  std::vector<std::unique_ptr<std::vector<const char*>>> dimensions_;
};

namespace {

vit_export_code status_code(const vit_export_status* status) {
  return status ? status->code : VIT_EXPORT_OK;
}
const char* status_message(const vit_export_status* status) {
  return status ? status->message.c_str() : "";
}
const char* status_hint(const vit_export_status* status) {
  return status ? status->hint.c_str() : "";
}
void release_status(vit_export_status* status) {
  if (status != &exhausted()) delete status;
}

vit_export_status* create_model(const char* path, const vit_export_options* options,
                                vit_export_model** model) {
  return guarded([&] {
    required(model, "model") = nullptr;
    if (!required(path, "path")) throw usage_error("path is empty, expected an .onnx file");
    const vit_export_options settings =
        options ? read_struct(options, "options") : vit_export_options{};
    auto made = std::make_unique<vit_export_model>(path, model_options(settings));
    if (settings.selftest) {
      const vit_export::Selftest result = made->model.selftest("");
      if (!result.passed)
        throw Failure(VIT_EXPORT_GATE_ERROR, made->model.name() + ": " + result.reason);
    }
    *model = made.release();
  });
}

void release_model(vit_export_model* model) { delete model; }

vit_export_status* get_manifest(const vit_export_model* model, vit_export_manifest* manifest) {
  return guarded([&] {
    const vit_export_model& owner = required(model, "model");
    const vit_export::Manifest& m = owner.model.manifest();
    vit_export_manifest made{};
    made.json = m.json.c_str();
    made.variant = m.variant.c_str();
    made.precision = m.precision.c_str();
    made.activation = m.activation.c_str();
    made.graph_sha256 = m.graph_sha256.c_str();
    made.schema_version = m.schema_version;
    made.opset = m.opset;
    made.passed = m.passed ? *m.passed : -1;
    made.preprocess = m.preprocess ? &owner.preprocess : nullptr;
    made.inputs = owner.inputs.data();
    made.input_count = owner.inputs.size();
    made.outputs = owner.outputs.data();
    made.output_count = owner.outputs.size();
    made.labels = owner.labels.data();
    made.label_count = owner.labels.size();
    write_struct(made, manifest, "manifest");
  });
}

vit_export_status* get_runtime(const vit_export_model* model, vit_export_runtime* runtime) {
  return guarded([&] {
    const vit_export::Model& m = required(model, "model").model;
    vit_export_runtime made{};
    made.provider = m.settings().provider.c_str();
    made.library = m.library().path.c_str();
    made.version = m.library().version.c_str();
    made.api_version = m.library().api_version;
    made.threads = m.settings().threads;
    write_struct(made, runtime, "runtime");
  });
}

vit_export_status* classify(const vit_export_model* model, const vit_export_image* images,
                            std::size_t count, std::int32_t top,
                            vit_export_predictions** predictions) {
  return guarded([&] {
    required(predictions, "predictions") = nullptr;
    auto made = std::make_unique<vit_export_predictions>();
    made->images = required(model, "model").model.classify(views(images, count), top);
    for (const auto& classes : made->images) {
      std::vector<vit_export_prediction>& view = made->views.emplace_back();
      for (const vit_export::Prediction& one : classes)
        view.push_back({one.index, one.score, one.label.c_str()});
    }
    *predictions = made.release();
  });
}

vit_export_status* get_predictions(const vit_export_predictions* predictions, std::size_t image,
                                   const vit_export_prediction** classes, std::size_t* count) {
  return guarded([&] {
    const auto& all = required(predictions, "predictions").views;
    if (image >= all.size())
      throw usage_error("there is no image " + std::to_string(image) + " of " +
                        std::to_string(all.size()));
    required(classes, "classes") = all[image].data();
    required(count, "count") = all[image].size();
  });
}

void release_predictions(vit_export_predictions* predictions) { delete predictions; }

vit_export_status* embed(const vit_export_model* model, const vit_export_image* images,
                         std::size_t count, std::int32_t normalize, vit_export_outputs** outputs) {
  return guarded([&] {
    required(outputs, "outputs") = nullptr;
    auto made = std::make_unique<vit_export_outputs>();
    made->outputs.push_back(
        required(model, "model").model.embed(views(images, count), normalize != 0));
    *outputs = made.release();
  });
}

vit_export_status* run(const vit_export_model* model, const float* pixel_values, std::size_t batch,
                       std::uint32_t height, std::uint32_t width, vit_export_outputs** outputs) {
  return guarded([&] {
    required(outputs, "outputs") = nullptr;
    auto made = std::make_unique<vit_export_outputs>();
    made->outputs = required(model, "model").model.run(pixel_values, batch, height, width);
    *outputs = made.release();
  });
}

vit_export_status* prepare(const vit_export_preprocess* preprocess, const vit_export_image* images,
                           std::size_t count, vit_export_outputs** outputs) {
  return guarded([&] {
    required(outputs, "outputs") = nullptr;
    const vit_export_preprocess how = read_struct(preprocess, "preprocess");
    if (how.channels) {
      required(how.mean, "preprocess.mean");
      required(how.std, "preprocess.std");
    }
    const vit_export::Preprocess checked{
        how.height,
        how.width,
        how.crop_pct,
        text(how.interpolation),
        text(how.crop_mode),
        text(how.color),
        {how.mean, how.mean + how.channels},
        {how.std, how.std + how.channels},
    };
    try {
      vit_export::check_preprocess(checked);
    } catch (const std::runtime_error& error) {
      throw usage_error(error.what());
    }
    if (count == 0)
      throw Failure(VIT_EXPORT_IMAGE_ERROR, "no images were given, expected at least one");
    auto made = std::make_unique<vit_export_outputs>();
    Output& values = made->outputs.emplace_back();
    values.name = "pixel_values";
    values.shape = {static_cast<std::int64_t>(count), static_cast<std::int64_t>(how.channels),
                    checked.height, checked.width};
    const auto pixels = static_cast<std::size_t>(checked.height * checked.width);
    for (const vit_export::PixelView& image : views(images, count)) {
      const vit_export::Pixels prepared = vit_export::resize_and_crop(image, checked);
      const std::size_t start = values.values.size();
      values.values.resize(start + pixels * how.channels);
      vit_export::normalize(prepared.samples.data(), pixels, checked, values.values.data() + start);
    }
    *outputs = made.release();
  });
}

vit_export_status* get_output(const vit_export_outputs* outputs, std::size_t index,
                              vit_export_tensor* tensor) {
  return guarded([&] {
    const auto& all = required(outputs, "outputs").outputs;
    if (index >= all.size())
      throw usage_error("there is no output " + std::to_string(index) + " of " +
                        std::to_string(all.size()));
    const Output& output = all[index];
    const void* data = output.is_float ? static_cast<const void*>(output.values.data())
                                       : static_cast<const void*>(output.integers.data());
    required(tensor, "tensor") = {output.name.c_str(),
                                  output.shape.data(),
                                  output.shape.size(),
                                  output.is_float ? output.values.size() : output.integers.size(),
                                  output.is_float ? VIT_EXPORT_FLOAT32 : VIT_EXPORT_INT64,
                                  data};
  });
}

std::size_t count_outputs(const vit_export_outputs* outputs) {
  return outputs ? outputs->outputs.size() : 0;
}

void release_outputs(vit_export_outputs* outputs) { delete outputs; }

vit_export_status* selftest(const vit_export_model* model, const char* golden,
                            vit_export_selftest_result** result) {
  return guarded([&] {
    required(result, "result") = nullptr;
    const vit_export::Model& m = required(model, "model").model;
    auto made = std::make_unique<vit_export_selftest_result>();
    made->result = m.selftest(text(golden));
    made->provider = m.settings().provider;
    for (const vit_export::Measurement& one : made->result.measurements)
      made->measurements.push_back({one.output.c_str(), one.batch, one.max_abs,
                                    or_nan(one.tolerance), one.cosine, one.passed});
    *result = made.release();
  });
}

vit_export_status* get_selftest(const vit_export_selftest_result* result,
                                vit_export_selftest* selftest) {
  return guarded([&] {
    const vit_export_selftest_result& from = required(result, "result");
    vit_export_selftest made{};
    made.passed = from.result.passed;
    made.reason = from.result.reason.c_str();
    made.notes = from.result.notes.c_str();
    made.provider = from.provider.c_str();
    made.output = from.result.output.c_str();
    made.max_abs = from.result.max_abs;
    made.tolerance = or_nan(from.result.tolerance);
    made.baseline = or_nan(from.result.baseline);
    made.cosine = from.result.cosine;
    made.row_max_abs = from.result.row_max_abs;
    made.samples = from.result.samples;
    made.measurements = from.measurements.data();
    made.measurement_count = from.measurements.size();
    write_struct(made, selftest, "selftest");
  });
}

void release_selftest(vit_export_selftest_result* result) { delete result; }

constexpr vit_export_api kApi = {
    VIT_EXPORT_API_VERSION,
    VIT_EXPORT_LIBRARY_VERSION,
    status_code,
    status_message,
    status_hint,
    release_status,
    create_model,
    release_model,
    get_manifest,
    get_runtime,
    classify,
    get_predictions,
    release_predictions,
    embed,
    run,
    prepare,
    get_output,
    count_outputs,
    release_outputs,
    selftest,
    get_selftest,
    release_selftest,
};

}  // namespace

extern "C" const vit_export_api* vit_export_get_api(uint32_t version) {
  return version >= 1 && version <= VIT_EXPORT_API_VERSION ? &kApi : nullptr;
}
