// The manifest of an artifact: JSON under the metadata key `vit_export`, checked field by field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "preprocess.h"

namespace vit_export {

struct TensorSpec {
  std::string name;
  std::string dtype;                    // numpy's name
  std::vector<std::int64_t> shape;      // -1 for a dynamic dimension
  std::vector<std::string> dimensions;  // names of dynamic dimensions; "" for the others

  // The batch size that it fixes; none where that is dynamic.
  std::optional<std::int64_t> fixed_batch() const;
  // Whether an array of that shape fits, from dimension `start` on.
  bool fits(const std::vector<std::int64_t>& given, std::size_t start = 0) const;
  std::string str() const;  // e.g. "pixel_values: float32 (batch_size, 3, 224, 224)"
};

struct Manifest {
  std::string json;  // as stored
  std::string variant;
  bool has_config = false;      // a variant, not a module of the user
  std::int64_t patch_size = 1;  // in pixels
  std::string precision;
  std::string activation;  // softmax, sigmoid or none
  std::string resize;      // how a graph that prepares images resizes them: op or matmul
  std::string graph_sha256;
  int schema_version = 0;
  int opset = 0;
  std::optional<bool> passed;  // verdict of the last stage; none where it was not measured
  std::optional<Preprocess> preprocess;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<std::string> labels;

  // Whether the graph prepares images itself: its input is `image`, uint8 (B, H, W, C).
  bool embedded() const { return inputs.front().name == "image"; }
};

// Reads the text; `source` names the file in messages. Throws Failure.
Manifest read_manifest(const std::string& text, const std::string& source);

}  // namespace vit_export
