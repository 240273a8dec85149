// Bytes of a file or of memory, read by offset with bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vit_export {

class Bytes {
 public:
  virtual ~Bytes() = default;

  virtual std::uint64_t size() const = 0;
  // Copies `count` bytes from `offset` on; throws std::out_of_range beyond the end.
  virtual void read(std::uint64_t offset, std::size_t count, void* to) const = 0;

  std::string text(std::uint64_t offset, std::size_t count) const;
  // Reads a little-endian number of 1 to 8 bytes.
  std::uint64_t number(std::uint64_t offset, int bytes) const;

 protected:
  void check(std::uint64_t offset, std::uint64_t count) const;
};

// Bytes in memory; they are not copied.
class MemoryBytes : public Bytes {
 public:
  MemoryBytes(const void* data, std::size_t size)
      : data_(static_cast<const std::uint8_t*>(data)), size_(size) {}
  std::uint64_t size() const override { return size_; }
  void read(std::uint64_t offset, std::size_t count, void* to) const override;

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

// Bytes of a regular file. It is read and not mapped: one that is truncated while it is read gives
// an error, not a signal. One object is for one thread.
class FileBytes : public Bytes {
 public:
  // `what` names the file's kind in messages, e.g. "golden file".
  FileBytes(const std::string& path, const std::string& what);
  ~FileBytes() override;
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  std::uint64_t size() const override { return size_; }
  void read(std::uint64_t offset, std::size_t count, void* to) const override;

 private:
  std::size_t read_some(std::uint64_t offset, std::size_t count, std::uint8_t* to) const;

  std::string path_;
  int file_ = -1;
  std::uint64_t size_ = 0;
  mutable std::vector<std::uint8_t> window_;  // the part of the file that was read last
  mutable std::uint64_t window_start_ = 0;
};

}  // namespace vit_export
