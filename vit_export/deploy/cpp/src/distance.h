// Distance of an output from its float64 reference, as Python's vit_export.gate.distance.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "golden.h"
#include "session.h"
#include "tolerances.h"

namespace vit_export {

// What torch computes in float64 for one output, and how far a model may be from it.
struct Reference {
  std::string name;
  std::size_t samples = 0, length = 0;
  std::vector<double> values;  // (samples, length)
  double largest = 0;          // max|y64|
  std::optional<double> own;   // error of torch's own arithmetic; infinite where it overflows
  std::optional<double> tolerance, row_tolerance, min_cosine, max_scale_error;

  bool accepts(double distance, double cosine, double scale) const;
};

// Throws Failure where the golden file lacks the baseline that the tolerance depends on.
Reference reference_of(const Golden& golden, const std::string& output,
                       const Tolerances& tolerances);

// Distance of one output from its reference, over the batches added so far.
class Measured {
 public:
  explicit Measured(Reference reference) : reference(std::move(reference)) {}

  // Compares the output of one batch; returns why it cannot be compared, or nothing.
  std::string add(const std::vector<std::size_t>& samples, const Output& output);

  double max_abs() const;     // infinite where nothing could be compared
  double min_cosine() const;  // 0 where nothing could be compared
  double scale() const;       // projection of the output on its reference

  Reference reference;
  std::map<std::size_t, double> by_batch;           // largest distance, by batch size
  std::map<std::size_t, double> cosine;             // smallest one, by batch size
  std::map<std::size_t, std::vector<double>> rows;  // first one of each sample
  double row_max_abs = 0;

 private:
  double product_ = 0, square_ = 0;
};

}  // namespace vit_export
