// Numbers in messages.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace vit_export {

// As Python's format "{:.3g}".
inline std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

inline std::string fixed_number(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

// E.g. "(3, 224, 224)".
inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string sizes;
  for (const std::int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  return "(" + sizes + ")";
}

}  // namespace vit_export
