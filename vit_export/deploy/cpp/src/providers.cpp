#include "providers.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "failure.h"
#include "nearest.h"

namespace vit_export {

namespace {

struct Provider {
  const char* name;       // as in Python
  const char* ort_name;   // as ONNX Runtime lists it
  const char* library;    // a library of its own beside ONNX Runtime's; may be empty
  const char* needs;      // hint where it is missing
  bool numbered = false;  // whether it takes the number of a GPU (`device_id`)
};

constexpr Provider kProviders[] = {
    {"cpu", "CPUExecutionProvider", "", ""},
    {"cuda", "CUDAExecutionProvider", "libonnxruntime_providers_cuda.so",
     "use the library of `pip install 'onnxruntime-gpu[cuda,cudnn]'`, on a machine with an NVIDIA "
     "GPU",
     true},
    {"tensorrt", "TensorrtExecutionProvider", "libonnxruntime_providers_tensorrt.so",
     "use the library of `pip install 'onnxruntime-gpu[cuda,cudnn]'`, on a machine with an NVIDIA "
     "GPU and TensorRT",
     true},
    {"openvino", "OpenVINOExecutionProvider", "libonnxruntime_providers_openvino.so",
     "use the library of `pip install onnxruntime-openvino`"},
    {"qnn", "QNNExecutionProvider", "", "use a library that was built with --use_qnn"},
    {"xnnpack", "XnnpackExecutionProvider", "", "use a library that was built with --use_xnnpack"},
    {"migraphx", "MIGraphXExecutionProvider", "libonnxruntime_providers_migraphx.so",
     "use the library of `pip install onnxruntime-migraphx`, on a machine with an AMD GPU", true},
};

Failure provider_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_PROVIDER_ERROR, std::move(message), std::move(hint)};
}

// The provider of a name of ours; one of ONNX Runtime's names counts too.
const Provider* find_provider(const std::string& name) {
  for (const Provider& provider : kProviders)
    if (name == provider.name || name == provider.ort_name) return &provider;
  return nullptr;
}

std::string ort_name_of(const std::string& name) {
  const Provider* known = find_provider(name);
  return known ? known->ort_name : name;
}

std::vector<std::string> available(const OnnxRuntimeLibrary& library) {
  char** names = nullptr;
  int count = 0;
  check_ort(library.api, library.api->GetAvailableProviders(&names, &count),
            VIT_EXPORT_PROVIDER_ERROR, "the providers cannot be listed");
  const std::vector<std::string> all(names, names + count);
  check_ort(library.api, library.api->ReleaseAvailableProviders(names, count),
            VIT_EXPORT_PROVIDER_ERROR, "the providers cannot be listed");
  return all;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// Why the provider's own library cannot be loaded; empty where it can. ONNX Runtime tells that
// only its log.
std::string loader_error(const OnnxRuntimeLibrary& library, const Provider& provider) {
  if (!*provider.library) return {};
  const std::string folder = library.path.substr(0, library.path.rfind('/') + 1);
  // It needs symbols of a library beside it, which ONNX Runtime loads first.
  ::dlopen((folder + "libonnxruntime_providers_shared.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (::dlopen((folder + provider.library).c_str(), RTLD_NOW | RTLD_LOCAL)) return {};
  return ::dlerror();
}

void append_cuda(const OrtApi* api, OrtSessionOptions* options,
                 const std::vector<const char*>& names, const std::vector<const char*>& values) {
  const std::string what = "provider 'cuda' cannot start";
  OrtCUDAProviderOptionsV2* cuda = nullptr;
  check_ort(api, api->CreateCUDAProviderOptions(&cuda), VIT_EXPORT_PROVIDER_ERROR, what);
  OrtStatus* status =
      api->UpdateCUDAProviderOptions(cuda, names.data(), values.data(), names.size());
  if (!status) status = api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda);
  api->ReleaseCUDAProviderOptions(cuda);
  check_ort(api, status, VIT_EXPORT_PROVIDER_ERROR, what);
}

// Throws Failure where float32 products would use TF32 without anybody's request: ONNX Runtime's
// TensorRT provider has no option against it (microsoft/onnxruntime, issue 26029).
void check_tf32(const std::string& precision) {
  constexpr const char* kVariable = "NVIDIA_TF32_OVERRIDE";
  if (precision == "fp32" && !std::getenv(kVariable))
    throw provider_error(
        "provider 'tensorrt' would compute float32 products in TF32 (10 of 23 "
        "bits), because " +
            std::string(kVariable) + " is not set",
        "set " + std::string(kVariable) + "=0 before the process starts, or 1 to allow TF32");
}

void append_tensorrt(const OrtApi* api, OrtSessionOptions* options,
                     const std::vector<const char*>& names,
                     const std::vector<const char*>& values) {
  const std::string what = "provider 'tensorrt' cannot start";
  OrtTensorRTProviderOptionsV2* tensorrt = nullptr;
  check_ort(api, api->CreateTensorRTProviderOptions(&tensorrt), VIT_EXPORT_PROVIDER_ERROR, what);
  OrtStatus* status =
      api->UpdateTensorRTProviderOptions(tensorrt, names.data(), values.data(), names.size());
  if (!status) status = api->SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt);
  api->ReleaseTensorRTProviderOptions(tensorrt);
  check_ort(api, status, VIT_EXPORT_PROVIDER_ERROR, what);
}

}  // namespace

