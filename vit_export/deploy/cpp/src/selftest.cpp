#include "selftest.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>

#include "distance.h"
#include "failure.h"
#include "model.h"
#include "number_text.h"
#include "preparation.h"
#include "prepare.h"
#include "scores.h"
#include "utf8.h"

namespace vit_export {

namespace {

constexpr double kMostRelativeError = 1e-2;  // of torch float32, as a share of max|y64|
constexpr const char* kLogits = "logits";
constexpr const char* kFeatures = "features";
constexpr const char* kScores[] = {"probabilities", "top_index", "top_score"};

using Rows = std::vector<std::size_t>;

struct Findings {
  std::vector<std::string> failures;
  std::vector<std::string> notes;  // what could not be measured
};

bool is_score(const std::string& output) {
  return std::count(std::begin(kScores), std::end(kScores), output) > 0;
}

// The golden samples in the rows of each batch to run. Every sample is run, and one at least at
// two places with other neighbours. With four samples and the batches 1, 2 and 3 these are 0,
// 1 1 and 2 3 0.
std::vector<Rows> plan(std::size_t samples, const std::vector<std::size_t>& batches) {
  std::vector<Rows> all;
  std::set<std::size_t> seen;
  const std::size_t most = batches.back();
  for (std::size_t b = 0; b + 1 < batches.size(); ++b) {
    const std::size_t batch = batches[b];
    Rows rows;
    for (std::size_t i = 0; i < batch; ++i)
      rows.push_back(batch == 2 ? 1 % samples : (batch - 1 - i) % samples);  // 2: identical rows
    seen.insert(rows.begin(), rows.end());
    all.push_back(rows);
  }
  Rows order;
  for (std::size_t sample = 0; sample < samples; ++sample)
    if (!seen.count(sample)) order.push_back(sample);
  const std::size_t unseen = order.size();
  order.insert(order.end(), seen.begin(), seen.end());
  for (std::size_t start = 0; start < unseen + (seen.empty() ? 0 : 1); start += most) {
    Rows rows;
    for (std::size_t i = start; i < start + most; ++i) rows.push_back(order[i % samples]);
    all.push_back(rows);
  }
  if (batches.size() == 1) {  // another order
    Rows rows;
    for (std::size_t i = 0; i < most; ++i) rows.push_back(samples - 1 - i % samples);
    all.push_back(rows);
  }
  if (std::find(batches.begin(), batches.end() - 1, std::size_t{2}) == batches.end() - 1)
    all.emplace_back(most, 0);  // identical rows
  return all;
}

// All samples once, in batches; the first ones fill up the last batch.
std::vector<Rows> in_order(std::size_t samples, std::size_t batch) {
  std::vector<Rows> all;
  for (std::size_t start = 0; start < samples; start += batch) {
    Rows& rows = all.emplace_back();
    for (std::size_t i = start; i < start + batch; ++i) rows.push_back(i % samples);
  }
  return all;
}

// The golden images at one size, as the model takes them.
class GoldenFeed {
 public:
  GoldenFeed(const Model& model, const Golden& golden)
      : feed_(model.feed()), height_(golden.height()), width_(golden.width()) {
    const Preprocess& preprocess = feed_.preprocess();
    const auto channels = static_cast<std::int64_t>(preprocess.mean.size());
    if (golden.images.shape[3] != channels)
      throw artifact_error(model.name() + ": takes " + std::to_string(channels) +
                           " channels, and the golden images have " +
                           std::to_string(golden.images.shape[3]) +
                           ": the golden file belongs to another model");
    const TensorSpec& spec = model.manifest().inputs.front();
    const bool whole = feed_.takes_whole_images();
    const bool fits = whole ? height_ == preprocess.height && width_ == preprocess.width
                            : spec.fits({1, channels, height_, width_}, 1);
    if (!fits)
      throw artifact_error(model.name() + ": takes " + spec.str() +
                           ", and the golden file has images of " + std::to_string(height_) + "x" +
                           std::to_string(width_) + " px: it belongs to another model");
    const auto pixels = static_cast<std::size_t>(height_ * width_);
    const std::size_t length = pixels * preprocess.mean.size();
    for (std::size_t i = 0; i < golden.samples(); ++i) {
      const std::uint8_t* image = golden.images.data.data() + i * length;
      if (whole) {
        framed_.push_back(before_preparation(image, preprocess));
      } else {
        normalized_.emplace_back(length);
        normalize(image, pixels, preprocess, normalized_.back().data());
      }
    }
  }

