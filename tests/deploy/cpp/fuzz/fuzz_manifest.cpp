// Reads text as a manifest, and prepares a small image as it says: only a Failure may come of it.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "failure.h"
#include "manifest.h"
#include "prepare.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const std::string text(reinterpret_cast<const char*>(data), size);
    const vit_export::Manifest manifest = vit_export::read_manifest(text, "fuzz");
    if (manifest.preprocess && manifest.preprocess->height * manifest.preprocess->width < 10000) {
      const std::vector<std::uint8_t> samples(5 * 7 * 3, 9);
      vit_export::resize_and_crop({samples.data(), 5, 7, 3, 21}, *manifest.preprocess);
    }
  } catch (const vit_export::Failure&) {
  }
  return 0;
}