std::string short_provider_name(const std::string& provider) {
  const Provider* known = find_provider(provider);
  return known ? known->name : provider;
}

void check_provider(const OnnxRuntimeLibrary& library, const std::string& provider) {
  const std::vector<std::string> active = available(library);
  const Provider* known = find_provider(provider);
  const std::string ort_name = ort_name_of(provider);
  if (!known && std::find(active.begin(), active.end(), ort_name) == active.end()) {
    std::vector<std::string> names;
    for (const Provider& one : kProviders) names.emplace_back(one.name);
    throw Failure(VIT_EXPORT_USAGE_ERROR,
                  "unknown provider '" + provider + "'" + nearest(provider, names) +
                      " (known: " + joined(names) + "; this library has: " + joined(active) + ")");
  }
  if (std::find(active.begin(), active.end(), ort_name) == active.end())
    throw provider_error("provider '" + provider + "': ONNX Runtime " + library.version + " (" +
                             library.path + ") is built without " + ort_name +
                             " (it has: " + joined(active) + ")",
                         known->needs);
  if (known)
    if (const std::string reason = loader_error(library, *known); !reason.empty())
      throw provider_error("provider '" + provider + "' cannot start: " + reason, known->needs);
}

void check_options(const SessionSettings& settings) {
  const std::string& name = settings.provider;
  const Provider* known = find_provider(name);
  if (settings.device && known && !known->numbered)
    throw Failure(VIT_EXPORT_USAGE_ERROR,
                  "device=" + std::to_string(settings.device) + ": provider '" + name +
                      "' does not number its devices",
                  name == "openvino"
                      ? "OpenVINO names them: give the provider option device_type=GPU.1"
                      : "leave it out, or use the provider of a GPU");
  if (name != "cpu") return;
  if (!settings.provider_options.empty())
    throw Failure(VIT_EXPORT_USAGE_ERROR,
                  "provider_options: provider 'cpu' has none, and '" +
                      settings.provider_options.begin()->first + "' was given",
                  "threads configures it");
  if (settings.cpu_fallback)
    throw Failure(VIT_EXPORT_USAGE_ERROR, "cpu_fallback: provider 'cpu' runs every node itself",
                  "leave it out, or use another provider");
}

void append_provider(const OnnxRuntimeLibrary& library, OrtSessionOptions* options,
                     const SessionSettings& settings) {
  const OrtApi* api = library.api;
  std::map<std::string, std::string> entries = settings.provider_options;
  const std::string ort_name = ort_name_of(settings.provider);
  const bool is_cuda = ort_name == "CUDAExecutionProvider";
  const bool is_tensorrt = ort_name == "TensorrtExecutionProvider";
  if (is_cuda || is_tensorrt || settings.device)  // see check_options
    entries.emplace("device_id", std::to_string(settings.device));
  if (is_cuda) entries.emplace("use_tf32", "0");  // as in Python: fp32 is fp32
  std::vector<const char*> names, values;
  for (const auto& [name, value] : entries) {
    names.push_back(name.c_str());
    values.push_back(value.c_str());
  }
  if (is_cuda) return append_cuda(api, options, names, values);
  if (is_tensorrt) check_tf32(settings.precision);
  if (is_tensorrt) return append_tensorrt(api, options, names, values);
  // ONNX Runtime takes the short name of other providers, e.g. "XNNPACK" or "OpenVINO"
  std::string name = ort_name.substr(0, ort_name.rfind("ExecutionProvider"));
  if (name == "Xnnpack") name = "XNNPACK";
  check_ort(api,
            api->SessionOptionsAppendExecutionProvider(options, name.c_str(), names.data(),
                                                       values.data(), names.size()),
            VIT_EXPORT_PROVIDER_ERROR, "provider '" + settings.provider + "' cannot start");
}

}  // namespace vit_export
