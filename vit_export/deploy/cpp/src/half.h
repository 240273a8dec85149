// Conversion between float32 and the 16-bit floating point types.
#pragma once

#include <cstdint>

namespace vit_export {

float from_half(std::uint16_t half);        // IEEE 754 binary16
float from_bfloat16(std::uint16_t bfloat);  // the upper half of a float32
std::uint16_t to_half(float value);         // rounds to nearest, ties to even; above: infinity

}  // namespace vit_export
