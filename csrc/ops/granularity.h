// Turns a tensor of any strides and granularity into the runs and rows of contiguous elements that kernels take, split
// over threads. Called by the CPU kernels of the ops; param_layout() also by the CUDA ones.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "export.h"
#include "kernels/fake_quantize.h"
#include "kernels/param_layout.h"
#include "ops/checks.h"

namespace torchquant::ops {

using kernels::ParamLayout;

// x itself where its elements fill their memory without gaps or overlaps (contiguous, channels-last, any permutation of
// those), else a copy that does. Either has the strides of empty_like(x), so an output of empty_like matches it element
// by element.
TQ_API at::Tensor to_dense(const at::Tensor& x);

// `tensor` with the element order of `dense`; both have the same shape.
TQ_API at::Tensor with_layout_of(const at::Tensor& tensor, const at::Tensor& dense);

// Memory order of the parameters of a dense x, whose granularity was checked.
TQ_API ParamLayout param_layout(const at::Tensor& dense, const Granularity& granularity);

// Contiguous fp32 parameters in the memory order that param_layout() describes.
TQ_API at::Tensor params_in_memory_order(const at::Tensor& params, const at::Tensor& dense,
                                         const Granularity& granularity);

// The inverse: contiguous parameters in their documented shape, from values in memory order.
TQ_API at::Tensor params_from_memory_order(const at::Tensor& values, const at::Tensor& dense,
                                           const Granularity& granularity);

// Shape of the parameters: [1], [channels], or x's with `axis` divided by group_size. Serves Meta kernels too.
TQ_API c10::SymDimVector params_shape(const at::Tensor& x, const Granularity& granularity);

// float32, bfloat16 or float16, which check_float() made sure of.
TQ_API kernels::FloatType float_type(const at::Tensor& tensor);

// How the elements of a dense tensor are cut into kernel calls.
//   runs  consecutive elements that share one parameter: run r uses parameter r % params
//   rows  consecutive elements that each have their own, parameters laid out in `slots` (an array as long as one or
//         several rows): row r uses slots [r / rows_per_slot_row * length, + length)
struct Pieces {
  bool rows;
  int64_t numel;
  int64_t length;  // elements of a run or a row; the last row may be shorter
  int64_t params;
  int64_t rows_per_slot_row;
  int64_t slots;
  ParamLayout layout;

  int64_t count() const { return length == 0 ? 0 : (numel + length - 1) / length; }
  int64_t param_of_slot(int64_t slot) const {
    return layout.group_size > 0 ? slot : slot / layout.inner % layout.axis_size;
  }
};

TQ_API Pieces cut_into_pieces(const ParamLayout& layout);

// Elements that are worth a second thread.
inline constexpr int64_t kGrainElements = 32768;

// Elements of one task of a reduction. Tasks depend on the shape alone and are combined in order, so results do not
// depend on the number of threads.
inline constexpr int64_t kReductionTask = 4 * kernels::kReductionBlock;

// Calls piece(begin, n, param or first slot) over all elements, in parallel. For work that has no result to combine.
template <typename Piece>
void for_each_piece(const Pieces& pieces, const Piece& piece) {
  constexpr int64_t kUnit = 1024;
  at::parallel_for(0, at::divup(pieces.numel, kUnit), kGrainElements / kUnit, [&](int64_t first, int64_t last) {
    int64_t begin = first * kUnit;
    const int64_t end = std::min(last * kUnit, pieces.numel);
    int64_t index = begin / pieces.length;
    int64_t offset = begin % pieces.length;
    for (; begin < end; ++index, offset = 0) {
      const int64_t n = std::min(pieces.length - offset, end - begin);
      const int64_t param = pieces.rows ? index / pieces.rows_per_slot_row * pieces.length + offset
                                        : index % pieces.params;
      piece(begin, n, param);
      begin += n;
    }
  });
}

// Runs: reduces parts of runs in parallel with part(begin, n, param) -> Partial, then calls combine(param, partial) for
// each part in order.
template <typename Partial, typename Part, typename Combine>
void reduce_runs(const Pieces& pieces, const Part& part, const Combine& combine) {
  const int64_t parts_per_run = at::divup(pieces.length, kReductionTask);
  const int64_t tasks = pieces.count() * parts_per_run;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::clamp<int64_t>(pieces.length, 1, kReductionTask));
  const auto partials = std::make_unique_for_overwrite<Partial[]>(tasks);
  at::parallel_for(0, tasks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t run = task / parts_per_run;
      const int64_t offset = task % parts_per_run * kReductionTask;
      const int64_t n = std::min(kReductionTask, pieces.length - offset);
      partials[task] = part(run * pieces.length + offset, n, run % pieces.params);
    }
  });
  for (int64_t task = 0; task < tasks; ++task) combine(task / parts_per_run % pieces.params, partials[task]);
}

