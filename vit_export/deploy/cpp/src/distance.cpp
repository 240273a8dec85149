#include "distance.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "failure.h"
#include "number_text.h"

namespace vit_export {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSingleShare = 0.1;  // of the spread, where an output is one number per image

// Cosine similarity of two rows; that of two zero rows is 1.
double cosine_of(const double* a, const double* b, std::size_t length) {
  double product = 0, squares_a = 0, squares_b = 0;
  bool equal = true;
  for (std::size_t i = 0; i < length; ++i) {
    product += a[i] * b[i];
    squares_a += a[i] * a[i];
    squares_b += b[i] * b[i];
    equal = equal && a[i] == b[i];
  }
  const double norms = std::sqrt(squares_a) * std::sqrt(squares_b);
  return norms > 0 ? product / norms : equal ? 1.0 : 0.0;
}

// The elements of each row that a reference keeps; fewer where the rows are too short.
std::vector<double> picked(const std::vector<double>& values, std::size_t rows,
                           const std::vector<std::int64_t>& kept) {
  const std::size_t length = values.size() / rows;
  std::vector<double> made;
  for (std::size_t row = 0; row < rows; ++row)
    for (const std::int64_t index : kept)
      if (static_cast<std::size_t>(index) < length)
        made.push_back(values[row * length + static_cast<std::size_t>(index)]);
  return made;
}

}  // namespace

bool Reference::accepts(double distance, double cosine, double scale) const {
  if (tolerance && !(distance <= *tolerance)) return false;
  if (max_scale_error && !(std::fabs(scale - 1) <= *max_scale_error)) return false;
  return !min_cosine || 1 - cosine <= 1 - *min_cosine;
}

Reference reference_of(const Golden& golden, const std::string& tensor,
                       const Tolerances& tolerances) {
  Reference made;
  made.name = tensor;
  made.samples = golden.samples();
  const auto output = golden.outputs.find(tensor);
  std::map<std::string, double> errors;  // by baseline
  if (output != golden.outputs.end()) {
    made.values = output->second.values;
    for (const auto& [baseline, by_output] : golden.errors)
      if (const auto found = by_output.find(tensor); found != by_output.end())
        errors[baseline] = found->second;
  } else {
    made.values = golden.last_block->values;
    made.kept = golden.last_block->indices;
    errors = golden.last_block->errors;
  }
  made.length = made.values.size() / made.samples;
  for (const double value : made.values)
    if (!(std::fabs(value) <= made.largest)) made.largest = std::fabs(value);  // NaN stays
  if (!tolerances.baseline.empty()) {
    const auto own = errors.find(tolerances.baseline);
    if (own != errors.end())
      made.own = own->second;
    else if (output != golden.outputs.end())
      throw artifact_error("the golden file lacks " + tolerances.baseline + ", the error of " +
                               tolerances.torch_name + ", which the tolerance of " +
                               tolerances.precision + " depends on: an older release wrote it",
                           "export the fp32 model again");
  }
  made.tolerance = tolerances.tolerance(made.own, made.largest);
  made.row_tolerance = tolerances.row_tolerance(made.own, made.largest);
  made.min_cosine = tolerances.min_cosine;
  made.max_scale_error = tolerances.max_scale_error;
  if (!made.tolerance && made.length == 1) {  // cosine is undefined for a single value
    double mean = 0, spread = 0;
    for (const double value : made.values) mean += value / static_cast<double>(made.samples);
    for (const double value : made.values) spread = std::max(spread, std::fabs(value - mean));
    made.tolerance = kSingleShare * spread;
    made.max_scale_error.reset();
  }
  return made;
}

std::string Measured::add(const std::vector<std::size_t>& samples, const Output& output) {
  const std::size_t batch = samples.size(), length = reference.length;
  if (output.shape.empty() || output.shape[0] != static_cast<std::int64_t>(batch))
    return "gives " + std::to_string(output.shape.empty() ? 0 : output.shape[0]) +
           " rows: the model fixes its batch size (--batch N exports that)";
  std::vector<double> values(output.values.begin(), output.values.end());
  if (!output.is_float) values.assign(output.integers.begin(), output.integers.end());
  const auto broken = std::count_if(values.begin(), values.end(),
                                    [](double value) { return !std::isfinite(value); });
  if (!reference.kept.empty()) values = picked(values, batch, reference.kept);
  if (values.size() != batch * length)
    return "has shape " + shape_text(output.shape) + ", which is not that of the torch model";
  if (broken) {
    by_batch[batch] = kInfinity;
    cosine[batch] = std::numeric_limits<double>::quiet_NaN();
    return "holds " + std::to_string(broken) + " NaN or infinite values";
  }
  double distance = 0, smallest = 1;
  for (std::size_t i = 0; i < batch; ++i) {
    const double* row = &values[i * length];
    const double* expected = &reference.values[samples[i] * length];
    for (std::size_t k = 0; k < length; ++k) {
      distance = std::max(distance, std::fabs(row[k] - expected[k]));
      product_ += row[k] * expected[k];
      square_ += expected[k] * expected[k];
    }
    smallest = std::min(smallest, cosine_of(row, expected, length));
    const auto [first, is_new] = rows.try_emplace(samples[i], row, row + length);
    if (is_new) continue;
    for (std::size_t k = 0; k < length; ++k)
      row_max_abs = std::max(row_max_abs, std::fabs(row[k] - first->second[k]));
  }
  by_batch[batch] = std::max(by_batch.count(batch) ? by_batch[batch] : 0.0, distance);
  cosine[batch] = std::min(cosine.count(batch) ? cosine[batch] : 1.0, smallest);
  return {};
}

double Measured::max_abs() const {
  double most = by_batch.empty() ? kInfinity : 0;
  for (const auto& [batch, distance] : by_batch) {
    (void)batch;
    most = std::max(most, distance);
  }
  return most;
}

double Measured::min_cosine() const {
  double least = cosine.empty() ? 0 : 1;
  for (const auto& [batch, value] : cosine) {
    (void)batch;
    if (!(value >= least)) least = value;
  }
  return least;
}

double Measured::scale() const { return square_ > 0 ? product_ / square_ : 1.0; }

}  // namespace vit_export
