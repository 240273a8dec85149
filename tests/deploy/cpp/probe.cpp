// Calls the library with the arguments of a test, and prints what it returns as JSON lines.
//
//   probe MODEL manifest | selftest [GOLDEN]
//   probe MODEL classify TOP | embed             images follow as: FILE HEIGHT WIDTH CHANNELS
//   probe MODEL run BATCH HEIGHT WIDTH FILE      float32 values; 0 for the manifest's size
//
// Raw files hold samples. The variables PROBE_PROVIDER and PROBE_SELFTEST (1) set options of the
// model. An error is printed as `error CODE: message`, with exit status 1.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>
#include <vit_export/vit_export.hpp>

namespace {

template <typename T>
std::vector<T> read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(stream)), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy_n(bytes.begin(), values.size() * sizeof(T), reinterpret_cast<char*>(values.data()));
  return values;
}

template <typename T>
void print(const char* name, const std::vector<T>& values) {
  std::cout << name;
  for (const T& value : values) std::cout << ' ' << value;
  std::cout << '\n';
}

int run(const std::vector<std::string>& words) {
  vit::Options options;
  if (const char* provider = std::getenv("PROBE_PROVIDER")) options.provider = provider;
  if (const char* selftest = std::getenv("PROBE_SELFTEST")) options.selftest = *selftest == '1';
  const vit::Model model(words.at(0), options);
  const std::string& action = words.at(1);
  if (action == "manifest") {
    const vit::Manifest& manifest = model.manifest();
    std::cout << manifest.variant << ' ' << manifest.precision << ' ' << manifest.opset << '\n';
    print("labels", manifest.labels);
    std::cout << "runtime " << model.runtime().version << ' ' << model.runtime().api_version << ' '
              << model.runtime().threads << '\n';
    return 0;
  }
  if (action == "selftest") {
    const vit::Selftest result = model.selftest(words.size() > 2 ? words[2] : "");
    std::cout << (result.passed ? "passed " : "failed ") << result.output << ' ' << result.max_abs
              << ' ' << result.tolerance.value_or(-1) << ' ' << result.cosine << ' '
              << result.row_max_abs << '\n';
    for (const vit::Measurement& m : result.batches)
      std::cout << m.output << ' ' << m.batch << ' ' << m.max_abs << ' ' << m.cosine << ' '
                << m.passed << '\n';
    std::cout << "notes " << result.notes << '\n';
    std::cout << "reason " << result.reason << '\n';
    return 0;
  }
  if (action == "run") {
    const auto number = [&](std::size_t i) {
      return static_cast<std::uint32_t>(std::stoul(words.at(i)));
    };
    const auto values = read_file<float>(words.at(5));
    for (const vit::Tensor& output : model.run(values.data(), number(2), number(3), number(4))) {
      print(output.name.c_str(), output.shape);
      print("values", output.values);
    }
    return 0;
  }
  const std::size_t first = action == "classify" ? 3 : 2;
  std::vector<std::vector<std::uint8_t>> files;
  std::vector<vit::Image> images;
  for (std::size_t i = first; i + 3 < words.size(); i += 4) {
    files.push_back(read_file<std::uint8_t>(words[i]));
    vit::Image image;
    image.height = static_cast<std::uint32_t>(std::stoul(words[i + 1]));
    image.width = static_cast<std::uint32_t>(std::stoul(words[i + 2]));
    image.channels = static_cast<std::uint32_t>(std::stoul(words[i + 3]));
    images.push_back(image);
  }
  for (std::size_t i = 0; i < files.size(); ++i) images[i].pixels = files[i].data();
  if (action == "classify") {
    for (const auto& classes : model.classify(images, std::stoi(words.at(2)))) {
      std::cout << "image\n";
      for (const vit::Prediction& p : classes)
        std::cout << p.index << ' ' << p.score << ' ' << p.label << '\n';
    }
  } else if (action == "embed") {
    for (const auto& row : model.embed(images)) print("features", row);
  } else {
    std::cerr << "unknown action " << action << '\n';
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::cout.precision(17);
  try {
    return run({argv + 1, argv + argc});
  } catch (const vit::Error& error) {
    std::cout << "error " << static_cast<int>(error.code()) << ": " << error.what() << '\n';
    return 1;
  }
}
