#include "image.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "decoders.hpp"

namespace image {
namespace {

bool starts_with(const std::uint8_t* data, std::size_t size, const std::string& prefix) {
  return size >= prefix.size() && std::memcmp(data, prefix.data(), prefix.size()) == 0;
}

// Opening a pipe blocks, and a device may never end: only a regular file is opened.
void check_regular_file(const std::string& path) {
  struct stat status;
  if (path.empty()) throw Error("an image was given as an empty path ''");
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) throw Error(path + ": no such image");
    throw Error(path + ": cannot be read (" + std::generic_category().message(errno) + ")");
  }
  if (S_ISDIR(status.st_mode)) throw Error(path + ": is a folder, expected an image");
  if (!S_ISREG(status.st_mode)) {
    throw Error(path + ": is a pipe, socket or device, expected an image");
  }
}

}  // namespace

Image::Image(std::uint32_t columns, std::uint32_t rows)
    : width(columns), height(rows), rgb(new std::uint8_t[std::size_t{3} * columns * rows]) {}

void check_size(std::uint64_t width, std::uint64_t height) {
  if (width == 0 || height == 0) throw Error("has no pixels, expected at least one");
  if (width * height > max_pixels) {
    throw Error("has " + std::to_string(width) + " x " + std::to_string(height) +
                " pixels, expected at most 178,956,970 (a decompression bomb is larger)");
  }
}

Image decode(const std::uint8_t* data, std::size_t size, const std::string& name) {
  if (size == 0) throw Error(name + ": is empty (0 bytes), expected an image");
  const bool is_jpeg = starts_with(data, size, "\xff\xd8\xff");
  if (!is_jpeg && !starts_with(data, size, "\x89PNG\r\n\x1a\n")) {
    throw Error(name + ": is not an image in a supported format; expected one of JPEG, PNG");
  }
  try {
    Stored stored = is_jpeg ? decode_jpeg(data, size) : decode_png(data, size);
    const int turn = orientation(stored);
    return upright(std::move(stored.image), turn);
  } catch (const Error& error) {
    throw Error(name + ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw Error(name + ": cannot be decoded (not enough memory)");
  }
}

Image read(const std::string& path) {
  check_regular_file(path);
  std::ifstream stream(path, std::ios::binary);
  std::vector<std::uint8_t> content;
  if (stream) {
    std::vector<char> part(1 << 20);
    while (stream.read(part.data(), static_cast<std::streamsize>(part.size())) ||
           stream.gcount() > 0) {
      content.insert(content.end(), part.begin(), part.begin() + stream.gcount());
    }
  }
  if (!stream.eof()) {
    throw Error(path + ": cannot be read (" + std::generic_category().message(errno) + ")");
  }
  return decode(content.data(), content.size(), path);
}

}  // namespace image
