// The C++ interface of vit-export: a header-only layer on vit_export.h, C++17.
//
//     vit::Model model("b16.onnx");
//     for (const vit::Prediction& p : model.classify(rgb, width, height, /*top=*/5))
//       std::cout << p.label << ' ' << p.score << '\n';
//
// Every call throws vit::Error where it fails. Threads: classify, embed, run and selftest may be
// called on one Model by any number of threads at the same time; creation, assignment and
// destruction may not run beside another use of the same Model.
#ifndef VIT_EXPORT_HPP
#define VIT_EXPORT_HPP

#include <vit_export/vit_export.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace vit {

// Kinds of errors, as the classes of Python's vit_export.errors.
enum class ErrorCode {
  usage = VIT_EXPORT_USAGE_ERROR,
  artifact = VIT_EXPORT_ARTIFACT_ERROR,
  gate = VIT_EXPORT_GATE_ERROR,
  provider = VIT_EXPORT_PROVIDER_ERROR,
  input = VIT_EXPORT_INPUT_ERROR,
  image = VIT_EXPORT_IMAGE_ERROR,
  memory = VIT_EXPORT_MEMORY_ERROR,
  internal = VIT_EXPORT_INTERNAL_ERROR
};

// What went wrong; what() is the message, with the hint on a line of its own.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::string hint = {})
      : std::runtime_error(hint.empty() ? message : message + "\nhint: " + hint),
        code_(code),
        message_(message),
        hint_(std::move(hint)) {}

  ErrorCode code() const noexcept { return code_; }
  const std::string& message() const noexcept { return message_; }
  const std::string& hint() const noexcept { return hint_; }  // what to do; may be empty

 private:
  ErrorCode code_;
  std::string message_;
  std::string hint_;
};

struct Options {
  std::string provider = "cpu";  // or "cuda", "tensorrt", or a name of ONNX Runtime's
  int threads = 0;               // CPU threads of one run; 0: all CPUs that this process may use
  int device = 0;                // number of the GPU, for a provider that counts them
  bool selftest = false;         // measure the golden file first, and throw where it differs
  bool cpu_fallback = false;     // nodes that the provider cannot run may run on the CPU
  std::string library;           // ONNX Runtime's library; empty: ONNXRUNTIME_LIBRARY, or found
  std::map<std::string, std::string> provider_options;  // in ONNX Runtime's spelling
};

// One image: 8-bit samples row after row. The pixels are not copied.
struct Image {
  const std::uint8_t* pixels = nullptr;
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::size_t stride = 0;      // bytes from one row to the next; 0 for rows without a gap
  std::uint32_t channels = 3;  // 1: grey; 4: RGB with alpha, which is ignored
};

struct Prediction {
  std::int64_t index = 0;
  std::string label;
  double score = 0;  // a probability; the model's own output where the activation is "none"
};

// An output. Floating point outputs are in `values`, integer ones in `integers`.
struct Tensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
  std::vector<std::int64_t> integers;
};

// Outputs by name.
class Outputs {
 public:
  explicit Outputs(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {}

  const Tensor& operator[](const std::string& name) const& {
    std::string known;
    for (const Tensor& tensor : tensors_) {
      if (tensor.name == name) return tensor;
      known += (known.empty() ? "" : ", ") + tensor.name;
    }
    throw Error(ErrorCode::usage, "unknown output '" + name + "' (known: " + known + ")");
  }
  // Of a temporary, e.g. model.run(...)["logits"]: a copy, which does not end with it.
  Tensor operator[](const std::string& name) && { return std::as_const(*this)[name]; }
  bool contains(const std::string& name) const {
    for (const Tensor& tensor : tensors_)
      if (tensor.name == name) return true;
    return false;
  }
  std::size_t size() const noexcept { return tensors_.size(); }
  auto begin() const noexcept { return tensors_.begin(); }
  auto end() const noexcept { return tensors_.end(); }

 private:
  std::vector<Tensor> tensors_;
};

struct TensorSpec {
  std::string name;
  std::string dtype;                    // numpy's name
  std::vector<std::int64_t> shape;      // -1 for a dynamic dimension
  std::vector<std::string> dimensions;  // names of dynamic dimensions; "" for the others
};

// How an image becomes `pixel_values`.
struct Preprocess {
  std::uint32_t height = 224;
  std::uint32_t width = 224;
  double crop_pct = 0.9;
  std::string interpolation = "bicubic";
  std::string crop_mode = "center";
  std::string color = "RGB";
  std::vector<double> mean{0.5, 0.5, 0.5};
  std::vector<double> std{0.5, 0.5, 0.5};
};

struct Manifest {
  std::string json;  // all of it, as stored
  std::string variant;
  std::string precision;
  std::string activation;
  std::string graph_sha256;
  int schema_version = 0;
  int opset = 0;
  std::optional<bool> passed;            // the gate's verdict; empty where it was not measured
  std::optional<Preprocess> preprocess;  // empty where the inputs are not images
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<std::string> labels;
};

// What really runs a model.
struct Runtime {
  std::string provider;
  std::string library;
  std::string version;
  int api_version = 0;
  int threads = 0;
};

struct Measurement {
  std::string output;
  std::int64_t batch = 0;
  double max_abs = 0;
  std::optional<double> tolerance;  // empty where the cosine decides
  double cosine = 0;
  bool passed = false;
};

// Result of comparing a model with its golden file on this machine.
struct Selftest {
  bool passed = false;
  std::string reason;  // why it did not pass
  std::string notes;   // what could not be measured
  std::string provider;
  std::string output;  // the output that the figures are of: the logits, where there are
  double max_abs = 0;
  std::optional<double> tolerance;  // empty where the cosine decides
  std::optional<double> baseline;   // distance of torch's own arithmetic
  double cosine = 0;
  double row_max_abs = 0;
  std::int64_t samples = 0;
  std::vector<Measurement> batches;  // every output at every batch size

