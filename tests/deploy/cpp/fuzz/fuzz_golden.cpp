// Reads bytes as a golden file: only a Failure may come of it.
#include <cstddef>
#include <cstdint>

#include "failure.h"
#include "golden.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    vit_export::read_golden(vit_export::MemoryBytes(data, size), "fuzz");
  } catch (const vit_export::Failure&) {
  }
  return 0;
}
