#include "archive/file_sink.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "c10/util/Exception.h"

namespace torchquant::archive {
namespace {

// A link keeps pointing to the file that is replaced behind it.
std::string behind_links(const std::string& path) {
  std::error_code error;
  const auto target = std::filesystem::canonical(path, error);
  return error ? path : target.string();
}

// Unique among processes and threads that save to the same path.
std::string beside(const std::string& path) {
  static std::atomic<int> counter{0};
  return path + ".saving-" + std::to_string(getpid()) + "-" + std::to_string(counter++);
}

// A rename is only durable once its directory is on the disk. Some file systems refuse this; the file is whole anyway.
void flush_directory_of(const std::string& path) {
  const auto directory = std::filesystem::path(path).parent_path();
  const int descriptor = open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  fsync(descriptor);
  close(descriptor);
}

}  // namespace

FileSink::FileSink(std::string path) : path_(behind_links(path)), temporary_path_(beside(path_)) {
  const auto status = std::filesystem::status(path_);
  // A rename would put a file in the place of a device.
  TORCH_CHECK(!std::filesystem::exists(status) || std::filesystem::is_regular_file(status),
              "torchquant::save: cannot write '", path_, "': it exists and is no regular file");
  descriptor_ = open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  TORCH_CHECK(descriptor_ >= 0, "torchquant::save: cannot write '", path_, "': ", std::strerror(errno));
}

FileSink::~FileSink() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_path_.empty()) unlink(temporary_path_.c_str());
}

void FileSink::keep_error() noexcept {
  if (error_ == 0) error_ = errno;
}

void FileSink::write(const void* data, size_t size) noexcept {
  const char* bytes = static_cast<const char*>(data);
  while (size > 0 && error_ == 0) {
    const ssize_t written = ::write(descriptor_, bytes, size);
    if (written < 0) {
      if (errno != EINTR) keep_error();
      continue;
    }
    bytes += written;
    size -= static_cast<size_t>(written);
  }
}

void FileSink::commit() {
  if (error_ == 0 && fsync(descriptor_) != 0) keep_error();
  if (close(std::exchange(descriptor_, -1)) != 0) keep_error();
  if (error_ == 0 && std::rename(temporary_path_.c_str(), path_.c_str()) != 0) keep_error();
  TORCH_CHECK(error_ == 0, "torchquant::save: cannot write '", path_, "': ", std::strerror(error_),
              "; what was there before is unchanged");
  temporary_path_.clear();
  flush_directory_of(path_);
}

}  // namespace torchquant::archive
