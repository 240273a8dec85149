// Scores of logits, labelled predictions, and the check of a graph that computes scores itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vit_export {

struct Prediction {
  std::int64_t index = 0;
  double score = 0;
  std::string label;
};

// Returns the best classes, best first; equal scores keep the classes' order. With sigmoid, all
// further classes with a score of at least 0.5 are returned too.
std::vector<Prediction> predict(const float* logits, std::size_t count,
                                const std::string& activation,
                                const std::vector<std::string>& labels, std::size_t top);

// Returns softmax, sigmoid or the logits themselves, in float64.
std::vector<double> scores_of(const float* logits, std::size_t count,
                              const std::string& activation);

// The scores that a graph computes for one image: all, and the best with their classes.
struct GraphScores {
  std::vector<float> probabilities;
  std::vector<std::int64_t> top_index;
  std::vector<float> top_score;
};

// Returns how far the scores of a batch may be from those of its logits. A runtime may leave out
// the rounding of logits that are not float32 before it computes scores; `dtype` is the graph's.
double allowed_score_error(const std::vector<float>& logits, const std::string& activation,
                           const std::string& dtype);

// Returns what is wrong with the scores of one image, given its logits; empty where nothing is.
std::string score_failure(const float* logits, const GraphScores& scores,
                          const std::string& activation, double allowed);

}  // namespace vit_export
