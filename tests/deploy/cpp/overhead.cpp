// What `classify` costs beyond a bare session of ONNX Runtime on images that are prepared alike.
//
//   overhead MODEL ROUNDS      prints the CPU time and the least wall time of both, and their
//   ratios
//
// Both run in turn, in one process, with one thread each. Needs ONNXRUNTIME_LIBRARY to be a file.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <numeric>
#include <string>
#include <vector>
#include <vit_export/vit_export.hpp>

namespace {

constexpr int kWidth = 640, kHeight = 427;  // a photograph
const OrtApi* ort = nullptr;

void check(OrtStatus* status) {
  if (!status) return;
  std::fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  std::exit(1);
}

// A session as an example program would write it.
class BareSession {
 public:
  explicit BareSession(const char* model) {
    void* library = ::dlopen(std::getenv("ONNXRUNTIME_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    using GetApiBase = const OrtApiBase* (*)();
    ort = reinterpret_cast<GetApiBase>(::dlsym(library, "OrtGetApiBase"))()->GetApi(21);
    OrtEnv* env = nullptr;
    OrtSessionOptions* options = nullptr;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "bare", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->SetIntraOpNumThreads(options, 1));
    check(ort->CreateSession(env, model, options, &session_));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }

  // Returns the best class.
  std::ptrdiff_t run(vit::Tensor pixels) const {
    OrtValue *input = nullptr, *output = nullptr;
    check(ort->CreateTensorWithDataAsOrtValue(
        memory_, pixels.values.data(), pixels.values.size() * sizeof(float), pixels.shape.data(),
        pixels.shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    const char *input_name = "pixel_values", *output_name = "logits";
    check(ort->Run(session_, nullptr, &input_name, &input, 1, &output_name, 1, &output));
    OrtTensorTypeAndShapeInfo* info = nullptr;
    std::size_t count = 0;
    void* data = nullptr;
    check(ort->GetTensorTypeAndShape(output, &info));
    check(ort->GetTensorShapeElementCount(info, &count));
    check(ort->GetTensorMutableData(output, &data));
    const auto* logits = static_cast<const float*>(data);
    const std::ptrdiff_t best = std::max_element(logits, logits + count) - logits;
    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(input);
    ort->ReleaseValue(output);
    return best;
  }

 private:
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

struct Times {
  double cpu_ms = 0, least_ms = std::numeric_limits<double>::infinity();

  template <typename Function>
  void add(Function function) {
    const std::clock_t cpu = std::clock();
    const auto start = std::chrono::steady_clock::now();
    function();
    const std::chrono::duration<double, std::milli> taken =
        std::chrono::steady_clock::now() - start;
    cpu_ms += 1e3 * static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC;
    least_ms = std::min(least_ms, taken.count());
  }
};

}  // namespace

int main(int, char** argv) {
  const int rounds = std::stoi(argv[2]);
  vit::Options options;
  options.threads = 1;
  const vit::Model model(argv[1], options);
  const BareSession bare(argv[1]);
  std::vector<std::uint8_t> rgb(kWidth * kHeight * 3);
  unsigned seed = 1;
  for (std::uint8_t& pixel : rgb)
    pixel = static_cast<std::uint8_t>((seed = seed * 1664525u + 1013904223u) >> 24);
  const std::vector<vit::Image> image{{rgb.data(), kWidth, kHeight}};
  std::ptrdiff_t bare_best = 0, best = 0;
  Times of_bare, of_classify;
  for (int round = -2; round < rounds; ++round) {
    if (round == 0) of_bare = of_classify = {};  // the first rounds warm up
    of_bare.add([&] { bare_best = bare.run(model.prepare(image)); });
    of_classify.add([&] {
      best = static_cast<std::ptrdiff_t>(model.classify(rgb.data(), kWidth, kHeight).front().index);
    });
  }
  std::printf("bare session  %8.3f ms CPU  %8.3f ms at least\n", of_bare.cpu_ms / rounds,
              of_bare.least_ms);
  std::printf("classify      %8.3f ms CPU  %8.3f ms at least\n", of_classify.cpu_ms / rounds,
              of_classify.least_ms);
  std::printf("ratio         %8.4f         %8.4f\n", of_classify.cpu_ms / of_bare.cpu_ms,
              of_classify.least_ms / of_bare.least_ms);
  return best == bare_best ? 0 : 1;
}
