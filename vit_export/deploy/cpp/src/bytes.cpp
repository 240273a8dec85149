#include "bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "failure.h"

namespace vit_export {

namespace {
constexpr std::size_t kWindowBytes = 1 << 16;
}

void Bytes::check(std::uint64_t offset, std::uint64_t count) const {
  if (offset > size() || count > size() - offset)
    throw std::out_of_range("it ends at byte " + std::to_string(size()) + ", before byte " +
                            std::to_string(offset) + " + " + std::to_string(count));
}

std::string Bytes::text(std::uint64_t offset, std::size_t count) const {
  check(offset, count);  // before memory is allocated
  std::string text(count, '\0');
  read(offset, count, text.data());
  return text;
}

std::uint64_t Bytes::number(std::uint64_t offset, int bytes) const {
  std::uint8_t raw[8] = {};
  read(offset, static_cast<std::size_t>(bytes), raw);
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | raw[i];
  return value;
}

void MemoryBytes::read(std::uint64_t offset, std::size_t count, void* to) const {
  check(offset, count);
  if (count) std::memcpy(to, data_ + offset, count);
}

FileBytes::FileBytes(const std::string& path, const std::string& what) : path_(path) {
  file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not block
  struct stat status = {};
  if (file_ < 0 || ::fstat(file_, &status) != 0) {
    const int reason = errno;
    if (file_ >= 0) ::close(file_);
    if (reason == ENOENT) throw artifact_error(path + ": no such " + what);
    throw artifact_error(path + ": cannot be read (" + std::strerror(reason) + ")");
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(file_);
    const char* const kind = S_ISDIR(status.st_mode) ? "folder" : "pipe, socket or device";
    throw artifact_error(path + ": is a " + kind + ", expected a " + what);
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

FileBytes::~FileBytes() { ::close(file_); }

void FileBytes::read(std::uint64_t offset, std::size_t count, void* to) const {
  check(offset, count);
  auto* target = static_cast<std::uint8_t*>(to);
  if (count < kWindowBytes) {
    const bool inside = offset >= window_start_ && offset + count <= window_start_ + window_.size();
    if (!inside) {
      window_.resize(kWindowBytes);
      window_.resize(read_some(offset, kWindowBytes, window_.data()));
      window_start_ = offset;
      if (window_.size() < count)
        throw artifact_error(path_ + ": became shorter while it was read");
    }
    if (count) std::memcpy(target, window_.data() + (offset - window_start_), count);
  } else if (read_some(offset, count, target) < count) {
    throw artifact_error(path_ + ": became shorter while it was read");
  }
}

std::size_t FileBytes::read_some(std::uint64_t offset, std::size_t count, std::uint8_t* to) const {
  std::size_t done = 0;
  while (done < count) {
    const ssize_t got = ::pread(file_, to + done, count - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw artifact_error(path_ + ": cannot be read (" + std::strerror(errno) + ")");
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

}  // namespace vit_export
