// What the library reads of an .onnx file by itself: the manifest and the names of its tensors.
//
// This happens before ONNX Runtime sees the file, and without the weights. The wire format is
// specified in "Protocol Buffers: Encoding", the field numbers in onnx.proto.
#pragma once

#include <string>
#include <unordered_set>

#include "bytes.h"

namespace vit_export {

struct OnnxFile {
  bool has_manifest = false;
  std::string manifest;                     // text of the metadata key `vit_export`
  std::unordered_set<std::string> tensors;  // names of all tensors that nodes compute
};

// Reads a file; throws std::runtime_error or std::out_of_range where it is no ONNX file.
OnnxFile read_onnx(const Bytes& bytes);

// Returns the bytes that, appended to a model, make an inner tensor an output of its graph:
// protobuf merges a message that comes twice.
std::string exposing_suffix(const std::string& tensor);

}  // namespace vit_export