  std::vector<Output> run(const Session& session, const Rows& rows,
                          const std::vector<std::string>& outputs) const {
    if (framed_.empty()) {
      std::vector<float> batch;
      for (const std::size_t row : rows)
        batch.insert(batch.end(), normalized_[row].begin(), normalized_[row].end());
      return feed_.run_pixel_values(session, batch.data(), rows.size(),
                                    static_cast<std::size_t>(height_),
                                    static_cast<std::size_t>(width_), outputs);
    }
    std::vector<std::uint8_t> batch;
    for (const std::size_t row : rows)
      batch.insert(batch.end(), framed_[row].samples.begin(), framed_[row].samples.end());
    return feed_.run_whole_images(session, batch, rows.size(), framed_[0].height, framed_[0].width,
                                  outputs);
  }

 private:
  const Feed& feed_;
  std::int64_t height_, width_;
  std::vector<std::vector<float>> normalized_;
  std::vector<Pixels> framed_;
};

// Adds what is wrong with the scores that a graph computes itself. `outputs` hold the logits, and
// end with the scores.
template <typename Fail>
void check_scores(const std::vector<Output>& outputs, const std::string& activation, Fail fail) {
  const auto logits = std::find_if(outputs.begin(), outputs.end(),
                                   [](const Output& output) { return output.name == kLogits; });
  const Output *probabilities = &outputs.end()[-3], *index = &outputs.end()[-2];
  const Output* score = &outputs.end()[-1];
  const std::size_t rows = logits->shape.empty() ? 0 : static_cast<std::size_t>(logits->shape[0]);
  const std::size_t classes = rows ? logits->values.size() / rows : 0;
  const std::size_t top = rows ? index->integers.size() / rows : 0;
  if (probabilities->values.size() != rows * classes || score->values.size() != rows * top ||
      classes == 0 || top > classes)
    return fail("probabilities, top_index and top_score do not have the shape of the logits");
  const double allowed = allowed_score_error(logits->values, activation, logits->dtype);
  for (std::size_t i = 0; i < rows; ++i) {
    const auto part = [i](const auto& all, std::size_t size) {
      const auto start = all.begin() + static_cast<std::ptrdiff_t>(i * size);
      return std::vector(start, start + static_cast<std::ptrdiff_t>(size));
    };
    const GraphScores scores{part(probabilities->values, classes), part(index->integers, top),
                             part(score->values, top)};
    const float* row = logits->values.data() + i * classes;
    if (const std::string why = score_failure(row, scores, activation, allowed); !why.empty())
      fail(why);
  }
}

// Runs every batch and adds its outputs to `measured`; adds what went wrong to `failures`.
// `activation` is that of a graph which computes scores itself, else empty.
void run_all(const GoldenFeed& feed, const Session& session, const std::vector<Rows>& batches,
             const std::vector<Measured*>& measured, const std::string& activation,
             std::vector<std::string>& failures) {
  std::vector<std::string> names;
  for (const Measured* one : measured) names.push_back(one->reference.name);
  if (!activation.empty()) {  // scores are checked against the logits, golden or not
    if (std::find(names.begin(), names.end(), kLogits) == names.end()) names.push_back(kLogits);
    names.insert(names.end(), std::begin(kScores), std::end(kScores));
  }
  const auto fail = [&failures](const std::string& reason) {
    if (std::find(failures.begin(), failures.end(), reason) == failures.end())
      failures.push_back(reason);
  };
  for (const Rows& rows : batches) {
    std::vector<Output> outputs;
    try {
      outputs = feed.run(session, rows, names);
    } catch (const Failure& error) {
      fail("batch " + std::to_string(rows.size()) + " fails: " + error.message);
      continue;
    }
    for (std::size_t i = 0; i < measured.size(); ++i)
      if (const std::string why = measured[i]->add(rows, outputs[i]); !why.empty())
        fail(names[i] + " at batch " + std::to_string(rows.size()) + " " + why);
    if (!activation.empty()) check_scores(outputs, activation, fail);
  }
}

// What is beyond its limits.
void add_failures(const Measured& measured, const Tolerances& tolerances,
                  std::vector<std::string>& failures) {
  const Reference& reference = measured.reference;
  const std::string& name = reference.name;
  const double own = reference.own.value_or(std::numeric_limits<double>::infinity());
  if (!std::all_of(reference.values.begin(), reference.values.end(),
                   [](double value) { return std::isfinite(value); })) {
    failures.push_back(name +
                       ": torch's own result is not finite, so there is nothing to compare with");
    return;
  }
  if (tolerances.baseline == "e32" && !(own <= kMostRelativeError * reference.largest))
    failures.push_back(name + ": the golden file gives torch float32 an error of " +
                       short_number(own) + ", where the largest value is " +
                       short_number(reference.largest) +
                       ": so loose a baseline lets anything pass");
  for (const auto& [batch, distance] : measured.by_batch) {
    const std::string where = name + " at batch " + std::to_string(batch) + ": ";
    if (reference.tolerance && !(distance <= *reference.tolerance))
      failures.push_back(
          where + "max|y - y64| = " + short_number(distance) + ", allowed " +
          short_number(*reference.tolerance) +
          (reference.own ? " (" + tolerances.torch_name + ": " + short_number(own) + ")" : ""));
    const double cosine = measured.cosine.at(batch);
    if (reference.min_cosine && !(cosine >= *reference.min_cosine))
      failures.push_back(where + "cosine " + fixed_number(cosine, 6) + ", expected at least " +
                         short_number(*reference.min_cosine));
  }
  if (const auto most = reference.max_scale_error;
      most && !(std::fabs(measured.scale() - 1) <= *most))
    failures.push_back(name + ": its values are " + fixed_number(measured.scale(), 4) +
                       " times those of the reference, allowed " + short_number(1 - *most) +
                       " to " + short_number(1 + *most));
  if (const auto allowed = reference.row_tolerance; allowed && !(measured.row_max_abs <= *allowed))
    failures.push_back(name + ": a row changes by " + short_number(measured.row_max_abs) +
                       " with its place or its neighbours in the batch, allowed " +
                       short_number(*allowed));
}

// What the golden file has a reference for, of the outputs that the manifest promises.
std::vector<Measured> promised_outputs(const Model& model, const Golden& golden,
                                       const Tolerances& tolerances, Findings& found) {
  std::vector<Measured> measured;
  for (const TensorSpec& output : model.manifest().outputs) {
    if (model.feed().takes_whole_images() && is_score(output.name)) continue;  // see check_scores
    const bool is_block = golden.last_block && golden.last_block->name == output.name;
    if (golden.outputs.count(output.name) || is_block)  // tokens are recorded like a block
      measured.emplace_back(reference_of(golden, output.name, tolerances));
    else
      found.failures.push_back(output.name +
                               ": promised by the manifest, but not in the golden file");
  }
  if (measured.empty())
    throw artifact_error(model.name() +
                         ": the golden file has none of its outputs: it belongs to another model");
  if (model.manifest().has_config && !golden.outputs.count(kFeatures))
    found.failures.push_back(
        "the golden file lacks the features, so the body would not be measured");
  return measured;
}

// The tensor that is measured even where it is no output: a zero head would hide a broken body.
std::string inner_tensor(const Golden& golden, const std::vector<Measured>& measured) {
  const std::string name = golden.outputs.count(kFeatures) ? kFeatures
                           : golden.last_block             ? golden.last_block->name
                                                           : "";
  const bool is_output = std::any_of(measured.begin(), measured.end(),
                                     [&](const Measured& m) { return m.reference.name == name; });
  return is_output ? "" : name;
}

// The activation of a graph that computes scores itself; empty for others.
std::string activation_in_graph(const Model& model) {
  const std::vector<TensorSpec>& outputs = model.manifest().outputs;
  const auto scores = std::count_if(outputs.begin(), outputs.end(),
                                    [](const TensorSpec& spec) { return is_score(spec.name); });
  const bool computes = model.feed().takes_whole_images() &&
                        scores == static_cast<std::ptrdiff_t>(std::size(kScores)) &&
                        outputs.front().name == kLogits;
  return computes ? model.manifest().activation : "";
}

// Measures every output at one image size. The first entry is the one to report.
std::vector<Measured> measure_size(const Model& model, const Golden& golden, Findings& found) {
  const Tolerances& tolerances = tolerances_of(model.manifest().precision);
  const GoldenFeed feed(model, golden);
  std::vector<Measured> measured = promised_outputs(model, golden, tolerances, found);
  const auto fixed = model.manifest().inputs.front().fixed_batch();
  const std::vector<std::size_t> batches =
      fixed ? std::vector<std::size_t>{static_cast<std::size_t>(*fixed)}
            : std::vector<std::size_t>{1, 2, 3};
  const auto session = model.session_with(model.manifest().outputs.front().name);
  const std::string inner = inner_tensor(golden, measured);
  const auto exposed = inner.empty() ? nullptr : model.session_with(inner);
  if (exposed)
    measured.emplace_back(reference_of(golden, inner, tolerances));
  else if (!inner.empty())
    found.notes.push_back(inner + ": not measured, the graph has no tensor of that name");
  std::vector<Measured*> all;
  for (Measured& one : measured) all.push_back(&one);
  const std::vector<Rows> rows = plan(golden.samples(), batches);
  const std::string activation = activation_in_graph(model);
  if (exposed && model.settings().provider != "cpu") {
    // there a further output can change which nodes are fused
    run_all(feed, *session, rows, {all.begin(), all.end() - 1}, activation, found.failures);
    run_all(feed, *exposed, in_order(golden.samples(), batches.back()), {all.back()}, "",
            found.failures);
  } else {
    run_all(feed, exposed ? *exposed : *session, rows, all, activation, found.failures);
  }
  for (const Measured& one : measured) add_failures(one, tolerances, found.failures);
  const auto logits = std::find_if(measured.begin(), measured.end(),
                                   [](const Measured& m) { return m.reference.name == kLogits; });
  if (logits != measured.end()) std::rotate(measured.begin(), logits, logits + 1);
  return measured;
}

std::string joined(const std::vector<std::string>& reasons) {
  std::string text;
  for (const std::string& reason : reasons) text += (text.empty() ? "" : "; ") + reason;
  return text;
}

void add_measurements(const std::vector<Measured>& measured, const std::string& suffix,
                      std::vector<Measurement>& all) {
  for (const Measured& one : measured)
    for (const auto& [batch, distance] : one.by_batch) {
      const double cosine = one.cosine.at(batch);
      all.push_back({one.reference.name + suffix, static_cast<std::int64_t>(batch), distance,
                     one.reference.tolerance, cosine,
                     one.reference.accepts(distance, cosine, one.scale())});
    }
}

// Measures how a graph prepares images: the golden ones have the model's size already.
void add_preparation(const Model& model, Findings& found, std::vector<Measurement>& all) {
  const auto part = model.session_with(kPixelValues);
  if (!part) {
    found.notes.push_back("image preparation: not measured, the graph has no tensor pixel_values");
    return;
  }
  const PreparationError error = measure_preparation(model.feed(), *part, model.manifest());
  const std::int64_t batch = model.manifest().inputs.front().fixed_batch().value_or(1);
  all.push_back(
      {kPixelValues, batch, error.levels, error.allowed, error.cosine, error.failures.empty()});
  found.failures.insert(found.failures.end(), error.failures.begin(), error.failures.end());
}

}  // namespace

Selftest measure(const Model& model, const Golden& golden) {
  Findings found;
  const std::vector<Measured> measured = measure_size(model, golden, found);
  const Measured& main = measured.front();
  Selftest result;
  result.output = main.reference.name;
  result.max_abs = main.max_abs();
  result.tolerance = main.reference.tolerance;
  result.baseline = main.reference.own;
  result.cosine = main.min_cosine();
  result.row_max_abs = main.row_max_abs;
  result.samples = static_cast<std::int64_t>(golden.samples());
  add_measurements(measured, "", result.measurements);
  for (const Golden& other : golden.others) {
    Findings there;
    const std::string size = std::to_string(other.height()) + "x" + std::to_string(other.width());
    add_measurements(measure_size(model, other, there), " " + size, result.measurements);
    for (const std::string& reason : there.failures)
      found.failures.push_back(size + " px: " + reason);
    for (const std::string& note : there.notes) found.notes.push_back(size + " px: " + note);
  }
  if (model.feed().takes_whole_images()) add_preparation(model, found, result.measurements);
  result.passed = found.failures.empty();
  result.reason = valid_utf8(joined(found.failures));
  result.notes = valid_utf8(joined(found.notes));
  return result;
}

}  // namespace vit_export
