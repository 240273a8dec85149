// Numbers in messages.
#pragma once

#include <cstdio>
#include <string>

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

}  // namespace vit_export
