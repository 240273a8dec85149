// The golden file: what torch computes in float64, so that any machine can validate a model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "npz.h"

namespace vit_export {

struct GoldenTensor {
  std::vector<std::int64_t> shape;  // (S, ...)
  std::vector<double> values;
};

struct Golden {
  NpyArray images;  // uint8 (S, H, W, C): pictures at the model's size, not normalised
  std::map<std::string, GoldenTensor> outputs;
  // Error of torch's own arithmetic by baseline (e32, e16, ebf16) and output.
  std::map<std::string, std::map<std::string, double>> errors;
  std::vector<Golden> others;  // at other image sizes, for a model of dynamic size

  std::size_t samples() const { return static_cast<std::size_t>(images.shape[0]); }
  std::int64_t height() const { return images.shape[1]; }
  std::int64_t width() const { return images.shape[2]; }
};

// Reads and checks a file. Throws Failure that names it by `source`.
Golden read_golden(const Bytes& bytes, const std::string& source);

}  // namespace vit_export
