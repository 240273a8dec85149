#include "npz.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "half.h"

namespace vit_export {

namespace {

using std::runtime_error;

constexpr std::uint32_t kEndOfDirectory = 0x06054b50, kEndOfDirectory64 = 0x06064b50;
constexpr std::uint32_t kLocator64 = 0x07064b50, kEntry = 0x02014b50, kLocalEntry = 0x04034b50;
constexpr std::uint64_t kMostEntries = 1 << 16, kMostHeaderBytes = 1 << 16;
constexpr std::size_t kMostDimensions = 8;

std::uint32_t crc32(const std::uint8_t* data, std::size_t size) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0u);
      made[i] = value;
    }
    return made;
  }();
  std::uint32_t crc = ~0u;
  for (std::size_t i = 0; i < size; ++i) crc = table[(crc ^ data[i]) & 0xFF] ^ crc >> 8;
  return ~crc;
}

struct Directory {
  std::uint64_t entries = 0, offset = 0;
};

Directory find_directory(const Bytes& bytes) {
  if (bytes.size() < 22) throw runtime_error("it is no zip archive");
  const std::uint64_t last = bytes.size() - 22;
  const std::uint64_t first = last > 0xFFFF ? last - 0xFFFF : 0;  // a comment may follow
  for (std::uint64_t at = last + 1; at-- > first;) {
    if (bytes.number(at, 4) != kEndOfDirectory) continue;
    Directory found{bytes.number(at + 10, 2), bytes.number(at + 16, 4)};
    if (at >= 20 && bytes.number(at - 20, 4) == kLocator64) {
      const std::uint64_t end64 = bytes.number(at - 20 + 8, 8);
      if (bytes.number(end64, 4) != kEndOfDirectory64)
        throw runtime_error("its zip directory is damaged");
      found = {bytes.number(end64 + 32, 8), bytes.number(end64 + 48, 8)};
    }
    return found;
  }
  throw runtime_error("it is no zip archive, or a truncated one");
}

struct Entry {
  std::string name;
  std::uint64_t compression = 0, crc = 0, size = 0, stored = 0, header = 0;
};

// Reads one entry of the directory, and moves `at` behind it.
Entry read_entry(const Bytes& bytes, std::uint64_t& at) {
  if (bytes.number(at, 4) != kEntry) throw runtime_error("its zip directory is damaged");
  Entry entry;
  entry.compression = bytes.number(at + 10, 2);
  entry.crc = bytes.number(at + 16, 4);
  entry.stored = bytes.number(at + 20, 4);
  entry.size = bytes.number(at + 24, 4);
  entry.header = bytes.number(at + 42, 4);
  const std::uint64_t name = bytes.number(at + 28, 2), extra = bytes.number(at + 30, 2);
  entry.name = bytes.text(at + 46, static_cast<std::size_t>(name));
  std::uint64_t field = at + 46 + name;
  const std::uint64_t end = field + extra;
  while (field + 4 <= end) {  // numbers that do not fit into 32 bits are in extra field 1
    const std::uint64_t id = bytes.number(field, 2), size = bytes.number(field + 2, 2);
    std::uint64_t value = field + 4;
    const std::uint64_t value_end = std::min(value + size, end);
    for (std::uint64_t* number : {&entry.size, &entry.stored, &entry.header})
      if (id == 1 && *number == 0xFFFFFFFF && value + 8 <= value_end) {
        *number = bytes.number(value, 8);
        value += 8;
      }
    field += 4 + size;
  }
  at = end + bytes.number(at + 32, 2);
  return entry;
}

std::vector<std::uint8_t> read_data(const Bytes& bytes, const Entry& entry) {
  if (entry.compression != 0 || entry.size != entry.stored)
    throw runtime_error("'" + entry.name + "' is compressed, expected a stored array");
  if (entry.header > bytes.size() || bytes.number(entry.header, 4) != kLocalEntry)
    throw runtime_error("'" + entry.name + "' is not where the zip directory says");
  const std::uint64_t start =
      entry.header + 30 + bytes.number(entry.header + 26, 2) + bytes.number(entry.header + 28, 2);
  if (start > bytes.size() || entry.size > bytes.size() - start)
    throw runtime_error("'" + entry.name + "' claims " + std::to_string(entry.size) +
                        " bytes, and the file has " + std::to_string(bytes.size()));
  std::vector<std::uint8_t> data(static_cast<std::size_t>(entry.size));
  bytes.read(start, data.size(), data.data());
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION  // a fuzzer would find no file with a right one
  const bool checked = false;
#else
  const bool checked = true;
#endif
  if (checked && crc32(data.data(), data.size()) != entry.crc)
    throw runtime_error("'" + entry.name + "' has a wrong checksum");
  return data;
}

