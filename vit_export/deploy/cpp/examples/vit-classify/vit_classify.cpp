// vit-classify: classify images with an ONNX file of vit-export, as `vit-export predict` does.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>
#include <vit_export/vit_export.hpp>

#include "arguments.hpp"
#include "image.hpp"
#include "json.hpp"

namespace {

using Members = std::vector<std::pair<std::string, std::string>>;  // of a JSON object

constexpr std::size_t max_bytes = std::size_t{1} << 28;  // of decoded images, held at once

// What is known of one image: its classes or its features, or why there are none.
struct Row {
  std::string image;
  std::vector<vit::Prediction> top;
  std::vector<float> features;
  std::string error;
};

// What the program prints in the end.
struct Report {
  std::string text;
  Members json;
  std::vector<std::string> failures;
};

template <typename Item, typename Function>
std::vector<std::string> each(const std::vector<Item>& items, const Function& function) {
  std::vector<std::string> results;
  for (const Item& item : items) results.push_back(function(item));
  return results;
}

std::string formatted(const char* format, double value) {
  char letters[64];
  std::snprintf(letters, sizeof letters, format, value);
  return letters;
}

std::string optional_number(const std::optional<double>& value) {
  return value ? json::number(*value) : "null";
}

class Program {
 public:
  explicit Program(const Arguments& arguments)
      : arguments_(arguments), model_(arguments.model, options(arguments)) {}

  Report run() {
    if (arguments_.selftest && !selftest()) return report_;
    if (arguments_.bench > 0) bench();
    if (!arguments_.images.empty()) images();
    report_.text += "provider: " + model_.runtime().provider;
    return report_;
  }

 private:
  static vit::Options options(const Arguments& arguments) {
    vit::Options result;
    result.provider = arguments.provider;
    result.threads = arguments.threads;
    return result;
  }

  bool selftest() {
    const vit::Selftest result = model_.selftest();
    const auto batch = [](const vit::Measurement& m) {
      return json::object({{"output", json::text(m.output)},
                           {"batch", std::to_string(m.batch)},
                           {"max_abs", json::number(m.max_abs)},
                           {"tolerance", optional_number(m.tolerance)},
                           {"cosine", json::number(m.cosine)},
                           {"passed", m.passed ? "true" : "false"}});
    };
    report_.json.emplace_back(
        "selftest", json::object({{"passed", result.passed ? "true" : "false"},
                                  {"reason", json::text(result.reason)},
                                  {"notes", json::text(result.notes)},
                                  {"provider", json::text(result.provider)},
                                  {"output", json::text(result.output)},
                                  {"samples", std::to_string(result.samples)},
                                  {"max_abs", json::number(result.max_abs)},
                                  {"tolerance", optional_number(result.tolerance)},
                                  {"baseline", optional_number(result.baseline)},
                                  {"cosine", json::number(result.cosine)},
                                  {"row_max_abs", json::number(result.row_max_abs)},
                                  {"batches", json::array(each(result.batches, batch))}}));
    report_.text += "selftest " + std::string(result.passed ? "passed" : "failed") + ": " +
                    result.output + " max abs " + formatted("%.3g", result.max_abs) +
                    (result.tolerance ? ", tolerance " + formatted("%.3g", *result.tolerance)
                                      : ", cosine " + formatted("%.6f", result.cosine)) +
                    ", " + std::to_string(result.samples) + " samples\n";
    if (!result.notes.empty()) report_.text += "note: " + result.notes + "\n";
    if (!result.passed) {
      report_.failures.push_back(arguments_.model + " does not compute what its torch model " +
                                 "computes: " + result.reason);
    }
    return result.passed;
  }

