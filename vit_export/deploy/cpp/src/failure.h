// The exception that every part of the library throws; it becomes a status in api.cpp.
#pragma once

#include <vit_export/vit_export.h>

#include <exception>
#include <string>
#include <utility>

namespace vit_export {

class Failure : public std::exception {
 public:
  Failure(vit_export_code code, std::string message, std::string hint = {})
      : code(code), message(std::move(message)), hint(std::move(hint)) {}

  const char* what() const noexcept override { return message.c_str(); }

  vit_export_code code;
  std::string message;
  std::string hint;  // what to do; may be empty
};

inline Failure artifact_error(std::string message, std::string hint = {}) {
  return {VIT_EXPORT_ARTIFACT_ERROR, std::move(message), std::move(hint)};
}

}  // namespace vit_export
