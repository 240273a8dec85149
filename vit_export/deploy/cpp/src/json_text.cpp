#include "json_text.h"

#include <stdexcept>
#include <string_view>

namespace vit_export {

namespace {

constexpr int kMostDepth = 32;

// Returns the text with the numbers that JSON does not have replaced by null; checks the depth.
std::string without_infinities(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  int depth = 0;
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\' && i + 1 < text.size()) out += text[i++];
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMostDepth)
        throw std::runtime_error("it is nested more than " + std::to_string(kMostDepth) +
                                 " levels deep");
    } else if (c == ']' || c == '}') {
      --depth;
    } else {
      bool replaced = false;
      for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
        if (text.compare(i, word.size(), word) == 0) {
          out += "null";
          i += word.size();
          replaced = true;
          break;
        }
      }
      if (replaced) continue;
    }
    out += text[i++];
  }
  return out;
}

}  // namespace

Json parse_json(const std::string& text) {
  try {
    return Json::parse(without_infinities(text));
  } catch (const Json::exception& error) {
    throw std::runtime_error(std::string("it is no JSON (") + error.what() + ")");
  }
}

}  // namespace vit_export