  explicit operator bool() const noexcept { return passed; }
};

namespace detail {

inline const vit_export_api& api() {
  static const vit_export_api* const table = vit_export_get_api(VIT_EXPORT_API_VERSION);
  if (table == nullptr)
    throw Error(ErrorCode::usage, "the vit-export library is older than its headers");
  return *table;
}

inline void check(vit_export_status* status) {
  if (status == nullptr) return;
  const vit_export_api& a = api();
  const std::unique_ptr<vit_export_status, void (*)(vit_export_status*)> owned(status,
                                                                               a.release_status);
  throw Error(static_cast<ErrorCode>(a.status_code(status)), a.status_message(status),
              a.status_hint(status));
}

// Makes a struct with its `struct_size` set and all else zero.
template <typename Struct>
Struct sized() {
  Struct made{};
  made.struct_size = sizeof(Struct);
  return made;
}

inline std::optional<double> number(double value) {
  return value == value ? std::optional<double>(value) : std::nullopt;  // NaN: none
}

inline vit_export_image image(const Image& image) {
  return {image.pixels, image.width, image.height, image.channels, image.stride};
}

inline std::vector<vit_export_image> images(const std::vector<Image>& given) {
  std::vector<vit_export_image> all;
  all.reserve(given.size());
  for (const Image& one : given) all.push_back(image(one));
  return all;
}

inline std::uint32_t side(int pixels) {
  if (pixels < 1)
    throw Error(ErrorCode::image, "an image has a side of " + std::to_string(pixels) +
                                      " pixels, expected at least 1");
  return static_cast<std::uint32_t>(pixels);
}

inline std::vector<TensorSpec> specs(const vit_export_tensor_spec* given, std::size_t count) {
  std::vector<TensorSpec> all;
  for (std::size_t i = 0; i < count; ++i) {
    const vit_export_tensor_spec& spec = given[i];
    all.push_back({spec.name,
                   spec.dtype,
                   {spec.shape, spec.shape + spec.rank},
                   {spec.dimensions, spec.dimensions + spec.rank}});
  }
  return all;
}

inline Manifest manifest(const vit_export_model* model) {
  auto raw = sized<vit_export_manifest>();
  check(api().get_manifest(model, &raw));
  Manifest made;
  made.json = raw.json;
  made.variant = raw.variant;
  made.precision = raw.precision;
  made.activation = raw.activation;
  made.graph_sha256 = raw.graph_sha256;
  made.schema_version = raw.schema_version;
  made.opset = raw.opset;
  if (raw.passed >= 0) made.passed = raw.passed == 1;
  if (const vit_export_preprocess* p = raw.preprocess)
    made.preprocess = Preprocess{p->height,
                                 p->width,
                                 p->crop_pct,
                                 p->interpolation,
                                 p->crop_mode,
                                 p->color,
                                 {p->mean, p->mean + p->channels},
                                 {p->std, p->std + p->channels}};
  made.inputs = specs(raw.inputs, raw.input_count);
  made.outputs = specs(raw.outputs, raw.output_count);
  made.labels.assign(raw.labels, raw.labels + raw.label_count);
  return made;
}

inline Outputs outputs(vit_export_outputs* result) {
  const vit_export_api& a = api();
  const std::unique_ptr<vit_export_outputs, void (*)(vit_export_outputs*)> owned(result,
                                                                                 a.release_outputs);
  std::vector<Tensor> tensors(a.count_outputs(result));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    vit_export_tensor raw{};
    check(a.get_output(result, i, &raw));
    tensors[i].name = raw.name;
    tensors[i].shape.assign(raw.shape, raw.shape + raw.rank);
    if (raw.dtype == VIT_EXPORT_FLOAT32) {
      const auto* data = static_cast<const float*>(raw.data);
      tensors[i].values.assign(data, data + raw.count);
    } else {
      const auto* data = static_cast<const std::int64_t*>(raw.data);
      tensors[i].integers.assign(data, data + raw.count);
    }
  }
  return Outputs(std::move(tensors));
}

inline Selftest selftest(vit_export_selftest_result* result) {
  const vit_export_api& a = api();
  const std::unique_ptr<vit_export_selftest_result, void (*)(vit_export_selftest_result*)> owned(
      result, a.release_selftest);
  auto raw = sized<vit_export_selftest>();
  check(a.get_selftest(result, &raw));
  Selftest made;
  made.passed = raw.passed != 0;
  made.reason = raw.reason;
  made.notes = raw.notes;
  made.provider = raw.provider;
  made.output = raw.output;
  made.max_abs = raw.max_abs;
  made.tolerance = number(raw.tolerance);
  made.baseline = number(raw.baseline);
  made.cosine = raw.cosine;
  made.row_max_abs = raw.row_max_abs;
  made.samples = raw.samples;
  for (std::size_t i = 0; i < raw.measurement_count; ++i) {
    const vit_export_measurement& m = raw.measurements[i];
    made.batches.push_back(
        {m.output, m.batch, m.max_abs, number(m.tolerance), m.cosine, m.passed != 0});
  }
  return made;
}

}  // namespace detail

