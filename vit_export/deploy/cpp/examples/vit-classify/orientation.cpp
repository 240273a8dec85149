// EXIF orientation: find it in EXIF or XMP as Pillow does, and undo it.
#include <algorithm>
#include <cctype>
#include <utility>

#include "decoders.hpp"

namespace image {
namespace {

constexpr unsigned orientation_tag = 0x0112;

// Bytes of one value, by TIFF type; 0 for a type that Pillow does not know.
constexpr unsigned sizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
enum Type : unsigned { Short = 3, Long = 4, SignedByte = 6, SignedShort = 8, SignedLong = 9 };

// Result of looking for the tag: damaged EXIF also hides what XMP says.
enum class Found { nothing, damaged, value };

// Numbers of a TIFF structure, in the byte order that its header names.
class Tiff {
 public:
  Tiff(const std::string& bytes, bool big_endian) : bytes_(bytes), big_endian_(big_endian) {}

  bool holds(std::uint64_t offset, std::uint64_t count) const {
    return offset + count <= bytes_.size();
  }

  std::uint32_t number(std::size_t offset, unsigned count) const {
    std::uint32_t value = 0;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned place = big_endian_ ? i : count - 1 - i;
      value = value << 8 | static_cast<std::uint8_t>(bytes_[offset + place]);
    }
    return value;
  }

 private:
  const std::string& bytes_;
  bool big_endian_;
};

bool is_integer(unsigned type) {
  return type == Short || type == Long || type == SignedByte || type == SignedShort ||
         type == SignedLong;
}

Found find_in_exif(std::string exif, std::uint32_t& value) {
  const std::string prefix("Exif\0\0", 6);
  for (int i = 0; i < 2 && exif.compare(0, prefix.size(), prefix) == 0; ++i) {
    exif.erase(0, prefix.size());
  }
  if (exif.empty()) return Found::nothing;
  const bool big_endian = exif.compare(0, 2, "MM") == 0;
  const std::string version = exif.substr(std::min<std::size_t>(2, exif.size()), 2);
  const bool has_header = (big_endian || exif.compare(0, 2, "II") == 0) &&
                          (version == std::string("\0*", 2) || version == std::string("*\0", 2));
  if (!has_header || exif.size() < 8) return Found::damaged;
  const Tiff tiff(exif, big_endian);
  std::uint64_t entry = tiff.number(4, 4);
  if (!tiff.holds(entry, 2)) return Found::nothing;
  const unsigned count = tiff.number(entry, 2);
  entry += 2;
  std::uint64_t total = 0;  // bytes of all values that stand outside the table
  for (unsigned i = 0; i < count && tiff.holds(entry, 12); ++i, entry += 12) {
    const unsigned type = tiff.number(entry + 2, 2);
    const unsigned unit = type < std::size(sizes) ? sizes[type] : 0;
    const std::uint64_t size = std::uint64_t{unit} * tiff.number(entry + 4, 4);
    std::uint64_t place = entry + 8;
    if (size == 0) continue;
    if (size > 4) {
      if ((total += size) > exif.size()) continue;
      place = tiff.number(entry + 8, 4);
      if (!tiff.holds(place, size)) return Found::nothing;
    }
    if (tiff.number(entry, 2) == orientation_tag) {
      value = is_integer(type) ? tiff.number(place, unit) : 1;
      return Found::value;
    }
  }
  return Found::nothing;
}

// The digit in `tiff:Orientation="6"` or `<tiff:Orientation>6<`; 1 where there is none.
int find_in_xmp(const std::string& xmp) {
  const std::string name = "tiff:Orientation";
  for (auto at = xmp.find(name); at != std::string::npos; at = xmp.find(name, at + 1)) {
    const std::size_t end = at + name.size();
    const std::size_t digit = xmp.compare(end, 2, "=\"") == 0 ? end + 2
                              : xmp.compare(end, 1, ">") == 0 ? end + 1
                                                              : xmp.size();
    if (digit < xmp.size() && std::isdigit(static_cast<unsigned char>(xmp[digit])) != 0) {
      return xmp[digit] - '0';
    }
  }
  return 1;
}

}  // namespace

int orientation(const Stored& stored) {
  std::uint32_t value = 1;
  const Found found = stored.has_exif ? find_in_exif(stored.exif, value) : Found::nothing;
  if (found == Found::damaged) return 1;
  if (found == Found::nothing) value = static_cast<std::uint32_t>(find_in_xmp(stored.xmp));
  return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
}

Image upright(Image stored, int orientation) {
  if (orientation <= 1) return stored;
  const std::ptrdiff_t width = stored.width, height = stored.height, row = 3 * width;
  // where the first pixel comes from, and the steps to the pixel on its right and below it
  const bool from_right = orientation == 2 || orientation == 3 || orientation >= 7;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const std::ptrdiff_t across = from_right ? -3 : 3;
  const std::ptrdiff_t down = from_bottom ? -row : row;
  const bool swaps_sides = orientation >= 5;
  const std::ptrdiff_t right = swaps_sides ? down : across, below = swaps_sides ? across : down;
  const std::uint8_t* first = stored.rgb.get() + (from_right ? 3 * (width - 1) : 0) +
                              (from_bottom ? row * (height - 1) : 0);
  Image turned(swaps_sides ? stored.height : stored.width,
               swaps_sides ? stored.width : stored.height);
  std::uint8_t* target = turned.rgb.get();
  for (std::ptrdiff_t y = 0; y < static_cast<std::ptrdiff_t>(turned.height); ++y) {
    const std::uint8_t* source = first + y * below;
    for (std::uint32_t x = 0; x < turned.width; ++x, target += 3) {
      std::copy_n(source + static_cast<std::ptrdiff_t>(x) * right, 3, target);
    }
  }
  return turned;
}

}  // namespace image
