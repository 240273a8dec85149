// JSON text of the values that vit-classify prints.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace json {

// A string in quotes. As in Python, a byte that is not UTF-8 becomes the escape of a surrogate.
std::string text(const std::string& utf8);

// A number that reads back as the same double; null where it is not finite.
std::string number(double value);

// `[a, b]` of values that are JSON already.
std::string array(const std::vector<std::string>& values);

// `{"name": value}` of values that are JSON already.
std::string object(const std::vector<std::pair<std::string, std::string>>& members);

}  // namespace json
