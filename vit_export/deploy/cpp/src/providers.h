// ONNX Runtime's execution providers: names, what is missing, and options.
#pragma once

#include <string>

#include "session.h"

namespace vit_export {

// Returns the name that Python uses, e.g. "cpu" for "CPUExecutionProvider"; others as they are.
std::string short_provider_name(const std::string& provider);

// Throws Failure where the name is unknown, or the library was built without the provider.
void check_provider(const OnnxRuntimeLibrary& library, const std::string& provider);

// Throws Failure where the provider of the settings would ignore one of their options.
void check_options(const SessionSettings& settings);

// Adds the provider of the settings to the options of a session. Throws Failure.
void append_provider(const OnnxRuntimeLibrary& library, OrtSessionOptions* options,
                     const SessionSettings& settings);

}  // namespace vit_export
