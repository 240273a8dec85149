// Prints what the gate of the C++ library decides, to compare it with that of Python.
//
//   gate tolerances                          one line per precision
//   gate measured                            complaint about a NaN that the golden file leaves out
//   gate scores DTYPE ACTIVATION NUMBER...   complaint about probabilities: logits, probabilities
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "distance.h"
#include "scores.h"
#include "tolerances.h"

namespace {

void print_tolerances() {
  for (const char* precision : {"fp32", "fp16", "bf16", "int8", "int8-static"}) {
    const vit_export::Tolerances& one = vit_export::tolerances_of(precision);
    std::cout << precision << ' ' << (one.baseline.empty() ? "none" : one.baseline) << ' '
              << one.factor << ' ' << one.floor << ' ' << one.cap << ' '
              << one.min_cosine.value_or(-1) << ' ' << one.max_scale_error.value_or(-1) << ' '
              << one.row_share.value_or(-1) << '\n';
  }
}

void print_measured() {
  vit_export::Reference reference;
  reference.samples = 1;
  reference.length = 2;
  reference.values = {1, 3};
  reference.kept = {0, 2};
  vit_export::Output output;
  output.shape = {1, 4};
  output.values = {1, NAN, 3, INFINITY};
  std::cout << vit_export::Measured(reference).add({0}, output) << '\n';
}

void print_scores(const std::vector<std::string>& words) {
  std::vector<float> logits, probabilities;
  const std::size_t classes = (words.size() - 3) / 2;
  for (std::size_t i = 0; i < classes; ++i) {
    logits.push_back(std::stof(words[3 + i]));
    probabilities.push_back(std::stof(words[3 + classes + i]));
  }
  const double allowed = vit_export::allowed_score_error(logits, words[2], words[1]);
  const vit_export::GraphScores scores{probabilities, {}, {}};
  std::cout << vit_export::score_failure(logits.data(), scores, words[2], allowed) << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  std::cout.precision(17);
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.at(0) == "tolerances") print_tolerances();
  if (words[0] == "measured") print_measured();
  if (words[0] == "scores") print_scores(words);
}