  // Times whole calls, image preparation included; without an image, the model alone.
  void bench() {
    std::vector<double> times_ms;
    const auto measure = [&](const auto& call) {
      call();  // the first run is slower
      for (int i = 0; i < arguments_.bench; ++i) {
        const auto start = std::chrono::steady_clock::now();
        call();
        const std::chrono::duration<double, std::milli> passed =
            std::chrono::steady_clock::now() - start;
        times_ms.push_back(passed.count());
      }
    };
    std::string what = "run of zeros";
    if (arguments_.images.empty()) {
      const vit::Manifest& manifest = model_.manifest();
      if (!manifest.preprocess || manifest.inputs.front().dtype == "uint8") {
        throw vit::Error(vit::ErrorCode::usage, arguments_.model + ": --bench needs an image",
                         "give a JPEG or PNG file");
      }
      const vit::Preprocess& p = *manifest.preprocess;
      const std::vector<float> zeros(p.mean.size() * p.height * p.width);
      measure([&] { model_.run(zeros, 1); });
    } else {
      const image::Image first = image::read(arguments_.images.front());
      const std::vector<vit::Image> one{view(first)};
      what = (arguments_.embed ? "embed " : "classify ") + arguments_.images.front();
      measure([&] {
        if (arguments_.embed)
          model_.embed(one);
        else
          model_.classify(one, arguments_.top);
      });
    }
    std::sort(times_ms.begin(), times_ms.end());
    const auto percentile = [&](double share) {  // between two times, as NumPy's
      const double place = share * static_cast<double>(times_ms.size() - 1);
      const auto below = static_cast<std::size_t>(place);
      const std::size_t above = std::min(below + 1, times_ms.size() - 1);
      const double part = place - static_cast<double>(below);
      return times_ms[below] + part * (times_ms[above] - times_ms[below]);
    };
    double sum = 0;
    for (const double time : times_ms) sum += time;
    const double mean = sum / static_cast<double>(times_ms.size());
    report_.json.emplace_back("bench",
                              json::object({{"what", json::text(what)},
                                            {"runs", std::to_string(times_ms.size())},
                                            {"threads", std::to_string(model_.runtime().threads)},
                                            {"min_ms", json::number(times_ms.front())},
                                            {"mean_ms", json::number(mean)},
                                            {"median_ms", json::number(percentile(0.5))},
                                            {"p90_ms", json::number(percentile(0.9))}}));
    report_.text += what + ": min " + formatted("%.2f", times_ms.front()) + " ms, mean " +
                    formatted("%.2f", mean) + ", median " + formatted("%.2f", percentile(0.5)) +
                    ", p90 " + formatted("%.2f", percentile(0.9)) + " of " +
                    std::to_string(times_ms.size()) + (times_ms.size() == 1 ? " run\n" : " runs\n");
  }

  void images() {
    std::vector<Row> rows;
    for (std::size_t next = 0; next < arguments_.images.size();) {
      std::vector<image::Image> decoded;
      std::vector<vit::Image> batch;
      std::vector<std::size_t> places;  // of the images of the batch in `rows`
      std::size_t bytes = 0;
      for (; next < arguments_.images.size() && bytes < max_bytes; ++next) {
        rows.push_back({arguments_.images[next], {}, {}, ""});
        try {
          decoded.push_back(image::read(rows.back().image));
          batch.push_back(view(decoded.back()));
          places.push_back(rows.size() - 1);
          bytes += decoded.back().size();
        } catch (const image::Error& error) {
          rows.back().error = error.what();
        }
      }
      run_batch(batch, places, rows);
    }
    for (const Row& row : rows) {
      if (!row.error.empty()) {
        report_.failures.push_back(row.error);
        continue;
      }
      report_.text += row.image + "\n";
      for (const vit::Prediction& p : row.top) {
        report_.text += "  " + formatted("%6.2f", 100 * p.score) + " %  " + p.label + "\n";
      }
      if (arguments_.embed) {
        report_.text += "  " + std::to_string(row.features.size()) + " features\n";
        for (const float value : row.features) report_.text += formatted(" %.6g", value);
        report_.text += "\n";
      }
    }
    const auto members = [this](const Row& row) { return json::object(row_members(row)); };
    report_.json.emplace_back("rejected", "{}");
    report_.json.emplace_back(arguments_.embed ? "embeddings" : "predictions",
                              json::array(each(rows, members)));
  }

