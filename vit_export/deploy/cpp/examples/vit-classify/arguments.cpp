#include "arguments.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

const char* const help_text =
    R"(Usage: vit-classify [OPTIONS] MODEL IMAGE...

  Classify JPEG and PNG images with an ONNX file of vit-export.

Options:
  --top K          Classes per image; of a multi-label model, also all others
                   with a score of 0.5 or more.  [default: 5]
  --embed          Print the features of each image instead of its classes.
  --provider NAME  What runs the model: cpu, cuda, tensorrt, ...  [default: cpu]
  --threads N      CPU threads of one run.  [default: all CPUs]
  --selftest       First compare the model with its golden file on this machine.
                   Needs no image.
  --bench N        Time N runs of the first image, or of zeros without an image.
  --json           End with one JSON object on standard output.
  --version        Print the version of vit-export.
  -h, --help       Print this text.

ONNX Runtime is the library that the variable ONNXRUNTIME_LIBRARY names, or is
found beside the program and in the system. Exit status: 0 done, 1 failed, 2
wrong usage.
)";

namespace {

const std::vector<std::string> known = {
    "--top",   "--embed",   "--provider", "--threads", "--selftest",
    "--bench", "--version", "--json",     "--help",    "-h",
};

// Number of letters to insert, remove or replace to get from one word to the other.
std::size_t edits(const std::string& from, const std::string& to) {
  std::vector<std::size_t> row(to.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < to.size(); ++j) {
      const std::size_t replaced = diagonal + (from[i] == to[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string unknown_option(const std::string& name) {
  const auto nearest = std::min_element(
      known.begin(), known.end(),
      [&](const auto& one, const auto& other) { return edits(name, one) < edits(name, other); });
  const bool is_near = edits(name, *nearest) <= nearest->size() / 2;
  return "no option '" + name + "'" + (is_near ? "; did you mean '" + *nearest + "'?" : "");
}

int whole_number(const std::string& name, const std::string& text, int least, int most) {
  const bool is_number =
      !text.empty() && text.size() <= 9 &&
      std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  const int value = is_number ? std::stoi(text) : -1;
  if (value < least || value > most) {
    const std::string range = most == std::numeric_limits<int>::max()
                                  ? "of at least " + std::to_string(least)
                                  : std::to_string(least) + " to " + std::to_string(most);
    throw UsageError(name + " '" + text + "': expected a whole number " + range);
  }
  return value;
}

}  // namespace

Arguments parse_arguments(const std::vector<std::string>& words) {
  Arguments result;
  std::vector<std::string> paths;
  bool options_end = false;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (options_end || words[i].size() < 2 || words[i][0] != '-') {
      paths.push_back(words[i]);
      continue;
    }
    const std::size_t equals = words[i].find('=');
    const std::string name = words[i].substr(0, equals);
    const auto value = [&] {
      if (equals != std::string::npos) return words[i].substr(equals + 1);
      if (i + 1 == words.size()) throw UsageError(name + ": expected a value after it");
      return words[++i];
    };
    const auto number = [&](int least, int most = std::numeric_limits<int>::max()) {
      return whole_number(name, value(), least, most);
    };
    const auto flag = [&] {
      if (equals != std::string::npos) throw UsageError(words[i] + ": " + name + " takes no value");
      return true;
    };
    if (words[i] == "--")
      options_end = true;
    else if (name == "--top")
      result.top = number(1);
    else if (name == "--provider")
      result.provider = value();
    else if (name == "--threads")
      result.threads = number(1, 256);
    else if (name == "--bench")
      result.bench = number(1);
    else if (name == "--embed")
      result.embed = flag();
    else if (name == "--selftest")
      result.selftest = flag();
    else if (name == "--json")
      flag();  // main has looked for it, since an error of the others is JSON too
    else if (name == "--version")
      result.version = flag();
    else if (name == "--help" || name == "-h")
      result.help = flag();
    else
      throw UsageError(unknown_option(name));
  }
  if (result.help || result.version) return result;
  if (paths.empty()) throw UsageError("no model was given, expected an .onnx file");
  result.model = paths.front();
  result.images.assign(paths.begin() + 1, paths.end());
  if (result.images.empty() && !result.selftest && result.bench == 0) {
    throw UsageError("no image was given, expected at least one JPEG or PNG file");
  }
  return result;
}
