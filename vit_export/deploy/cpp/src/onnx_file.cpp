#include "onnx_file.h"

#include <stdexcept>

namespace vit_export {

namespace {

constexpr std::uint64_t kMostManifestBytes = 16 << 20;
constexpr std::uint64_t kMostNameBytes = 1 << 16;
constexpr std::size_t kMostTensors = 1 << 20;

// Field numbers: ModelProto
constexpr std::uint64_t kIrVersion = 1, kGraph = 7, kMetadata = 14;
// GraphProto, NodeProto, StringStringEntryProto, ValueInfoProto
constexpr std::uint64_t kNode = 1, kGraphOutput = 12, kNodeOutput = 2, kKey = 1, kValue = 2;
constexpr std::uint64_t kValueName = 1;

struct Field {
  std::uint64_t number = 0;
  bool is_message = false;  // or text: the payload is [start, end)
  std::uint64_t start = 0, end = 0;
};

std::uint64_t read_varint(const Bytes& bytes, std::uint64_t& at, std::uint64_t end) {
  std::uint64_t value = 0;
  for (int shift = 0; at < end && shift < 70; shift += 7) {
    const std::uint64_t byte = bytes.number(at++, 1);
    if (shift < 64) value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw std::runtime_error("a number does not end at byte " + std::to_string(at));
}

// Calls `visit` with every field of the message in [at, end).
template <typename Visit>
void for_each_field(const Bytes& bytes, std::uint64_t at, std::uint64_t end, Visit visit) {
  while (at < end) {
    const std::uint64_t tag_at = at, tag = read_varint(bytes, at, end);
    Field field;
    field.number = tag >> 3;
    if (field.number == 0)
      throw std::runtime_error("field number 0 at byte " + std::to_string(tag_at));
    std::uint64_t size = 0;
    switch (tag & 7) {
      case 0: {
        const std::uint64_t before = at;
        read_varint(bytes, at, end);
        size = at - before;
        at = before;
        break;
      }
      case 1:
        size = 8;
        break;
      case 2:
        size = read_varint(bytes, at, end);
        field.is_message = true;
        break;
      case 5:
        size = 4;
        break;
      default:
        throw std::runtime_error("wire type " + std::to_string(tag & 7) + " at byte " +
                                 std::to_string(tag_at));
    }
    if (size > end - at)
      throw std::runtime_error("a field reaches " + std::to_string(size - (end - at)) +
                               " bytes beyond the end");
    field.start = at;
    field.end = at + size;
    at = field.end;
    visit(field);
  }
}

std::string text(const Bytes& bytes, const Field& field, std::uint64_t most, const char* what) {
  const std::uint64_t size = field.end - field.start;
  if (size > most)
    throw std::runtime_error(std::string(what) + " has " + std::to_string(size) +
                             " bytes, expected at most " + std::to_string(most));
  return bytes.text(field.start, static_cast<std::size_t>(size));
}

void read_metadata(const Bytes& bytes, const Field& entry, OnnxFile& file) {
  Field key, value;
  for_each_field(bytes, entry.start, entry.end, [&](const Field& field) {
    if (!field.is_message) return;
    if (field.number == kKey) key = field;
    if (field.number == kValue) value = field;
  });
  if (key.end - key.start == 10 && bytes.text(key.start, 10) == "vit_export") {
    file.has_manifest = true;
    file.manifest = text(bytes, value, kMostManifestBytes, "the manifest");
  }
}

void read_node(const Bytes& bytes, const Field& node, OnnxFile& file) {
  for_each_field(bytes, node.start, node.end, [&](const Field& field) {
    if (field.number != kNodeOutput || !field.is_message) return;
    if (file.tensors.size() >= kMostTensors)
      throw std::runtime_error("the graph has more than " + std::to_string(kMostTensors) +
                               " tensors");
    file.tensors.insert(text(bytes, field, kMostNameBytes, "the name of a tensor"));
  });
}

std::string varint(std::uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  return out + static_cast<char>(value);
}

std::string message(std::uint64_t number, const std::string& payload) {
  return varint(number << 3 | 2) + varint(payload.size()) + payload;
}

}  // namespace

OnnxFile read_onnx(const Bytes& bytes) {
  OnnxFile file;
  bool has_version = false, has_output = false;
  for_each_field(bytes, 0, bytes.size(), [&](const Field& field) {
    if (field.number == kIrVersion) has_version = true;
    if (field.number == kMetadata && field.is_message) read_metadata(bytes, field, file);
    if (field.number != kGraph || !field.is_message) return;
    for_each_field(bytes, field.start, field.end, [&](const Field& part) {
      if (part.number == kNode && part.is_message) read_node(bytes, part, file);
      if (part.number == kGraphOutput) has_output = true;
    });
  });
  if (!has_version || !has_output) throw std::runtime_error("no IR version or graph output in it");
  return file;
}

std::string exposing_suffix(const std::string& tensor) {
  return message(kGraph, message(kGraphOutput, message(kValueName, tensor)));
}

}  // namespace vit_export