// Rows: how many independent copies of the slots a reduction accumulates into, so that rows of one slot row can be
// shared out. Depends on the shape alone.
TQ_API int64_t accumulator_copies(const Pieces& pieces);

// Rows: calls row(begin, n, slot, accumulator) where accumulator = copy * slots + slot; calls that share an accumulator
// come from one thread, in order.
template <typename Row>
void reduce_rows(const Pieces& pieces, const Row& row) {
  constexpr int64_t kColumns = 4096;
  const int64_t copies = accumulator_copies(pieces);
  const int64_t rows = pieces.count();
  const int64_t slot_rows = pieces.slots / std::max<int64_t>(pieces.length, 1);
  const int64_t column_blocks = at::divup(pieces.length, kColumns);
  const int64_t rows_per_task = at::divup(pieces.rows_per_slot_row, copies);
  const int64_t elements_per_task = rows_per_task * std::min(pieces.length, kColumns);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(elements_per_task, 1));
  at::parallel_for(0, copies * slot_rows * column_blocks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t column = task % column_blocks * kColumns;
      const int64_t slot_row = task / column_blocks % slot_rows;
      const int64_t copy = task / column_blocks / slot_rows;
      const int64_t first_row = slot_row * pieces.rows_per_slot_row + copy * rows_per_task;
      const int64_t last_row = std::min({first_row + rows_per_task, (slot_row + 1) * pieces.rows_per_slot_row, rows});
      const int64_t slot = slot_row * pieces.length + column;
      for (int64_t r = first_row; r < last_row; ++r) {
        const int64_t begin = r * pieces.length + column;
        const int64_t n = std::min({kColumns, pieces.length - column, pieces.numel - begin});
        if (n > 0) row(begin, n, slot, copy * pieces.slots + slot);
      }
    }
  });
}

// The parameters of one call on CPU, checked, in the form that the kernels take. Holds what it points into.
class TQ_API CpuQParams {
 public:
  CpuQParams(const char* op, const at::Tensor& dense, const at::Tensor& scale, const at::Tensor& zero_point,
             const Granularity& granularity, numerics::QRange range);
  CpuQParams(const CpuQParams&) = delete;
  CpuQParams& operator=(const CpuQParams&) = delete;

  const Pieces& pieces() const { return pieces_; }
  numerics::QParams param(int64_t index) const {
    return numerics::make_qparams(scale_[index], zero_point_[index], range_);
  }
  kernels::QParamArrays arrays(int64_t slot) const {
    const int64_t slots = pieces_.slots;
    return {arrays_.get() + slot, arrays_.get() + slots + slot, arrays_.get() + 2 * slots + slot};
  }

 private:
  void fill_arrays();

  numerics::QRange range_;
  Pieces pieces_;
  at::Tensor scale_tensor_;
  at::Tensor zero_point_tensor_;
  const float* scale_;
  const float* zero_point_;
  float single_scale_;  // the values of a per-tensor call, which needs no fp32 copies as tensors
  float single_zero_point_;
  std::unique_ptr<float[]> arrays_;
};

// Calls run(begin, n, QParams) or each(begin, n, QParamArrays) over all elements, in parallel.
template <typename Run, typename Each>
void for_each_piece(const CpuQParams& params, const Run& run, const Each& each) {
  if (params.pieces().rows) {
    for_each_piece(params.pieces(), [&](int64_t begin, int64_t n, int64_t slot) { each(begin, n, params.arrays(slot)); });
  } else {
    for_each_piece(params.pieces(), [&](int64_t begin, int64_t n, int64_t param) { run(begin, n, params.param(param)); });
  }
}

}  // namespace torchquant::ops
