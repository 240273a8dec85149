// UTF-8 of messages that quote the bytes of a file.
#pragma once

#include <string>

namespace vit_export {

// Returns the text with '?' for every byte that is not UTF-8, and for zero bytes.
std::string valid_utf8(std::string text);

}  // namespace vit_export
