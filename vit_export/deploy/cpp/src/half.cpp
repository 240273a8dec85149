#include "half.h"

#include <cmath>
#include <cstring>

namespace vit_export {

namespace {

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace

float from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
  if (exponent == 0x1F) return from_bits(sign | 0x7F800000 | fraction << 13);
  if (exponent == 0) {  // zero or subnormal
    const float value = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -value : value;
  }
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

float from_bfloat16(std::uint16_t bfloat) {
  return from_bits(static_cast<std::uint32_t>(bfloat) << 16);
}

std::uint16_t to_half(float value) {
  const std::uint32_t bits = to_bits(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  const auto with_sign = [sign](std::uint32_t rest) {
    return static_cast<std::uint16_t>(sign | rest);
  };
  if (std::isnan(value)) return with_sign(0x7E00);
  if (magnitude >= 65520.0f) return with_sign(0x7C00);
  if (magnitude < std::ldexp(1.0f, -14))  // subnormal: a multiple of 2^-24
    return with_sign(static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 24))));
  const std::uint32_t rounded = (bits & 0x7FFFFFFF) + 0xFFF + (bits >> 13 & 1);
  return with_sign((rounded >> 13) - (112 << 10));
}

}  // namespace vit_export
