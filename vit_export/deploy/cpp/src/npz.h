// Read an .npz file: numpy's arrays in a zip archive, stored without compression.
//
// The formats are specified in PKWARE's APPNOTE and in numpy's `numpy.lib.format`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bytes.h"

namespace vit_export {

struct NpyArray {
  char kind = 'f';     // numpy's: f float, i integer, u unsigned, b bool, U text
  int item_bytes = 8;  // of an element; for text 4 per character
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> data;  // in C order, little-endian

  std::size_t count() const;
  std::vector<double> doubles() const;         // of f, i, u and b
  std::vector<std::int64_t> integers() const;  // of i, u and b
  std::vector<std::string> texts() const;      // of U, as UTF-8
  std::string str() const;                     // e.g. "float64 (4, 1000)"
};

// Reads every array by its name. Throws std::runtime_error or std::out_of_range where the bytes
// are no such file; memory is allocated only for what is really there.
std::map<std::string, NpyArray> read_npz(const Bytes& bytes);

}  // namespace vit_export
