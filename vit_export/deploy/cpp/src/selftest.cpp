#include "selftest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "distance.h"
#include "failure.h"
#include "model.h"
#include "number_text.h"
#include "prepare.h"

namespace vit_export {

namespace {

constexpr double kMostRelativeError = 1e-2;  // of torch float32, as a share of max|y64|
constexpr const char* kFeatures = "features";

using Rows = std::vector<std::size_t>;

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

// The golden images at one size, normalised, and how a model runs rows of them.
class GoldenFeeds {
 public:
  GoldenFeeds(const Model& model, const Golden& golden) : model_(model), golden_(golden) {
    if (!model.manifest().preprocess)
      throw artifact_error(model.name() + ": has no image preparation in its manifest");
    const Preprocess& preprocess = *model.manifest().preprocess;
    const auto channels = static_cast<std::int64_t>(preprocess.mean.size());
    if (golden.images.shape[3] != channels)
      throw artifact_error(model.name() + ": takes " + std::to_string(channels) +
                           " channels, and the golden images have " +
                           std::to_string(golden.images.shape[3]) +
                           ": the golden file belongs to another model");
    const std::vector<std::int64_t> shape{static_cast<std::int64_t>(golden.samples()), channels,
                                          golden.height(), golden.width()};
    const TensorSpec& spec = model.manifest().inputs.front();
    if (!spec.fits(shape, 1))
      throw artifact_error(model.name() + ": takes " + spec.str() + ", and the golden file has " +
                           shape_text(shape) + ": it belongs to another model");
    const auto pixels = static_cast<std::size_t>(golden.height() * golden.width());
    length_ = pixels * preprocess.mean.size();
    values_.resize(golden.samples() * length_);
    for (std::size_t i = 0; i < golden.samples(); ++i)
      normalize(golden.images.data.data() + i * length_, pixels, preprocess,
                values_.data() + i * length_);
  }

  std::vector<Output> run(const Session& session, const Rows& rows,
                          const std::vector<std::string>& outputs) const {
    std::vector<float> batch;
    for (const std::size_t row : rows) {
      const auto start = values_.begin() + static_cast<std::ptrdiff_t>(row * length_);
      batch.insert(batch.end(), start, start + static_cast<std::ptrdiff_t>(length_));
    }
    return model_.run_pixels(session, batch.data(), rows.size(),
                             static_cast<std::size_t>(golden_.height()),
                             static_cast<std::size_t>(golden_.width()), outputs);
  }

 private:
  const Model& model_;
  const Golden& golden_;
  std::size_t length_ = 0;
  std::vector<float> values_;
};

// Runs every batch and adds its outputs to `measured`; adds what went wrong to `failures`.
void run_all(const GoldenFeeds& feeds, const Session& session, const std::vector<Rows>& batches,
             std::vector<Measured*> measured, std::vector<std::string>& failures) {
  std::vector<std::string> names;
  for (const Measured* one : measured) names.push_back(one->reference.name);
  const auto fail = [&failures](const std::string& reason) {
    if (std::find(failures.begin(), failures.end(), reason) == failures.end())
      failures.push_back(reason);
  };
  for (const Rows& rows : batches) {
    std::vector<Output> outputs;
    try {
      outputs = feeds.run(session, rows, names);
    } catch (const Failure& error) {
      fail("batch " + std::to_string(rows.size()) + " fails: " + error.message);
      continue;
    }
    for (std::size_t i = 0; i < measured.size(); ++i)
      if (const std::string why = measured[i]->add(rows, outputs[i]); !why.empty())
        fail(names[i] + " at batch " + std::to_string(rows.size()) + " " + why);
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

// Measures every output at one image size. The first entry is the one to report.
std::vector<Measured> measure_size(const Model& model, const Golden& golden,
                                   std::vector<std::string>& failures) {
  const Manifest& manifest = model.manifest();
  const Tolerances& tolerances = tolerances_of(manifest.precision);
  const GoldenFeeds feeds(model, golden);
  std::vector<Measured> measured;
  for (const TensorSpec& output : manifest.outputs) {
    if (golden.outputs.count(output.name))
      measured.emplace_back(reference_of(golden, output.name, tolerances));
    else
      failures.push_back(output.name + ": promised by the manifest, but not in the golden file");
  }
  if (measured.empty())
    throw artifact_error(model.name() +
                         ": the golden file has none of its outputs: it belongs to another model");
  if (manifest.has_config && !golden.outputs.count(kFeatures))
    failures.push_back("the golden file lacks the features, so the body would not be measured");
  const auto fixed = manifest.inputs.front().fixed_batch();
  const std::vector<std::size_t> batches =
      fixed ? std::vector<std::size_t>{static_cast<std::size_t>(*fixed)}
            : std::vector<std::size_t>{1, 2, 3};
  auto session = model.session_with(manifest.outputs.front().name);
  const bool has_features = std::any_of(measured.begin(), measured.end(), [](const Measured& m) {
    return m.reference.name == kFeatures;
  });
  // A zero head would hide a broken body, so the features are measured where they are no output.
  const bool is_inner =
      !has_features && golden.outputs.count(kFeatures) && model.session_with(kFeatures) != nullptr;
  const std::vector<Rows> all = plan(golden.samples(), batches);
  const std::size_t outputs = measured.size();
  if (is_inner) measured.emplace_back(reference_of(golden, kFeatures, tolerances));
  std::vector<Measured*> together;
  for (Measured& one : measured) together.push_back(&one);
  const bool on_cpu = model.settings().provider == "cpu";
  if (is_inner && !on_cpu) {  // there a further output can change which nodes are fused
    run_all(feeds, *session, all,
            {together.begin(), together.begin() + static_cast<std::ptrdiff_t>(outputs)}, failures);
    Rows every;
    for (std::size_t i = 0; i < batches.back(); ++i) every.push_back(i % golden.samples());
    run_all(feeds, *model.session_with(kFeatures), {every}, {together.back()}, failures);
  } else {
    run_all(feeds, is_inner ? *model.session_with(kFeatures) : *session, all, together, failures);
  }
  for (const Measured& one : measured) add_failures(one, tolerances, failures);
  const auto logits = std::find_if(measured.begin(), measured.end(),
                                   [](const Measured& m) { return m.reference.name == "logits"; });
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

}  // namespace

Selftest measure(const Model& model, const Golden& golden) {
  std::vector<std::string> failures;
  const std::vector<Measured> measured = measure_size(model, golden, failures);
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
    std::vector<std::string> reasons;
    const std::string size = std::to_string(other.height()) + "x" + std::to_string(other.width());
    add_measurements(measure_size(model, other, reasons), " " + size, result.measurements);
    for (const std::string& reason : reasons) failures.push_back(size + " px: " + reason);
  }
  result.passed = failures.empty();
  result.reason = joined(failures);
  return result;
}

}  // namespace vit_export
