#include "json.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace json {
namespace {

std::string escaped(unsigned code) {
  char letters[7];
  std::snprintf(letters, sizeof letters, "\\u%04x", code & 0xffffu);
  return letters;
}

// Length of the UTF-8 character at a place; 0 where the bytes are none.
std::size_t character_length(const std::string& bytes, std::size_t start) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[start + i]); };
  const unsigned first = byte(0);
  const std::size_t length = first < 0x80   ? 1
                             : first < 0xc2 ? 0
                             : first < 0xe0 ? 2
                             : first < 0xf0 ? 3
                             : first < 0xf5 ? 4
                                            : 0;
  if (length == 0 || start + length > bytes.size()) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if (byte(i) >> 6 != 2) return 0;
  }
  if (length == 3) {  // overlong forms, and surrogates
    if (first == 0xe0 && byte(1) < 0xa0) return 0;
    if (first == 0xed && byte(1) >= 0xa0) return 0;
  }
  if (length == 4) {  // overlong forms, and beyond the last code point
    if (first == 0xf0 && byte(1) < 0x90) return 0;
    if (first == 0xf4 && byte(1) >= 0x90) return 0;
  }
  return length;
}

std::string joined(const std::vector<std::string>& parts, char open, char close) {
  std::string result(1, open);
  for (const std::string& part : parts) {
    if (result.size() > 1) result += ", ";
    result += part;
  }
  return result + close;
}

}  // namespace

std::string text(const std::string& utf8) {
  std::string result = "\"";
  for (std::size_t i = 0; i < utf8.size();) {
    const auto byte = static_cast<unsigned char>(utf8[i]);
    const std::size_t length = character_length(utf8, i);
    if (length == 0) {
      result += escaped(0xdc00u + byte);
      ++i;
      continue;
    }
    if (byte == '"' || byte == '\\') {
      result += {'\\', utf8[i]};
    } else if (byte < 0x20) {
      result += escaped(byte);
    } else {
      result.append(utf8, i, length);
    }
    i += length;
  }
  return result + '"';
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char digits[32];
  for (int precision = 15; precision <= 17; ++precision) {
    std::snprintf(digits, sizeof digits, "%.*g", precision, value);
    if (std::strtod(digits, nullptr) == value) break;
  }
  return digits;
}

std::string array(const std::vector<std::string>& values) { return joined(values, '[', ']'); }

std::string object(const std::vector<std::pair<std::string, std::string>>& members) {
  std::vector<std::string> parts;
  for (const auto& [name, value] : members) parts.push_back(text(name) + ": " + value);
  return joined(parts, '{', '}');
}

}  // namespace json
