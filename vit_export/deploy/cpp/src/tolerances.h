// Limits that a model of each precision must keep, as Python's vit_export.gate.tolerances.
#pragma once

#include <limits>
#include <optional>
#include <string>

namespace vit_export {

// With `e` the distance of torch's own arithmetic, `max|y - y64|` may be at most
// max(factor * e, floor * max|y64|), and never more than cap * max|y64|.
struct Tolerances {
  std::string precision;
  std::string baseline;    // of the golden file, which holds `e`; empty where torch has none
  std::string torch_name;  // of that arithmetic
  double factor = 1;
  double floor = 0;
  double cap = std::numeric_limits<double>::infinity();
  std::optional<double> min_cosine;       // between an output and the reference
  std::optional<double> max_scale_error;  // an output wrong by a factor has a cosine of 1
  std::optional<double> row_share;        // of max|y64| by which a row may change

  std::optional<double> tolerance(std::optional<double> e, double largest) const;
  std::optional<double> row_tolerance(std::optional<double> e, double largest) const;
};

// The limits of a precision that a checked manifest names.
const Tolerances& tolerances_of(const std::string& precision);

}  // namespace vit_export
