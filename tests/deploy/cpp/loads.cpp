// Loads, uses and releases a model many times, with errors in between: for valgrind.
//
//   loads MODEL TIMES
#include <iostream>
#include <string>
#include <vector>
#include <vit_export/vit_export.hpp>

int main(int, char** argv) {
  const std::vector<std::uint8_t> rgb(40 * 40 * 3, 100);
  int errors = 0;
  const int times = std::stoi(argv[2]);
  for (int i = 0; i < times; ++i) {
    vit::Options options;
    options.threads = 1;
    const vit::Model model(argv[1], options);
    if (model.classify(rgb.data(), 40, 40).empty()) return 1;
    try {
      model.classify(rgb.data(), 0, 40);
    } catch (const vit::Error&) {
      ++errors;
    }
    try {
      const vit::Model missing(std::string(argv[1]) + ".missing");
    } catch (const vit::Error&) {
      ++errors;
    }
    if (i == 0 && (!model.selftest().passed || model.embed(rgb.data(), 40, 40).empty())) return 1;
  }
  std::cout << times << " loads, " << errors << " errors\n";
  return errors == 2 * times ? 0 : 1;
}
