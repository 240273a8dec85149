#include "nearest.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <utility>

namespace vit_export {

namespace {

constexpr double kCutoff = 0.5;
constexpr std::size_t kMostNames = 3;
constexpr std::size_t kMostLetters = 64;  // longer words are no mistyped names

// Number of letters in the blocks that two words have in common, longest block first: Ratcliff and
// Obershelp's method, which Python's difflib uses.
std::size_t common_letters(std::string_view a, std::string_view b) {
  std::size_t longest = 0, in_a = 0, in_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t j = 0; j < b.size(); ++j) {
      std::size_t length = 0;
      while (i + length < a.size() && j + length < b.size() && a[i + length] == b[j + length])
        ++length;
      if (length > longest) longest = length, in_a = i, in_b = j;
    }
  if (longest == 0) return 0;
  return longest + common_letters(a.substr(0, in_a), b.substr(0, in_b)) +
         common_letters(a.substr(in_a + longest), b.substr(in_b + longest));
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  if (word.size() > kMostLetters) return {};
  std::vector<std::pair<double, std::string>> near;
  for (const std::string& name : known) {
    const double common = static_cast<double>(common_letters(lower(name), lower(word)));
    const double ratio = 2 * common / static_cast<double>(name.size() + word.size());
    if (ratio >= kCutoff) near.emplace_back(ratio, name);
  }
  std::sort(near.begin(), near.end(), [](const auto& one, const auto& other) {
    return std::make_pair(one.first, lower(one.second)) >
           std::make_pair(other.first, lower(other.second));
  });
  std::string names;
  for (std::size_t i = 0; i < std::min(near.size(), kMostNames); ++i)
    names += (names.empty() ? "'" : " or '") + near[i].second + "'";
  return names.empty() ? names : "; did you mean " + names + "?";
}

}  // namespace vit_export
