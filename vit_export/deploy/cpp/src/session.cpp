#include "session.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "bytes.h"
#include "cpus.h"
#include "failure.h"
#include "half.h"
#include "onnx_file.h"
#include "providers.h"

namespace vit_export {

namespace {

// In ONNX Runtime's message where a node has no kernel but the CPU's.
constexpr const char* kFallbackDisabled = "fallback to CPU EP has been explicitly disabled";

constexpr const char* kSpinning = "session.intra_op.allow_spinning";
constexpr const char* kStopSpinning = "session.force_spinning_stop";  // when a run ends

std::atomic<int> open_sessions{0};

// Owns a handle of ONNX Runtime.
template <typename T>
using Owned = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

std::string dtype_name(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return "bfloat16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return "float64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "int32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "int64";
    default:
      return "type " + std::to_string(static_cast<int>(type));
  }
}

template <typename From, typename To>
void convert(const void* data, std::size_t count, std::vector<To>& to) {
  const auto* from = static_cast<const From*>(data);
  to.resize(count);
  std::transform(from, from + count, to.begin(), [](From x) { return static_cast<To>(x); });
}

void convert_halves(const void* data, std::size_t count, float (*decode)(std::uint16_t),
                    std::vector<float>& to) {
  const auto* from = static_cast<const std::uint16_t*>(data);
  to.resize(count);
  std::transform(from, from + count, to.begin(), decode);
}

void read_values(ONNXTensorElementDataType type, const void* data, std::size_t count,
                 Output& output) {
  output.is_float = false;
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return convert<std::uint8_t>(data, count, output.integers);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return convert<std::int32_t>(data, count, output.integers);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return convert<std::int64_t>(data, count, output.integers);
    default:
      output.is_float = true;
  }
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return convert<float>(data, count, output.values);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return convert<double>(data, count, output.values);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return convert_halves(data, count, from_half, output.values);
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return convert_halves(data, count, from_bfloat16, output.values);
    default:
      throw artifact_error("output '" + output.name + "' is of " + dtype_name(type) +
                           ", which this library does not read");
  }
}

// Calls of one session with the words of its file in front of ONNX Runtime's.
struct Caller {
  const OrtApi* api;
  vit_export_code code;
  std::string what;

  void operator()(OrtStatus* status) const { check_ort(api, status, code, what); }
};

