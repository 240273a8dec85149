#include "tolerances.h"

#include <algorithm>

#include "failure.h"

namespace vit_export {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::nullopt_t kNone = std::nullopt;

const Tolerances kAll[] = {
    {"fp32", "e32", "torch float32", 4, 1e-6, kInfinity, kNone, kNone, kNone},
    {"fp16", "e16", "torch float16", 2, 1e-6, 1e-2, 0.9995, kNone, kNone},
    {"bf16", "ebf16", "torch bfloat16", 2, 1e-6, 8e-2, 0.968, kNone, kNone},
    {"int8", "", "", 1, 0, kInfinity, 0.99, 0.02, kNone},
    {"int8-static", "", "", 1, 0, kInfinity, 0.99, 0.02, 1e-2},
};

}  // namespace

std::optional<double> Tolerances::tolerance(std::optional<double> e, double largest) const {
  if (baseline.empty()) return kNone;
  return std::min(std::max(factor * e.value_or(kInfinity), floor * largest), cap * largest);
}

std::optional<double> Tolerances::row_tolerance(std::optional<double> e, double largest) const {
  if (!baseline.empty()) return tolerance(e, largest);
  return row_share ? std::optional<double>(*row_share * largest) : kNone;
}

const Tolerances& tolerances_of(const std::string& precision) {
  for (const Tolerances& one : kAll)
    if (one.precision == precision) return one;
  throw artifact_error("no tolerances are known for precision '" + precision + "'");
}

}  // namespace vit_export
