// One session of ONNX Runtime on exactly the requested provider.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "onnxruntime_library.h"

namespace vit_export {

// An output of a run: floating point types as float, integer types as int64.
struct Output {
  std::string name;
  std::string dtype;  // of the graph, numpy's name
  std::vector<std::int64_t> shape;
  bool is_float = true;
  std::vector<float> values;
  std::vector<std::int64_t> integers;
};

// An input of a run; its memory is the caller's.
struct Input {
  std::string name;
  ONNXTensorElementDataType dtype;
  std::vector<std::int64_t> shape;
  const void* data;
  std::size_t bytes;
};

struct SessionSettings {
  std::string provider = "cpu";
  int device = 0;
  int threads = 1;
  bool cpu_fallback = false;
  std::map<std::string, std::string> provider_options;
  std::string precision;  // of the model
};

class Session {
 public:
  // Loads `path`; with `exposed` that inner tensor is an output too. Throws Failure.
  Session(const OnnxRuntimeLibrary& library, const std::string& path,
          const SessionSettings& settings, const std::string& exposed = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Computes outputs by name. Any number of threads may call it at the same time.
  std::vector<Output> run(const Input& input, const std::vector<std::string>& outputs) const;

  // Names and types of the graph's inputs and outputs, e.g. "pixel_values" and "float32".
  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const std::vector<TensorSpec>& outputs() const { return outputs_; }

 private:
  const OnnxRuntimeLibrary& library_;
  std::string name_;  // of the file, for messages
  OrtSession* session_ = nullptr;
  std::vector<TensorSpec> inputs_, outputs_;
};

}  // namespace vit_export
