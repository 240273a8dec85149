// Compare a model with its golden file, by the rules of Python's vit_export.gate.validate.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "golden.h"

namespace vit_export {

class Model;

struct Measurement {
  std::string output;
  std::int64_t batch = 0;
  double max_abs = 0;
  std::optional<double> tolerance;  // none where the cosine decides
  double cosine = 0;
  bool passed = false;
};

struct Selftest {
  bool passed = false;
  std::string reason;  // why it did not pass, joined by "; "
  std::string output;  // that the figures below are of
  double max_abs = 0;
  std::optional<double> tolerance, baseline;
  double cosine = 0;
  double row_max_abs = 0;
  std::int64_t samples = 0;
  std::vector<Measurement> measurements;
};

// Throws Failure where model and golden file do not belong together.
Selftest measure(const Model& model, const Golden& golden);

}  // namespace vit_export
