// Memory aligned for vector loads that is not cleared. Used by packed weights.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace torchquant::kernels {

// Large buffers ask for huge pages: weights that are read once per run cost more page walks than cache misses.
inline constexpr std::size_t kHugePage = std::size_t{1} << 21;

class AlignedDelete {
 public:
  explicit AlignedDelete(std::size_t alignment = 64) : alignment_(alignment) {}
  void operator()(void* p) const { ::operator delete (p, std::align_val_t{alignment_}); }

 private:
  std::size_t alignment_;
};

template <typename T>
using AlignedBuffer = std::unique_ptr<T[], AlignedDelete>;

template <typename T>
AlignedBuffer<T> make_aligned(int64_t elements) {
  const std::size_t wanted = static_cast<std::size_t>(elements) * sizeof(T);
  const std::size_t alignment = wanted >= kHugePage / 2 ? kHugePage : 64;
  const std::size_t bytes = (wanted + alignment - 1) / alignment * alignment;
  void* p = ::operator new (bytes, std::align_val_t{alignment});
#if defined(__linux__)
  if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return AlignedBuffer<T>(static_cast<T*>(p), AlignedDelete(alignment));
}

}  // namespace torchquant::kernels
