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

// Returns what is wrong with them, given the logits; empty where nothing is.
std::string score_failure(const float* logits, const GraphScores& scores,
                          const std::string& activation);

}  // namespace vit_export
