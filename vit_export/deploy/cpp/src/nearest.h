// Suggest known names for a mistyped word, as Python's `vit_export.errors.nearest` does.
#pragma once

#include <string>
#include <vector>

namespace vit_export {

// Returns "; did you mean 'a' or 'b'?" for a mistyped word; empty where no name is near.
std::string nearest(const std::string& word, const std::vector<std::string>& known);

}  // namespace vit_export
