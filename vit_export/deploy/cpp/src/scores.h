// Turn the logits of one image into labelled predictions.
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

}  // namespace vit_export
