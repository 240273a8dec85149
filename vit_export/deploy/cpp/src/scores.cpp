#include "scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "number_text.h"

namespace vit_export {

namespace {

constexpr double kMostScoreError = 1e-6;      // of a probability in float32
constexpr double kHalfRounding = 1.0 / 1024;  // of float16, relative
constexpr double kPresent = 0.5;  // score from which a label of a multi-label model is present

void softmax(std::vector<double>& values) {
  const double highest = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (double& value : values) sum += value = std::exp(value - highest);
  for (double& value : values) value /= sum;
}

double sigmoid(double x) {  // without overflow
  return x >= 0 ? std::exp(-std::log1p(std::exp(-x))) : std::exp(x - std::log1p(std::exp(x)));
}

// The numbers of the `top` best scores, best first; equal scores keep their order.
template <typename T>
std::vector<std::size_t> best(const std::vector<T>& scores, std::size_t top) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  top = std::min(top, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                    [&](std::size_t a, std::size_t b) {
                      return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
                    });
  order.resize(top);
  return order;
}

}  // namespace

std::vector<double> scores_of(const float* logits, std::size_t count,
                              const std::string& activation) {
  std::vector<double> scores(logits, logits + count);
  if (activation == "softmax") softmax(scores);
  if (activation == "sigmoid")
    std::transform(scores.begin(), scores.end(), scores.begin(), sigmoid);
  return scores;
}

std::vector<Prediction> predict(const float* logits, std::size_t count,
                                const std::string& activation,
                                const std::vector<std::string>& labels, std::size_t top) {
  const std::vector<double> scores = scores_of(logits, count, activation);
  if (activation == "sigmoid") {
    const auto present =
        std::count_if(scores.begin(), scores.end(), [](double score) { return score >= kPresent; });
    top = std::max(top, static_cast<std::size_t>(present));
  }
  std::vector<Prediction> predictions;
  for (const std::size_t i : best(scores, top))
    predictions.push_back({static_cast<std::int64_t>(i), scores[i],
                           i < labels.size() ? labels[i] : "class " + std::to_string(i)});
  return predictions;
}

double allowed_score_error(const std::vector<float>& logits, const std::string& activation,
                           const std::string& dtype) {
  double largest = 0;
  for (const float value : logits) largest = std::max(largest, std::fabs(double{value}));
  const double of_scores = activation == "none" ? std::max(1.0, largest) : 1;
  return kMostScoreError * of_scores + (dtype == "float32" ? 0 : kHalfRounding * largest);
}

std::string score_failure(const float* logits, const GraphScores& scores,
                          const std::string& activation, double allowed) {
  const std::vector<float>& given = scores.probabilities;
  const std::vector<double> expected = scores_of(logits, given.size(), activation);
  double error = 0;
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (!std::isfinite(given[i])) return "probabilities hold NaN or infinite values";
    error = std::max(error, std::fabs(given[i] - expected[i]));
  }
  if (!(error <= allowed))
    return "probabilities are off by " + short_number(error) + " from the logits' own, allowed " +
           short_number(allowed);
  const std::vector<std::size_t> order = best(given, scores.top_index.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (scores.top_index[i] != static_cast<std::int64_t>(order[i]))
      return "top_index are not the classes of the largest probabilities";
    if (scores.top_score[i] != given[order[i]])
      return "top_score are not the largest probabilities";
  }
  return {};
}

}  // namespace vit_export
