// Reductions of every parameter's elements in one pass over memory, the last step included; used by reductions.cu,
// observe_fake_quantize.cu and fake_quantize_and_observe.cu.
//
// An Op brings
//   Value                           what is reduced: none() of no element, merge(), shuffle_down()
//   Params, params(p)               what its elements need to know of parameter p
//   visit<VEC>(e, p, values, EACH)  reads (and may write) elements e ... e + VEC - 1. Without EACH all are of parameter
//                                   p[0] and add to values[0]; with EACH element k is of p[k] and adds to values[k]
//   finish(p, value)                takes the result of parameter p
// A block that shares a parameter with others writes its part to `scratch`; the one that comes last adds the parts in
// the order of blocks, so a run repeats to the bit.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/param_layout.h"

namespace torchquant::kernels::cuda {

constexpr int64_t kReductionBlocks = 4096;  // of a launch, where the elements suffice for so many

// Elements of a parameter that lie in `outer` runs: run o of parameter p is [(o * params + p) * inner, + inner).
struct Runs {
  int64_t outer;
  int64_t params;
  int64_t inner;
};

// Each column of [batch, rows, columns] is a parameter, the elements of which are `columns` apart.
struct Columns {
  int64_t batch;
  int64_t rows;
  int64_t columns;
};

inline bool in_columns(const ParamLayout& layout) {
  return layout.params() > 1 && (layout.group_size > 0 ? layout.inner > 1 : layout.inner == 1);
}

inline Runs runs_of(const ParamLayout& layout) {
  if (layout.params() == 1) return {1, 1, layout.numel()};
  if (layout.group_size > 0) return {1, layout.params(), layout.group_size};
  return {layout.outer, layout.axis_size, layout.inner};
}

inline Columns columns_of(const ParamLayout& layout) {
  if (layout.group_size > 0) return {layout.outer * layout.groups(), layout.group_size, layout.inner};
  return {1, layout.outer, layout.axis_size};
}

// Aligned packs of `vec` elements that cover a run wherever it begins.
inline int64_t slots_per_run(const Runs& runs, int vec) {
  if (runs.inner % vec == 0) return runs.inner / vec;
  if (runs.outer * runs.params == 1) return ceil_div(runs.inner, vec);
  return (runs.inner + vec - 2) / vec + 1;
}

// The Value of thread `threadIdx.x` of `step` threads over parameter p's slots from `begin` on.
template <typename Op, int VEC>
__device__ __forceinline__ typename Op::Value reduce_slots(const Op& op, const Runs& runs, int64_t slots_of_run,
                                                           int64_t p, int64_t begin, int64_t step) {
  typename Op::Value value = Op::Value::none();
  const typename Op::Params params = op.params(p);
  const int64_t slots = runs.outer * slots_of_run;
  for (int64_t j = begin; j < slots; j += step) {
    const int64_t o = runs.outer == 1 ? 0 : j / slots_of_run;
    const int64_t run = (o * runs.params + p) * runs.inner;
    const int64_t first = run / VEC * VEC + (j - o * slots_of_run) * VEC;
    if (first >= run && first + VEC <= run + runs.inner) {
      op.template visit<VEC, false>(first, &params, &value);
    } else {
#pragma unroll 1
      for (int64_t e = first; e < first + VEC; ++e) {
        if (e >= run && e < run + runs.inner) op.template visit<1, false>(e, &params, &value);
      }
    }
  }
  return value;
}

// True in every thread of the last of `blocks` blocks that come to `counter` (zero before, and what they wrote to
// global memory is then visible).
__device__ __forceinline__ bool comes_last(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == blocks - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Block s of `blocks` of parameter p, with blockIdx.x = p * blocks + s.
template <typename Op, int VEC>
__global__ void __launch_bounds__(kThreads) reduce_runs(Op op, Runs runs, int64_t slots_of_run, unsigned blocks,
                                                        typename Op::Value* parts, unsigned* counters) {
  const int64_t p = blockIdx.x / blocks;
  const unsigned s = blockIdx.x % blocks;
  typename Op::Value value =
      reduce_slots<Op, VEC>(op, runs, slots_of_run, p, int64_t{s} * kThreads + threadIdx.x, int64_t{blocks} * kThreads);
  value = reduce_block(value);
  if (blocks > 1) {
    if (threadIdx.x == 0) parts[blockIdx.x] = value;
    if (!comes_last(counters + p, blocks)) return;
    value = Op::Value::none();
    for (unsigned i = threadIdx.x; i < blocks; i += kThreads) value.merge(parts[p * blocks + i]);
    value = reduce_block(value);
  }
  if (threadIdx.x == 0) op.finish(p, value);
}

// `lanes` neighbouring threads for each parameter: a power of two up to kWarp.
template <typename Op, int VEC>
__global__ void __launch_bounds__(kThreads) reduce_short_runs(Op op, Runs runs, int64_t slots_of_run, unsigned lanes) {
  const int64_t p = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  const unsigned lane = threadIdx.x % lanes;
  typename Op::Value value = Op::Value::none();
  if (p < runs.params) value = reduce_slots<Op, VEC>(op, runs, slots_of_run, p, lane, lanes);
  for (unsigned offset = lanes / 2; offset > 0; offset /= 2) value.merge(value.shuffle_down(static_cast<int>(offset)));
  if (lane == 0 && p < runs.params) op.finish(p, value);
}

// A tile of `lanes` * VEC columns; the block's threads are [kThreads / lanes, lanes]. blockIdx.x names the tile (of all
// batches), blockIdx.y the share of the rows.
template <typename Op, int VEC>
__global__ void __launch_bounds__(kThreads)
    reduce_columns(Op op, Columns shape, unsigned lanes, typename Op::Value* parts, unsigned* counters) {
  using Value = typename Op::Value;
  __shared__ Value shared[kThreads * VEC];
  const unsigned lane = threadIdx.x % lanes;
  const unsigned line = threadIdx.x / lanes;
  const unsigned lines = kThreads / lanes;
  const int64_t tiles = (shape.columns + lanes * VEC - 1) / (lanes * VEC);
  const int64_t batch = blockIdx.x / tiles;
  const int64_t column = (blockIdx.x % tiles * lanes + lane) * VEC;
  const int64_t param = batch * shape.columns + column;
  const bool inside = column < shape.columns;
  Value values[VEC];
#pragma unroll
  for (int k = 0; k < VEC; ++k) values[k] = Value::none();
  if (inside) {
    typename Op::Params params[VEC];
#pragma unroll
    for (int k = 0; k < VEC; ++k) params[k] = op.params(param + k);
    const int64_t step = int64_t{gridDim.y} * lines;
    for (int64_t row = int64_t{blockIdx.y} * lines + line; row < shape.rows; row += step)
      op.template visit<VEC, true>((batch * shape.rows + row) * shape.columns + column, params, values);
  }
#pragma unroll
  for (int k = 0; k < VEC; ++k) shared[threadIdx.x * VEC + k] = values[k];
  __syncthreads();
  if (line == 0) {
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      for (unsigned i = 1; i < lines; ++i) values[k].merge(shared[(i * lanes + lane) * VEC + k]);
      if (!inside) continue;
      if (gridDim.y > 1) {
        parts[(param + k) * gridDim.y + blockIdx.y] = values[k];
      } else {
        op.finish(param + k, values[k]);
      }
    }
  }
  if (gridDim.y == 1 || !comes_last(counters + blockIdx.x, gridDim.y)) return;
  if (line != 0 || !inside) return;
  for (int k = 0; k < VEC; ++k) {
    Value value = parts[(param + k) * gridDim.y];
    for (unsigned s = 1; s < gridDim.y; ++s) value.merge(parts[(param + k) * gridDim.y + s]);
    op.finish(param + k, value);
  }
}

// How a layout is reduced; follows from the layout and the width of an access alone.
struct ReductionPlan {
  bool columns;
  bool short_runs;
  unsigned lanes;   // of a short run, or of a tile of columns
  int64_t groups;   // blocks (or warps' parts) that need no other block: parameters, or tiles of columns
  unsigned blocks;  // that share one group
  int64_t parts;    // values in scratch
};

inline unsigned power_of_two_from(int64_t n, unsigned limit) {
  unsigned power = 1;
  while (power < limit && power < n) power *= 2;
  return power;
}

// How many blocks share a group of `work` steps of a block when there are `groups` of them.
inline unsigned sharing_blocks(int64_t work, int64_t groups) {
  const int64_t wanted = ceil_div(work, 4);
  const int64_t allowed = ceil_div(kReductionBlocks, groups);
  const int64_t blocks = wanted < allowed ? wanted : allowed;
  return blocks > 1 ? static_cast<unsigned>(blocks) : 1;
}

inline ReductionPlan plan_reduction(const ParamLayout& layout, int vec) {
  constexpr int64_t kShort = 8 * kWarp;  // slots that a warp takes alone
  ReductionPlan plan{};
  if (in_columns(layout)) {
    const Columns shape = columns_of(layout);
    plan.columns = true;
    plan.lanes = power_of_two_from(ceil_div(shape.columns, vec), kWarp);
    plan.groups = shape.batch * ceil_div(shape.columns, int64_t{plan.lanes} * vec);
    plan.blocks = sharing_blocks(ceil_div(shape.rows, kThreads / plan.lanes), plan.groups);
  } else {
    const Runs runs = runs_of(layout);
    const int64_t slots = runs.outer * slots_per_run(runs, vec);
    plan.short_runs = slots <= kShort;
    plan.lanes = power_of_two_from(slots, kWarp);
    plan.groups = runs.params;
    plan.blocks = plan.short_runs ? 1 : sharing_blocks(ceil_div(slots, kThreads), runs.params);
  }
  plan.parts = plan.blocks > 1 ? layout.params() * plan.blocks : 0;
  return plan;
}

// Scratch: the parts, then a counter for each group.
inline size_t scratch_bytes(const ReductionPlan& plan, size_t value_bytes) {
  if (plan.blocks == 1) return 0;
  return static_cast<size_t>(plan.parts) * value_bytes + static_cast<size_t>(plan.groups) * sizeof(unsigned);
}

template <typename Op, int VEC>
cudaError_t launch_reduction(const Op& op, const ParamLayout& layout, void* scratch, cudaStream_t stream) {
  const ReductionPlan plan = plan_reduction(layout, VEC);
  auto* parts = static_cast<typename Op::Value*>(scratch);
  auto* counters = reinterpret_cast<unsigned*>(parts + plan.parts);
  if (plan.blocks > 1) {
    const cudaError_t error = cudaMemsetAsync(counters, 0, static_cast<size_t>(plan.groups) * sizeof(unsigned), stream);
    if (error != cudaSuccess) return error;
  }
  if (plan.columns) {
    const dim3 grid(static_cast<unsigned>(plan.groups), plan.blocks);
    return start_kernel(reduce_columns<Op, VEC>, grid, kThreads, 0, stream, op, columns_of(layout), plan.lanes, parts,
                        counters);
  }
  const Runs runs = runs_of(layout);
  const int64_t slots = slots_per_run(runs, VEC);
  if (plan.short_runs) {
    const auto grid = static_cast<unsigned>(ceil_div(runs.params * plan.lanes, kThreads));
    return start_kernel(reduce_short_runs<Op, VEC>, grid, kThreads, 0, stream, op, runs, slots, plan.lanes);
  }
  const auto grid = static_cast<unsigned>(plan.groups * plan.blocks);
  return start_kernel(reduce_runs<Op, VEC>, grid, kThreads, 0, stream, op, runs, slots, plan.blocks, parts, counters);
}

// Widths of an access: 16 bytes along runs, four elements across columns, of which each has its own Value.
template <typename T>
constexpr int kRunVec = 16 / sizeof(T);
constexpr int kColumnVec = 4;

// `aligned`: every pointer of the op is a multiple of 16 bytes.
template <typename T, typename Op>
cudaError_t reduce(const Op& op, const ParamLayout& layout, bool aligned, void* scratch, cudaStream_t stream) {
  if (layout.numel() == 0) return cudaSuccess;
  if (!aligned) return launch_reduction<Op, 1>(op, layout, scratch, stream);
  if (!in_columns(layout)) return launch_reduction<Op, kRunVec<T>>(op, layout, scratch, stream);
  if (columns_of(layout).columns % kColumnVec == 0)
    return launch_reduction<Op, kColumnVec>(op, layout, scratch, stream);
  return launch_reduction<Op, 1>(op, layout, scratch, stream);
}

}  // namespace torchquant::kernels::cuda
