// ONNX Runtime's shared library, found and loaded when the first model is created.
#pragma once

#include <onnxruntime_c_api.h>
#include <vit_export/vit_export.h>

#include <string>

namespace vit_export {

struct OnnxRuntimeLibrary {
  std::string path;     // as the loader resolved it
  std::string version;  // e.g. "1.31.1"
  int api_version = 0;  // of `api`: at most that of the headers and of the library
  const OrtApi* api = nullptr;
  OrtEnv* env = nullptr;  // never released: sessions of the program's own may share it
};

// Loads the library once per process and path: `given`, else the environment variable
// ONNXRUNTIME_LIBRARY, else what lies beside the executable, else what the loader finds. Each may
// also be the folder of the library. Throws Failure.
const OnnxRuntimeLibrary& load_onnxruntime(const std::string& given);

// Throws Failure with ONNX Runtime's own words where a call has failed.
void check_ort(const OrtApi* api, OrtStatus* status, vit_export_code code, const std::string& what);

}  // namespace vit_export
