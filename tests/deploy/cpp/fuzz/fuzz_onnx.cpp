// Reads bytes as an .onnx file, and the manifest in it: only errors that the library catches may
// come of it.
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "failure.h"
#include "manifest.h"
#include "onnx_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto file = vit_export::read_onnx(vit_export::MemoryBytes(data, size));
    if (file.has_manifest) vit_export::read_manifest(file.manifest, "fuzz");
  } catch (const vit_export::Failure&) {
  } catch (const std::out_of_range&) {
  } catch (const std::runtime_error&) {
  }
  return 0;
}