TensorSpec spec_of(const Caller& call, const OrtSession* session, std::size_t index,
                   bool is_input) {
  const OrtApi* api = call.api;
  OrtAllocator* allocator = nullptr;
  call(api->GetAllocatorWithDefaultOptions(&allocator));
  char* name = nullptr;
  call((is_input ? api->SessionGetInputName : api->SessionGetOutputName)(session, index, allocator,
                                                                         &name));
  TensorSpec spec;
  spec.name = name;
  call(api->AllocatorFree(allocator, name));
  OrtTypeInfo* raw = nullptr;
  call((is_input ? api->SessionGetInputTypeInfo : api->SessionGetOutputTypeInfo)(session, index,
                                                                                 &raw));
  const Owned<OrtTypeInfo> type(raw, api->ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by `type`
  call(api->CastTypeInfoToTensorInfo(type.get(), &info));
  if (!info) throw artifact_error(call.what + ": '" + spec.name + "' is no tensor");
  ONNXTensorElementDataType dtype;
  call(api->GetTensorElementType(info, &dtype));
  spec.dtype = dtype_name(dtype);
  std::size_t rank = 0;
  call(api->GetDimensionsCount(info, &rank));
  spec.shape.resize(rank);
  spec.dimensions.resize(rank);
  call(api->GetDimensions(info, spec.shape.data(), rank));
  std::vector<const char*> names(rank, nullptr);  // owned by `type`
  call(api->GetSymbolicDimensions(info, names.data(), rank));
  for (std::size_t i = 0; i < rank; ++i)
    if (spec.shape[i] < 0) spec.dimensions[i] = names[i] && *names[i] ? names[i] : "?";
  return spec;
}

// The model's bytes with an inner tensor as a further output.
std::string exposing_bytes(const std::string& path, const std::string& tensor) {
  const FileBytes file(path, "file");
  std::string model = file.text(0, static_cast<std::size_t>(file.size()));
  return model += exposing_suffix(tensor);
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

}  // namespace

Session::Session(const OnnxRuntimeLibrary& library, const std::string& path,
                 const SessionSettings& settings, const std::string& exposed)
    : library_(library), name_(path.substr(path.rfind('/') + 1)) {
  const OrtApi* api = library.api;
  const bool on_cpu = settings.provider == "cpu";
  Caller call{api, VIT_EXPORT_ARTIFACT_ERROR,
              path + ": ONNX Runtime " + library.version + " cannot load it"};
  OrtSessionOptions* raw = nullptr;
  call(api->CreateSessionOptions(&raw));
  const Owned<OrtSessionOptions> options(raw, api->ReleaseSessionOptions);
  call(api->SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_FATAL));
  call(api->SetIntraOpNumThreads(raw, settings.threads));
  // As in Python: threads that spin shorten a run, but use up a quota, and the CPU time of other
  // sessions and of whatever follows the run.
  const bool spins = open_sessions == 0 && usable_cpus() >= allowed_cpus();
  call(api->AddSessionConfigEntry(raw, spins ? kStopSpinning : kSpinning, spins ? "1" : "0"));
  if (!on_cpu) {
    check_provider(library, settings.provider);
    append_provider(library, raw, settings);
    if (!settings.cpu_fallback)
      call(api->AddSessionConfigEntry(raw, "session.disable_cpu_ep_fallback", "1"));
    call.code = VIT_EXPORT_PROVIDER_ERROR;
    call.what = "provider '" + settings.provider + "' cannot run " + name_;
  }
  try {
    if (exposed.empty()) {
      call(api->CreateSession(library.env, path.c_str(), raw, &session_));
    } else {
      const std::string model = exposing_bytes(path, exposed);
      call(api->AddSessionConfigEntry(raw, "session.model_external_initializers_file_folder_path",
                                      folder_of(path).c_str()));
      call(api->CreateSessionFromArray(library.env, model.data(), model.size(), raw, &session_));
    }
  } catch (const Failure& failure) {
    if (failure.message.find(kFallbackDisabled) == std::string::npos) throw;
    throw Failure(VIT_EXPORT_PROVIDER_ERROR,
                  name_ +
                      ": ONNX Runtime placed some of its nodes on CPUExecutionProvider instead " +
                      "of '" + settings.provider + "'",
                  "set cpu_fallback in the options to let them run there, as sizes that a graph "
                  "computes may; or use another provider");
  }
  try {
    std::size_t count = 0;
    call(api->SessionGetInputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i) inputs_.push_back(spec_of(call, session_, i, true));
    call(api->SessionGetOutputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i) outputs_.push_back(spec_of(call, session_, i, false));
  } catch (...) {
    api->ReleaseSession(session_);
    throw;
  }
  ++open_sessions;
}

Session::~Session() {
  library_.api->ReleaseSession(session_);
  --open_sessions;
}

std::vector<Output> Session::run(const Input& input,
                                 const std::vector<std::string>& outputs) const {
  const OrtApi* api = library_.api;
  const Caller call{api, VIT_EXPORT_INPUT_ERROR, name_ + ": cannot run"};
  OrtMemoryInfo* memory = nullptr;
  call(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  const Owned<OrtMemoryInfo> owned_memory(memory, api->ReleaseMemoryInfo);
  OrtValue* value = nullptr;
  call(api->CreateTensorWithDataAsOrtValue(memory, const_cast<void*>(input.data), input.bytes,
                                           input.shape.data(), input.shape.size(), input.dtype,
                                           &value));
  const Owned<OrtValue> owned_value(value, api->ReleaseValue);
  std::vector<const char*> names;
  for (const std::string& name : outputs) names.push_back(name.c_str());
  std::vector<OrtValue*> raw(outputs.size(), nullptr);
  const char* input_name = input.name.c_str();
  OrtStatus* status =
      api->Run(session_, nullptr, &input_name, &value, 1, names.data(), names.size(), raw.data());
  std::vector<Owned<OrtValue>> results;
  for (OrtValue* one : raw) results.emplace_back(one, api->ReleaseValue);
  call(status);
  std::vector<Output> made(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    OrtTensorTypeAndShapeInfo* raw_info = nullptr;
    call(api->GetTensorTypeAndShape(raw[i], &raw_info));
    const Owned<OrtTensorTypeAndShapeInfo> info(raw_info, api->ReleaseTensorTypeAndShapeInfo);
    ONNXTensorElementDataType dtype;
    std::size_t rank = 0, count = 0;
    call(api->GetTensorElementType(raw_info, &dtype));
    call(api->GetDimensionsCount(raw_info, &rank));
    call(api->GetTensorShapeElementCount(raw_info, &count));
    made[i].name = outputs[i];
    made[i].dtype = dtype_name(dtype);
    made[i].shape.resize(rank);
    call(api->GetDimensions(raw_info, made[i].shape.data(), rank));
    void* data = nullptr;
    call(api->GetTensorMutableData(raw[i], &data));
    read_values(dtype, data, count, made[i]);
  }
  return made;
}

}  // namespace vit_export
