// A file that replaces another one only once it is whole. Called by the archive writer.
#pragma once

#include <cstddef>
#include <string>

namespace torchquant::archive {

// Writes beside `path` and renames on commit(); until then, and after any failure, the file at `path` is untouched.
class FileSink {
 public:
  // Throws c10::Error if nothing can be created in the directory of `path`.
  explicit FileSink(std::string path);
  ~FileSink();  // removes what was not committed
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;

  // Never throws: PyTorchStreamWriter's destructor writes again after a failure and would end the process. The first
  // failure is kept for commit().
  void write(const void* data, size_t size) noexcept;

  // Flushes to the disk and puts the file in place, or throws c10::Error saying why not.
  void commit();

 private:
  void keep_error() noexcept;

  std::string path_;
  std::string temporary_path_;
  int descriptor_ = -1;
  int error_ = 0;  // errno of the first failure
};

}  // namespace torchquant::archive
