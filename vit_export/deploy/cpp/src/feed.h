// Feed images to a session: prepared here, or whole to a graph that prepares them itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "manifest.h"
#include "resample.h"
#include "session.h"

namespace vit_export {

// How many prepared images a provider runs at once, as in Python: dynamic INT8 depends on it.
std::size_t largest_batch(const std::string& provider);

class Feed {
 public:
  // `name` is that of the model's file, for messages; both live as long as the feed.
  Feed(const Manifest& manifest, const std::string& name, std::size_t most_prepared)
      : manifest_(manifest), name_(name), most_prepared_(most_prepared) {}

  bool takes_whole_images() const { return manifest_.embedded(); }
  // Throws Failure where the manifest has none.
  const Preprocess& preprocess() const;

  // Computes one row of an output per image.
  std::vector<std::vector<float>> rows(const Session& session, const std::vector<PixelView>& images,
                                       const std::string& output) const;
  // Computes outputs of normalised images, float32 (batch, C, height, width).
  std::vector<Output> run_pixel_values(const Session& session, const float* values,
                                       std::size_t batch, std::size_t height, std::size_t width,
                                       const std::vector<std::string>& outputs) const;
  // Computes outputs of whole images, uint8 (batch, height, width, C).
  std::vector<Output> run_whole_images(const Session& session,
                                       const std::vector<std::uint8_t>& samples, std::size_t batch,
                                       std::int64_t height, std::int64_t width,
                                       const std::vector<std::string>& outputs) const;

 private:
  // The images of a batch with these numbers; results are put into `rows`.
  void run_prepared(const Session& session, const std::vector<PixelView>& images,
                    const std::vector<std::size_t>& numbers, const std::string& output,
                    std::vector<std::vector<float>>& rows) const;
  void run_whole(const Session& session, const std::vector<PixelView>& images,
                 const std::vector<std::size_t>& numbers, const std::string& output,
                 std::vector<std::vector<float>>& rows) const;
  void put_rows(Output result, const std::vector<std::size_t>& numbers,
                std::vector<std::vector<float>>& rows) const;
  std::size_t fixed_or(std::size_t most) const;
  void check_shape(const std::vector<std::int64_t>& shape) const;

  const Manifest& manifest_;
  const std::string& name_;
  const std::size_t most_prepared_;
};

}  // namespace vit_export