// Reads the header of an .npy file, a Python dict such as
// {'descr': '<f8', 'fortran_order': False, 'shape': (4, 1000), }
class HeaderReader {
 public:
  explicit HeaderReader(const std::string& text) : text_(text) {}

  void read(NpyArray& array, bool& fortran_order) {
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!skip('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr") {
        descr(quoted(), array);
        has_descr = true;
      } else if (key == "fortran_order") {
        fortran_order = boolean();
        has_order = true;
      } else if (key == "shape") {
        shape(array.shape);
        has_shape = true;
      } else {
        damaged();
      }
      if (!skip(',')) {
        expect('}');
        break;
      }
    }
    if (!has_descr || !has_order || !has_shape) damaged();
  }

 private:
  [[noreturn]] static void damaged() { throw runtime_error("an array has a damaged header"); }

  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }

  bool skip(char c) {
    blanks();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!skip(c)) damaged();
  }

  std::string quoted() {
    expect('\'');
    const std::size_t end = text_.find('\'', at_);
    if (end == std::string::npos) damaged();
    const std::string text = text_.substr(at_, end - at_);
    at_ = end + 1;
    return text;
  }

  bool boolean() {
    blanks();
    for (const bool value : {false, true}) {
      const std::string word = value ? "True" : "False";
      if (text_.compare(at_, word.size(), word) == 0) {
        at_ += word.size();
        return value;
      }
    }
    damaged();
  }

  std::int64_t whole() {
    blanks();
    std::int64_t value = 0;
    const std::size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = value * 10 + (text_[at_] - '0');
      if (value > std::int64_t{1} << 40) damaged();
    }
    if (at_ == start) damaged();
    return value;
  }

  void shape(std::vector<std::int64_t>& sizes) {
    expect('(');
    while (!skip(')')) {
      sizes.push_back(whole());
      if (sizes.size() > kMostDimensions) damaged();
      if (!skip(',')) {
        expect(')');
        break;
      }
    }
  }

  static void descr(const std::string& descr, NpyArray& array) {
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const bool is_known = descr.size() >= 3 && descr.size() <= 8 &&
                          (descr[0] == '<' || descr[0] == '|') &&
                          std::string("fiubU").find(descr[1]) != std::string::npos &&
                          std::all_of(descr.begin() + 2, descr.end(), is_digit);
    if (!is_known) throw runtime_error("an array is of type '" + descr.substr(0, 20) + "'");
    array.kind = descr[1];
    array.item_bytes = std::stoi(descr.substr(2)) * (array.kind == 'U' ? 4 : 1);
    const int n = array.item_bytes;
    const bool is_number = n == 1 || n == 2 || n == 4 || n == 8;
    if (array.kind == 'U'
            ? n < 4
            : !is_number || (array.kind == 'f' && n == 1) || (array.kind == 'b' && n != 1))
      throw runtime_error("an array is of type '" + descr + "'");
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

// Puts the elements of an array whose first dimension changes fastest into C order.
void to_c_order(NpyArray& array) {
  const auto item = static_cast<std::size_t>(array.item_bytes);
  std::vector<std::uint8_t> ordered(array.data.size());
  std::vector<std::int64_t> index(array.shape.size(), 0);
  for (std::size_t to = 0; to < ordered.size(); to += item) {
    std::size_t from = 0, step = 1;
    for (std::size_t d = 0; d < index.size(); ++d) {
      from += static_cast<std::size_t>(index[d]) * step;
      step *= static_cast<std::size_t>(array.shape[d]);
    }
    std::memcpy(&ordered[to], &array.data[from * item], item);
    for (std::size_t d = index.size(); d-- > 0;) {
      if (++index[d] < array.shape[d]) break;
      index[d] = 0;
    }
  }
  array.data.swap(ordered);
}

NpyArray read_npy(std::vector<std::uint8_t> file) {
  const MemoryBytes bytes(file.data(), file.size());
  if (bytes.text(0, 6) != "\x93NUMPY") throw runtime_error("it is no array of numpy");
  const int length_bytes = bytes.number(6, 1) == 1 ? 2 : 4;
  const std::uint64_t length = bytes.number(8, length_bytes);
  if (length > kMostHeaderBytes) throw runtime_error("an array has a damaged header");
  const std::uint64_t start = 8 + static_cast<std::uint64_t>(length_bytes) + length;
  NpyArray array;
  bool fortran_order = false;
  const std::string header = bytes.text(start - length, static_cast<std::size_t>(length));
  HeaderReader(header).read(array, fortran_order);
  std::uint64_t size = static_cast<std::uint64_t>(array.item_bytes);
  for (const std::int64_t side : array.shape) {
    if (side != 0 && size > (std::uint64_t{1} << 50) / static_cast<std::uint64_t>(side))
      throw runtime_error("an array claims more than 2^50 bytes");
    size *= static_cast<std::uint64_t>(side);
  }
  if (size != bytes.size() - start)
    throw runtime_error("an array of " + array.str() + " has " +
                        std::to_string(bytes.size() - start) + " bytes of data");
  file.erase(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(start));
  array.data = std::move(file);
  if (fortran_order && array.shape.size() > 1) to_c_order(array);
  return array;
}

template <typename From, typename To>
std::vector<To> converted(const NpyArray& array) {
  std::vector<To> values(array.count());
  for (std::size_t i = 0; i < values.size(); ++i) {
    From value;
    std::memcpy(&value, &array.data[i * sizeof value], sizeof value);
    values[i] = static_cast<To>(value);
  }
  return values;
}

template <typename To>
std::vector<To> from_integers(const NpyArray& array) {
  const bool is_signed = array.kind == 'i';
  switch (array.item_bytes) {
    case 1:
      return is_signed ? converted<std::int8_t, To>(array) : converted<std::uint8_t, To>(array);
    case 2:
      return is_signed ? converted<std::int16_t, To>(array) : converted<std::uint16_t, To>(array);
    case 4:
      return is_signed ? converted<std::int32_t, To>(array) : converted<std::uint32_t, To>(array);
    default:
      return is_signed ? converted<std::int64_t, To>(array) : converted<std::uint64_t, To>(array);
  }
}

void append_utf8(std::uint32_t c, std::string& text) {
  const auto add = [&text](std::uint32_t byte) { text += static_cast<char>(byte); };
  if (c < 0x80) {
    add(c);
  } else if (c < 0x800) {
    add(0xC0 | c >> 6);
    add(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    add(0xE0 | c >> 12);
    add(0x80 | (c >> 6 & 0x3F));
    add(0x80 | (c & 0x3F));
  } else if (c < 0x110000) {
    add(0xF0 | c >> 18);
    add(0x80 | (c >> 12 & 0x3F));
    add(0x80 | (c >> 6 & 0x3F));
    add(0x80 | (c & 0x3F));
  } else {
    throw runtime_error("a text holds a character beyond Unicode");
  }
}

}  // namespace

std::size_t NpyArray::count() const {
  std::size_t count = 1;
  for (const std::int64_t side : shape) count *= static_cast<std::size_t>(side);
  return count;
}

std::vector<double> NpyArray::doubles() const {
  if (kind != 'f') return from_integers<double>(*this);
  if (item_bytes == 8) return converted<double, double>(*this);
  if (item_bytes == 4) return converted<float, double>(*this);
  std::vector<double> values;
  for (const std::uint16_t half : converted<std::uint16_t, std::uint16_t>(*this))
    values.push_back(from_half(half));
  return values;
}

std::vector<std::int64_t> NpyArray::integers() const { return from_integers<std::int64_t>(*this); }

std::vector<std::string> NpyArray::texts() const {
  const auto length = static_cast<std::size_t>(item_bytes / 4);
  std::vector<std::string> all(count());
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t k = 0; k < length; ++k) {
      std::uint32_t c;
      std::memcpy(&c, &data[(i * length + k) * 4], 4);
      if (c == 0) break;  // filled up to the longest text
      append_utf8(c, all[i]);
    }
  return all;
}

