// Loads files that are damaged or lie, one after the other in one process: each must give an error
// with a message, or work. Run with sanitizers.
//
//   hostile < LIST      lines of MODEL and GOLDEN, separated by a tab
//
// Prints one line per entry: `ok`, or `error CODE message`.
#include <iostream>
#include <string>
#include <vector>
#include <vit_export/vit_export.hpp>

namespace {

std::string one_line(std::string text) {
  for (char& c : text)
    if (c == '\n') c = ' ';
  return text;
}

std::string load(const std::string& path, const std::string& golden) {
  try {
    const vit::Model model(path);
    const vit::Selftest result = model.selftest(golden);
    const std::vector<std::uint8_t> black(16 * 16 * 3);
    if (!model.manifest().labels.empty() || !result.passed) model.classify(black.data(), 16, 16);
    return result.passed ? "ok" : "differs " + one_line(result.reason);
  } catch (const vit::Error& error) {
    return "error " + std::to_string(static_cast<int>(error.code())) + " " + one_line(error.what());
  }
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const std::size_t tab = line.find('\t');
    std::cout << load(line.substr(0, tab), line.substr(tab + 1)) << std::endl;
  }
}
