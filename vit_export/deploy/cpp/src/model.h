// A loaded artifact: classify images, embed them, or run tensors.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "manifest.h"
#include "onnx_file.h"
#include "resample.h"
#include "scores.h"
#include "selftest.h"
#include "session.h"

namespace vit_export {

struct ModelOptions {
  SessionSettings session;
  std::string library;  // ONNX Runtime's; empty: found
};

// Any number of threads may call the methods of one model at the same time.
class Model {
 public:
  Model(const std::string& path, const ModelOptions& options);

  std::vector<std::vector<Prediction>> classify(const std::vector<PixelView>& images,
                                                int top) const;
  // Output "features", float32 (B, D).
  Output embed(const std::vector<PixelView>& images, bool normalize) const;
  // `pixel_values` is float32 (batch, C, height, width); sides of 0 are those of the manifest.
  std::vector<Output> run(const float* pixel_values, std::size_t batch, std::size_t height,
                          std::size_t width) const;
  // Compares the model with a golden file; empty: the one beside it.
  Selftest selftest(const std::string& golden) const;

  const Manifest& manifest() const { return manifest_; }
  const SessionSettings& settings() const { return settings_; }
  const OnnxRuntimeLibrary& library() const { return library_; }
  const std::string& name() const { return name_; }  // of the file, for messages

  // For `selftest`: a session with that tensor among its outputs; null where the graph has none.
  std::shared_ptr<const Session> session_with(const std::string& tensor) const;
  // Runs prepared images; `height` and `width` of `pixels` are the same for all.
  std::vector<Output> run_pixels(const Session& session, const float* pixel_values,
                                 std::size_t batch, std::size_t height, std::size_t width,
                                 const std::vector<std::string>& outputs) const;

 private:
  const Preprocess& preprocess() const;
  void check_session() const;
  void check_classifies() const;
  // Prepares and runs images; one row of `output` each.
  std::vector<std::vector<float>> rows(const std::vector<PixelView>& images, const Session& session,
                                       const std::string& output) const;
  Output run_images(const std::vector<PixelView>& images, const Session& session,
                    const std::string& output) const;
  Output run_raw_images(const std::vector<PixelView>& images, const Session& session,
                        const std::string& output) const;

  std::string path_, name_;
  OnnxFile file_;
  Manifest manifest_;
  const OnnxRuntimeLibrary& library_;
  SessionSettings settings_;
  std::shared_ptr<const Session> session_;
  bool takes_images_ = false;  // the graph prepares images itself: uint8 (B, H, W, C)

  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Session> with_features_;  // made when it is first asked for
};

}  // namespace vit_export