  // Runs images together; where one cannot be used, each alone. Python keeps the rest of such a
  // batch together, and counts files that cannot be read into it. That matters to dynamic INT8
  // only, whose scores depend a little on the other images of a batch.
  void run_batch(const std::vector<vit::Image>& batch, const std::vector<std::size_t>& places,
                 std::vector<Row>& rows) const {
    if (batch.empty()) return;
    try {
      if (arguments_.embed) {
        auto features = model_.embed(batch);
        for (std::size_t i = 0; i < batch.size(); ++i) {
          rows[places[i]].features = std::move(features[i]);
        }
      } else {
        auto predictions = model_.classify(batch, arguments_.top);
        for (std::size_t i = 0; i < batch.size(); ++i) {
          rows[places[i]].top = std::move(predictions[i]);
        }
      }
    } catch (const vit::Error& error) {
      if (error.code() != vit::ErrorCode::image) throw;
      if (batch.size() == 1) rows[places[0]].error = error.message();
      for (std::size_t i = 0; i < batch.size() && batch.size() > 1; ++i) {
        run_batch({batch[i]}, {places[i]}, rows);
      }
    }
  }

  Members row_members(const Row& row) const {
    Members members{{"image", json::text(row.image)},
                    {"provider", json::text(model_.runtime().provider)}};
    if (!row.error.empty()) {
      members.emplace_back("error", json::text(row.error));
    } else if (arguments_.embed) {
      const auto number = [](float value) { return json::number(double{value}); };
      members.emplace_back("features", json::array(each(row.features, number)));
    } else {
      const auto prediction = [](const vit::Prediction& p) {
        return json::object({{"index", std::to_string(p.index)},
                             {"label", json::text(p.label)},
                             {"score", json::number(p.score)}});
      };
      members.emplace_back("top", json::array(each(row.top, prediction)));
    }
    return members;
  }

  static vit::Image view(const image::Image& image) {
    return {image.rgb.get(), image.width, image.height, 0, 3};
  }

  const Arguments& arguments_;
  vit::Model model_;
  Report report_;
};

// Prints an error, with --json as JSON too; returns the exit status.
int fail(int status, bool as_json, const std::string& message, const std::string& hint,
         Members members = {}) {
  std::cerr << "Error: " << message << "\n";
  if (!hint.empty()) std::cerr << "hint: " << hint << "\n";
  if (as_json) {
    members.emplace_back("error", json::text(message));
    if (!hint.empty()) members.emplace_back("hint", json::text(hint));
    std::cout << json::object(members) << std::endl;
  }
  return status;
}

int run(const std::vector<std::string>& words, bool as_json) {
  const Arguments arguments = parse_arguments(words);
  if (arguments.help || arguments.version) {
    std::cout << (arguments.help ? help_text
                                 : std::string("vit-classify, version ") +
                                       vit::detail::api().library_version + "\n");
    return 0;
  }
  const Report report = Program(arguments).run();
  (as_json ? std::cerr : std::cout) << report.text << std::endl;
  if (!report.failures.empty()) {
    std::string message;
    for (const std::string& failure : report.failures) {
      message += (message.empty() ? "" : "; ") + failure;
    }
    return fail(1, as_json, message, "", report.json);
  }
  if (as_json) std::cout << json::object(report.json) << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + (argc > 0 ? 1 : 0), argv + argc);
  const auto options_end = std::find(words.begin(), words.end(), "--");
  const bool as_json = std::find(words.begin(), options_end, "--json") != options_end;
  try {
    const int status = run(words, as_json);
    if (!std::cout.flush()) return fail(1, false, "cannot write to standard output", "");
    return status;
  } catch (const UsageError& error) {
    return fail(2, as_json, error.what(), "vit-classify --help shows the options");
  } catch (const vit::Error& error) {
    const int status = error.code() == vit::ErrorCode::usage ? 2 : 1;
    return fail(status, as_json, error.message(), error.hint());
  } catch (const image::Error& error) {
    return fail(1, as_json, error.what(), "");
  } catch (const std::exception& error) {
    return fail(1, as_json, error.what(), "");
  }
}