std::string NpyArray::str() const {
  std::string sizes;
  for (const std::int64_t side : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(side);
  const std::string name = kind == 'f'   ? "float"
                           : kind == 'i' ? "int"
                           : kind == 'u' ? "uint"
                           : kind == 'b' ? "bool"
                                         : "str";
  const bool has_bits = kind == 'f' || kind == 'i' || kind == 'u';
  return name + (has_bits ? std::to_string(item_bytes * 8) : "") + " (" + sizes + ")";
}

std::map<std::string, NpyArray> read_npz(const Bytes& bytes) {
  const Directory directory = find_directory(bytes);
  if (directory.entries > kMostEntries)
    throw runtime_error("it claims " + std::to_string(directory.entries) + " entries");
  std::map<std::string, NpyArray> arrays;
  std::uint64_t at = directory.offset, total = 0;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    const Entry entry = read_entry(bytes, at);
    total += entry.size;  // entries that share their bytes would multiply them
    if (total > bytes.size() || entry.size > bytes.size())
      throw runtime_error("its entries claim more bytes than the file has");
    std::string name = entry.name;
    if (name.size() > 4 && name.compare(name.size() - 4, 4, ".npy") == 0)
      name.resize(name.size() - 4);
    try {
      arrays[name] = read_npy(read_data(bytes, entry));
    } catch (const runtime_error& error) {
      throw runtime_error(name + ": " + error.what());
    }
  }
  return arrays;
}

}  // namespace vit_export
