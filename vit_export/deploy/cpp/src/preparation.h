// Compare how a graph prepares images with how this library does, as Python's
// vit_export.gate.preparation.
#pragma once

#include <string>
#include <vector>

#include "feed.h"
#include "manifest.h"
#include "session.h"

namespace vit_export {

constexpr const char* kPixelValues = "pixel_values";

struct PreparationError {
  double levels = 0;   // of 255, by which a pixel differs at most
  double allowed = 0;  // largest one
  double cosine = 1;   // smallest one
  std::vector<std::string> failures;
};

// Runs images of a few sizes: smaller and larger than the model's, and 1 pixel wide. `part` has
// `pixel_values` among its outputs.
PreparationError measure_preparation(const Feed& feed, const Session& part,
                                     const Manifest& manifest);

}  // namespace vit_export