// Prepares images as Python's vit_export.images does, to the bit: float32 (B, C, H, W).
inline Tensor prepare(const std::vector<Image>& images, const Preprocess& preprocess) {
  if (preprocess.mean.size() != preprocess.std.size())
    throw Error(ErrorCode::usage, "mean and std have different numbers of channels");
  auto raw = detail::sized<vit_export_preprocess>();
  raw.height = preprocess.height;
  raw.width = preprocess.width;
  raw.crop_pct = preprocess.crop_pct;
  raw.interpolation = preprocess.interpolation.c_str();
  raw.crop_mode = preprocess.crop_mode.c_str();
  raw.color = preprocess.color.c_str();
  raw.mean = preprocess.mean.data();
  raw.std = preprocess.std.data();
  raw.channels = static_cast<std::uint32_t>(preprocess.mean.size());
  const auto given = detail::images(images);
  vit_export_outputs* result = nullptr;
  detail::check(detail::api().prepare(&raw, given.data(), given.size(), &result));
  return detail::outputs(result)["pixel_values"];
}

// An ONNX file of vit-export, loaded and ready to run.
class Model {
 public:
  explicit Model(const std::string& path, const Options& options = {})
      : model_(create(path, options)), manifest_(detail::manifest(model_.get())) {
    auto raw = detail::sized<vit_export_runtime>();
    detail::check(detail::api().get_runtime(model_.get(), &raw));
    runtime_ = {raw.provider, raw.library, raw.version, raw.api_version, raw.threads};
  }

  // Classifies one image of RGB rows; returns up to `top` classes, best first.
  std::vector<Prediction> classify(const std::uint8_t* rgb, int width, int height, int top = 5,
                                   std::size_t stride = 0) const {
    const Image image{rgb, detail::side(width), detail::side(height), stride, 3};
    return std::move(classify(std::vector<Image>{image}, top).front());
  }

  // Classifies images of any sizes.
  std::vector<std::vector<Prediction>> classify(const std::vector<Image>& images,
                                                int top = 5) const {
    const vit_export_api& a = detail::api();
    const auto given = detail::images(images);
    vit_export_predictions* result = nullptr;
    detail::check(a.classify(model_.get(), given.data(), given.size(), top, &result));
    const std::unique_ptr<vit_export_predictions, void (*)(vit_export_predictions*)> owned(
        result, a.release_predictions);
    std::vector<std::vector<Prediction>> all(images.size());
    for (std::size_t i = 0; i < images.size(); ++i) {
      const vit_export_prediction* classes = nullptr;
      std::size_t count = 0;
      detail::check(a.get_predictions(result, i, &classes, &count));
      for (std::size_t k = 0; k < count; ++k)
        all[i].push_back({classes[k].index, classes[k].label, classes[k].score});
    }
    return all;
  }

