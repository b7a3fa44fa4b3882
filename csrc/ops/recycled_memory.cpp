// Implements ops/recycled_memory.h.
#include "ops/recycled_memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

namespace torchquant::ops {
namespace {

// Smaller blocks the system's allocator keeps by itself.
constexpr size_t kSmallestBlock = size_t{128} << 10;

using Block = std::pair<size_t, void*>;  // its size and where it is

class Blocks {
 public:
  // A block of at least this size.
  Block take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.lower_bound(bytes);
    if (found != free_.end() && found->first <= bytes + bytes / 8) {
      const Block block = *found;
      free_.erase(found);
      use(block.first);
      return block;
    }
    const size_t most = std::max(most_in_use_, in_use_ + bytes);
    while (!free_.empty() && in_use_ + bytes + kept() > most) drop_largest();
    void* const memory = c10::alloc_cpu(bytes);  // throws
    use(bytes);
    return {bytes, memory};
  }

  void give_back(Block block) {
    const std::lock_guard lock(mutex_);
    in_use_ -= block.first;
    free_.insert(block);
  }

 private:
  void use(size_t bytes) {
    in_use_ += bytes;
    most_in_use_ = std::max(most_in_use_, in_use_);
  }

  size_t kept() const {
    size_t sum = 0;
    for (const auto& [bytes, block] : free_) sum += bytes;
    return sum;
  }

  void drop_largest() {
    const auto largest = std::prev(free_.end());
    c10::free_cpu(largest->second);
    free_.erase(largest);
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;  // by size
  size_t in_use_ = 0;
  size_t most_in_use_ = 0;
};

// Never destroyed: tensors of it may outlive every static object.
Blocks& blocks() {
  static auto* const instance = new Blocks;
  return *instance;
}

// Behind a storage, so that tensors can be resized and freed like any others.
class RecyclingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* const block = new Block(blocks().take(bytes));
    return {block->second, block, &give_back, at::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void give_back(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    blocks().give_back(*block);
  }
};

}  // namespace

at::Tensor empty_like_recycled(const at::Tensor& dense) {
  if (dense.nbytes() < kSmallestBlock) return at::empty_like(dense);
  static auto* const allocator = new RecyclingAllocator;
  return at::Tensor(at::detail::empty_strided_generic(dense.sizes(), dense.strides(), allocator,
                                                      c10::DispatchKeySet(c10::DispatchKey::CPU), dense.scalar_type()));
}

}  // namespace torchquant::ops
