// Work that moves values without changing them: strided copies and the borders of images.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "kernels/image.h"
#include "kernels/integer_conv.h"
#include "ops/island/work.h"

namespace torchquant::island {

// Copies between two layouts of the same sizes and type; the tensors only describe them.
std::unique_ptr<Work> make_copy(const at::Tensor& from, Place from_place, const at::Tensor& to, Place to_place,
                                int threads);

// Fills the border around each image of a buffer with one code.
class BorderWork final : public Work {
 public:
  BorderWork(Place place, const kernels::ImageLayout& layout, int64_t images, int64_t channels,
             const kernels::Border& border, int32_t code)
      : place_(place), layout_(layout), images_(images), channels_(channels), border_(border), code_(code) {}

  int64_t tasks() const override { return images_; }
  void run(const Memory& memory, kernels::IndexRange tasks) const override;

 private:
  Place place_;
  kernels::ImageLayout layout_;
  int64_t images_;
  int64_t channels_;
  kernels::Border border_;
  int32_t code_;
};

}  // namespace torchquant::island
