#include "utf8.h"

#include <cstddef>
#include <cstdint>

namespace vit_export {

namespace {

std::uint8_t byte(const std::string& text, std::size_t at) {
  return at < text.size() ? static_cast<std::uint8_t>(text[at]) : 0;
}

// The length of the character that begins at a place; 0 where none does.
std::size_t character(const std::string& text, std::size_t at) {
  const std::uint8_t lead = byte(text, at);
  if (lead < 0x80) return lead ? 1 : 0;
  const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(text, at + i) & 0xC0) != 0x80) return 0;
  const std::uint8_t second = byte(text, at + 1);
  const bool is_wrong = (lead == 0xE0 && second < 0xA0) ||  // longer than needed
                        (lead == 0xED && second > 0x9F) ||  // half of a surrogate pair
                        (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F);
  return is_wrong ? 0 : length;
}

}  // namespace

std::string valid_utf8(std::string text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character(text, at);
    if (!length) text[at] = '?';
    at += length ? length : 1;
  }
  return text;
}

}  // namespace vit_export
