#include "scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace vit_export {

namespace {

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

}  // namespace

std::vector<Prediction> predict(const float* logits, std::size_t count,
                                const std::string& activation,
                                const std::vector<std::string>& labels, std::size_t top) {
  std::vector<double> scores(logits, logits + count);
  if (activation == "softmax") softmax(scores);
  if (activation == "sigmoid") {
    std::transform(scores.begin(), scores.end(), scores.begin(), sigmoid);
    const auto present =
        std::count_if(scores.begin(), scores.end(), [](double score) { return score >= kPresent; });
    top = std::max(top, static_cast<std::size_t>(present));
  }
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(std::min(top, count));
  std::partial_sort(order.begin(), end, order.end(), [&](std::size_t a, std::size_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  std::vector<Prediction> best;
  for (auto i = order.begin(); i != end; ++i)
    best.push_back({static_cast<std::int64_t>(*i), scores[*i],
                    *i < labels.size() ? labels[*i] : "class " + std::to_string(*i)});
  return best;
}

}  // namespace vit_export