  // Computes the features of one image: what the head reads.
  std::vector<float> embed(const std::uint8_t* rgb, int width, int height, bool normalize = false,
                           std::size_t stride = 0) const {
    const Image image{rgb, detail::side(width), detail::side(height), stride, 3};
    return std::move(embed(std::vector<Image>{image}, normalize).front());
  }

  // Computes the features of images of any sizes, one row each.
  std::vector<std::vector<float>> embed(const std::vector<Image>& images,
                                        bool normalize = false) const {
    const auto given = detail::images(images);
    vit_export_outputs* result = nullptr;
    detail::check(
        detail::api().embed(model_.get(), given.data(), given.size(), normalize ? 1 : 0, &result));
    const Outputs outputs = detail::outputs(result);
    const std::vector<float>& values = outputs["features"].values;
    const std::size_t length = images.empty() ? 0 : values.size() / images.size();
    std::vector<std::vector<float>> rows;
    for (std::size_t i = 0; i < images.size(); ++i) {
      const auto row = values.begin() + static_cast<std::ptrdiff_t>(i * length);
      rows.emplace_back(row, row + static_cast<std::ptrdiff_t>(length));
    }
    return rows;
  }

  // Runs normalised images, float32 (B, C, H, W); a model of dynamic size needs height and width.
  Outputs run(const float* pixel_values, std::size_t batch, std::uint32_t height = 0,
              std::uint32_t width = 0) const {
    vit_export_outputs* result = nullptr;
    detail::check(detail::api().run(model_.get(), pixel_values, batch, height, width, &result));
    return detail::outputs(result);
  }
  Outputs run(const std::vector<float>& pixel_values, std::size_t batch) const {
    const std::size_t expected = batch * pixels_of_one_image();
    if (pixel_values.size() != expected)
      throw Error(ErrorCode::input, "pixel_values holds " + std::to_string(pixel_values.size()) +
                                        " values, expected " + std::to_string(expected) +
                                        " for a batch of " + std::to_string(batch));
    return run(pixel_values.data(), batch);
  }

  // Prepares images for this model: float32 (B, C, H, W).
  Tensor prepare(const std::vector<Image>& images) const {
    return vit::prepare(images, preprocess());
  }

  // Compares the model with its golden file; by default with the one beside the model.
  Selftest selftest(const std::string& golden = {}) const {
    vit_export_selftest_result* result = nullptr;
    detail::check(
        detail::api().selftest(model_.get(), golden.empty() ? nullptr : golden.c_str(), &result));
    return detail::selftest(result);
  }

  const Manifest& manifest() const noexcept { return manifest_; }
  const Runtime& runtime() const noexcept { return runtime_; }

 private:
  using Handle = std::unique_ptr<vit_export_model, void (*)(vit_export_model*)>;

  static Handle create(const std::string& path, const Options& options) {
    std::vector<const char*> names;
    std::vector<const char*> values;
    for (const auto& [name, value] : options.provider_options) {
      names.push_back(name.c_str());
      values.push_back(value.c_str());
    }
    auto raw = detail::sized<vit_export_options>();
    raw.provider = options.provider.c_str();
    raw.device = options.device;
    raw.threads = options.threads;
    raw.library = options.library.empty() ? nullptr : options.library.c_str();
    raw.selftest = options.selftest ? 1 : 0;
    raw.cpu_fallback = options.cpu_fallback ? 1 : 0;
    raw.provider_option_names = names.data();
    raw.provider_option_values = values.data();
    raw.provider_option_count = names.size();
    vit_export_model* model = nullptr;
    detail::check(detail::api().create_model(path.c_str(), &raw, &model));
    return Handle(model, detail::api().release_model);
  }

  const Preprocess& preprocess() const {
    if (!manifest_.preprocess)
      throw Error(ErrorCode::artifact, "the model has no image preparation");
    return *manifest_.preprocess;
  }

  std::size_t pixels_of_one_image() const {
    const Preprocess& p = preprocess();
    return p.mean.size() * p.height * p.width;
  }

  Handle model_;
  Manifest manifest_;
  Runtime runtime_;
};

}  // namespace vit

#endif  // VIT_EXPORT_HPP
