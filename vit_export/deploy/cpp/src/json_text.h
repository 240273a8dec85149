// JSON text of a manifest to a value: bounded in depth, and as Python writes it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace vit_export {

using Json = nlohmann::json;

// Parses JSON text. `NaN`, `Infinity` and `-Infinity`, which Python writes, become null. Throws
// std::runtime_error where the text is no JSON or nested too deeply.
Json parse_json(const std::string& text);

}  // namespace vit_export
