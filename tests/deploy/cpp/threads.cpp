// Eight threads share one model; every result must be that of a single thread.
//
//   threads MODEL
#include <atomic>
#include <iostream>
#include <string>
#include <thread>
#include <vector>
#include <vit_export/vit_export.hpp>

namespace {

constexpr int kThreads = 8, kRounds = 6;

std::vector<std::uint8_t> picture(int width, int height, unsigned seed) {
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(width * height * 3));
  for (std::uint8_t& pixel : pixels)
    pixel = static_cast<std::uint8_t>((seed = seed * 1664525u + 1013904223u) >> 24);
  return pixels;
}

bool same(const std::vector<vit::Prediction>& a, const std::vector<vit::Prediction>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i].index != b[i].index || a[i].score != b[i].score || a[i].label != b[i].label)
      return false;
  return true;
}

}  // namespace

int main(int, char** argv) {
  vit::Options options;
  options.threads = 2;
  const vit::Model model(argv[1], options);
  const auto rgb = picture(61, 47, 7);
  const std::vector<vit::Image> batch{{rgb.data(), 61, 47}, {rgb.data(), 30, 40, 61 * 3}};
  const auto top = model.classify(rgb.data(), 61, 47);
  // No call of embed comes first: its session is made while other threads run.
  const vit::Tensor pixels = vit::prepare(batch, *model.manifest().preprocess);
  const auto logits = model.run(pixels.values, 2)["logits"].values;
  std::atomic<int> differences{0};
  std::vector<std::vector<float>> features(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < kRounds; ++round) {
        if (!same(model.classify(rgb.data(), 61, 47), top)) ++differences;
        if (model.run(pixels.values, 2)["logits"].values != logits) ++differences;
        features[static_cast<std::size_t>(t)] = model.embed(rgb.data(), 61, 47);
        if (round == 0 && !model.selftest().passed) ++differences;
        if (model.classify(batch).size() != 2) ++differences;
        if (model.manifest().labels.size() != 10) ++differences;
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& row : features)
    if (row != features.front()) ++differences;
  std::cout << differences << " differences\n";
  return differences == 0 ? 0 : 1;
}
