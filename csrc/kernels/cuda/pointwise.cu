// Integer elementwise kernels: add, multiply, table lookup; called through pointwise.h.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/pointwise.h"

namespace torchquant::kernels::cuda {

namespace {

using numerics::Activation;

constexpr int kWide = 16;

unsigned blocks_for(int64_t threads) {
  const int64_t blocks = ceil_div(threads, kThreads);
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

__device__ __forceinline__ int valid_of(int64_t first, int64_t elements, int count) {
  return elements - first < count ? static_cast<int>(elements - first) : count;
}

template <int COUNT>
__device__ __forceinline__ void load_centred(int32_t (&q)[COUNT], const Operand& operand, int64_t index, int valid) {
  load_codes(q, operand.data, operand.type, index, valid);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) q[i] -= operand.zero_point;
}

__device__ __forceinline__ float combine(const AddArgs& args, int32_t a, int32_t b) {
  return fmaf(static_cast<float>(b), args.b_multiplier, static_cast<float>(a) * args.a_multiplier);
}
__device__ __forceinline__ float combine(const MulArgs& args, int32_t a, int32_t b) {
  return static_cast<float>(a * b) * args.multiplier;
}

// One thread combines COUNT neighbours per step. CLAMP_ONLY: the activation is a clamp, so that the code of the others
// is not there COUNT times.
template <typename Args, int COUNT, bool CLAMP_ONLY>
__global__ void __launch_bounds__(kThreads) combine_kernel(Args args, Repeat a, Repeat b, int64_t elements) {
  if constexpr (CLAMP_ONLY) args.output.activation.kind = Activation::kClamp;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * COUNT;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * COUNT; i < elements; i += step) {
    const int valid = valid_of(i, elements, COUNT);
    int32_t q_a[COUNT], q_b[COUNT];
    load_centred(q_a, args.a, a.index(i), valid);
    load_centred(q_b, args.b, b.index(i), valid);
    float v[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; ++k) v[k] = combine(args, q_a[k], q_b[k]);
    store_values(v, args.output, args.out, i, valid);
  }
}

// No activation is a clamp that changes nothing, infinities and NaN included.
bool to_clamp(ActivationSpec& activation) {
  if (activation.kind == Activation::kNone) activation = {Activation::kClamp, {-INFINITY, INFINITY}, 1.0f, 1.0f};
  return activation.kind == Activation::kClamp;
}

template <typename Args>
cudaError_t start_combine(Args args, Repeat a, Repeat b, int64_t elements, cudaStream_t stream) {
  if (elements == 0) return cudaSuccess;
  const auto fits = [](Repeat repeat, int64_t run) { return repeat.count == 1 || repeat.inner % run == 0; };
  if (!fits(a, kRepeatedRun) || !fits(b, kRepeatedRun)) return cudaErrorInvalidValue;
  if (fits(a, kWide) && fits(b, kWide) && to_clamp(args.output.activation)) {
    return start_kernel(combine_kernel<Args, kWide, true>, blocks_for(ceil_div(elements, kWide)), kThreads, 0, stream,
                        args, a, b, elements);
  }
  return start_kernel(combine_kernel<Args, kRepeatedRun, false>, blocks_for(ceil_div(elements, kRepeatedRun)), kThreads,
                      0, stream, args, a, b, elements);
}

// ---- lookup -------------------------------------------------------------------------------------------------------

// The table in shared memory. One of bytes stands there 32 times, once per lane and bank, because codes that differ
// would meet in few banks; wider entries spread by themselves.
template <typename Entry>
struct SharedTable {
  static constexpr int kCopies = sizeof(Entry) == 1 ? kWarp : 1;
  static constexpr int kPerWord = static_cast<int>(4 / sizeof(Entry));
  static constexpr int kEntries = 256;
  Entry entries[kEntries * kCopies];

  __device__ static int place(int index, int copy) {
    return (index / kPerWord * kCopies + copy) * kPerWord + index % kPerWord;
  }
  __device__ void fill(const Entry* table) {
    for (int i = static_cast<int>(threadIdx.x); i < kEntries * kCopies; i += kThreads) {
      entries[place(i / kCopies, i % kCopies)] = table[i / kCopies];
    }
  }
  __device__ Entry at(int index) const { return entries[place(index, static_cast<int>(threadIdx.x) % kCopies)]; }
};

// The index is the code's distance from the smallest code of its type.
template <typename Entry>
__global__ void __launch_bounds__(kThreads) lookup_kernel(LookupArgs args, int64_t elements) {
  __shared__ SharedTable<Entry> table;
  table.fill(static_cast<const Entry*>(args.table));
  __syncthreads();
  const int32_t smallest = args.x_type == ElementType::kInt8 ? -128 : 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kWide;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide; i < elements; i += step) {
    const int valid = valid_of(i, elements, kWide);
    int32_t q[kWide];
    load_codes(q, args.x, args.x_type, i, valid);
    Pack<Entry, kWide> found;
#pragma unroll
    for (int k = 0; k < kWide; ++k) {
      // What stands behind the last element is no code.
      found.value[k] = table.at(k < valid ? q[k] - smallest : 0);
    }
    store_run(found, args.out, i, valid);
  }
}

}  // namespace

cudaError_t add(const AddArgs& args, Repeat a, Repeat b, int64_t elements, cudaStream_t stream) {
  return start_combine(args, a, b, elements, stream);
}

cudaError_t mul(const MulArgs& args, Repeat a, Repeat b, int64_t elements, cudaStream_t stream) {
  return start_combine(args, a, b, elements, stream);
}

cudaError_t lookup(const LookupArgs& args, int64_t elements, cudaStream_t stream) {
  if (elements == 0) return cudaSuccess;
  const unsigned blocks = blocks_for(ceil_div(elements, kWide));
  switch (args.element_size) {
    case 1:
      return start_kernel(lookup_kernel<uint8_t>, blocks, kThreads, 0, stream, args, elements);
    case 2:
      return start_kernel(lookup_kernel<uint16_t>, blocks, kThreads, 0, stream, args, elements);
    case 4:
      return start_kernel(lookup_kernel<uint32_t>, blocks, kThreads, 0, stream, args, elements);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace torchquant::kernels::cuda
