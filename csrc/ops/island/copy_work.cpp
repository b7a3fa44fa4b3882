// Copies and borders; see copy_work.h.
#include "ops/island/copy_work.h"

#include <algorithm>
#include <cstring>

#include "ops/island/kernel_work.h"
#include "ops/island/plan_builder.h"

namespace torchquant::island {
namespace {

// Images of codes.
std::unique_ptr<Work> copy_image(const at::Tensor& from, Place from_place, const at::Tensor& to, Place to_place,
                                 int threads) {
  kernels::CopyImageArgs args{};
  args.channels = to.size(1);
  args.x_layout = *image_layout(from);
  args.out_layout = *image_layout(to);
  const Slices slices(to.size(0) * args.out_layout.height, args.out_layout.width * args.channels / 16, threads);
  return std::make_unique<KernelWork<kernels::CopyImageArgs>>(&kernels::QuantizedKernels::copy_image, args, from_place,
                                                              to_place, slices);
}

// Any strides. What the last dimensions hold densely on both sides is copied at once, a run: elements that move one by
// one cost a division per dimension.
class StridedCopy final : public Work {
 public:
  StridedCopy(const at::Tensor& from, Place from_place, const at::Tensor& to, Place to_place, int threads)
      : from_place_(from_place),
        to_place_(to_place),
        sizes_(to.sizes().vec()),
        from_strides_(from.strides().vec()),
        to_strides_(to.strides().vec()) {
    int64_t run = 1;
    while (!sizes_.empty() && (sizes_.back() == 1 || (from_strides_.back() == run && to_strides_.back() == run))) {
      run *= sizes_.back();
      for (std::vector<int64_t>* dimension : {&sizes_, &from_strides_, &to_strides_}) dimension->pop_back();
    }
    element_size_ = static_cast<int64_t>(to.element_size());
    run_bytes_ = run * element_size_;
    slices_ = Slices(to.numel() / run, 1 + run_bytes_ / 64, threads);
  }

  int64_t tasks() const override { return slices_.count(); }

  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    const std::byte* from = memory.at(from_place_);
    std::byte* to = memory.at(to_place_);
    const kernels::IndexRange items = slices_.items(tasks);
    for (int64_t i = items.begin; i < items.end; ++i) {
      std::memcpy(to + offset(i, to_strides_) * element_size_, from + offset(i, from_strides_) * element_size_,
                  run_bytes_);
    }
  }

 private:
  int64_t offset(int64_t index, const std::vector<int64_t>& strides) const {
    int64_t sum = 0;
    for (size_t dim = sizes_.size(); dim-- > 0;) {
      sum += index % sizes_[dim] * strides[dim];
      index /= sizes_[dim];
    }
    return sum;
  }

  Place from_place_, to_place_;
  std::vector<int64_t> sizes_, from_strides_, to_strides_;  // of the runs
  int64_t element_size_;
  int64_t run_bytes_;
  Slices slices_;
};

}  // namespace

std::unique_ptr<Work> make_copy(const at::Tensor& from, Place from_place, const at::Tensor& to, Place to_place,
                                int threads) {
  if (to.element_size() == 1 && image_layout(from) && image_layout(to)) {
    return copy_image(from, from_place, to, to_place, threads);
  }
  return std::make_unique<StridedCopy>(from, from_place, to, to_place, threads);
}

void BorderWork::run(const Memory& memory, kernels::IndexRange tasks) const {
  kernels::fill_border(memory.at(place_), layout_, channels_, border_, code_, tasks);
}

Slices::Slices(int64_t items, int64_t item_cost, int threads) : items_(items) {
  constexpr int64_t kTasksPerThread = 4;
  constexpr int64_t kSmallestTask = 4096;
  const int64_t for_balance =
      threads == 1 ? items : (items + threads * kTasksPerThread - 1) / (threads * kTasksPerThread);
  const int64_t worth_it = kSmallestTask / std::max<int64_t>(item_cost, 1) + 1;
  each_ = std::max<int64_t>(1, std::max(for_balance, worth_it));
}

kernels::IndexRange Slices::items(kernels::IndexRange tasks) const {
  return {tasks.begin * each_, std::min(tasks.end * each_, items_)};
}

}  // namespace torchquant::island
