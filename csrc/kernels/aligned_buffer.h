// Memory aligned to a cache line that is not cleared. Used by the packed weights and by benchmarks.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace torchquant::kernels {

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete (p, std::align_val_t{64}); }
};

template <typename T>
using AlignedBuffer = std::unique_ptr<T[], AlignedDelete>;

template <typename T>
AlignedBuffer<T> make_aligned(int64_t elements) {
  return AlignedBuffer<T>(static_cast<T*>(::operator new (elements * sizeof(T), std::align_val_t{64})));
}

}  // namespace torchquant::kernels
