// One entry of the integer kernels' table as work of a plan: from the image at one place to the image at another. Made
// by the step kinds and copies of this folder.
#pragma once

#include <memory>
#include <utility>

#include "kernels/quantized_kernels.h"
#include "ops/island/work.h"

namespace torchquant::island {

// `args` lack only the addresses of x and out. `owned` keeps alive what else they point to.
template <typename Args>
class KernelWork final : public Work {
 public:
  using Entry = void (*kernels::QuantizedKernels::*)(const Args&, kernels::IndexRange);

  KernelWork(Entry entry, const Args& args, Place x, Place out, const Slices& slices,
             std::shared_ptr<const void> owned = nullptr)
      : entry_(entry), args_(args), x_(x), out_(out), slices_(slices), owned_(std::move(owned)) {}

  int64_t tasks() const override { return slices_.count(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    Args args = args_;
    args.x = reinterpret_cast<decltype(args.x)>(memory.at(x_));
    args.out = reinterpret_cast<decltype(args.out)>(memory.at(out_));
    (kernels::quantized_kernels().*entry_)(args, slices_.items(tasks));
  }

 private:
  Entry entry_;
  Args args_;
  Place x_, out_;
  Slices slices_;
  std::shared_ptr<const void> owned_;
};

}  // namespace torchquant::island
