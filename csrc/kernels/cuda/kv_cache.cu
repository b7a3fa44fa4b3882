// Append and attention of the int8 and fp8 key-value cache. Called through kv_cache.h.
//
// Attention runs on the tensor cores: queries that share a head of the cache are the rows of a product, its keys the
// columns, so that the cache is read once for all of them. A block takes a part of a sequence (split) and its warps
// take turns of 16 keys; the parts are merged by a second kernel. Weights are split into three bf16, so that the sums
// are those of fp32.
#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/kv_cache.h"
#include "kernels/cuda/quantize_row.cuh"
#include "numerics/activation.h"
#include "numerics/float8.h"

namespace torchquant::kernels::cuda {

namespace {

constexpr int kWarps = 4;  // of an attention block
constexpr int kAttentionThreads = kWarps * kWarp;
constexpr int kTurn = 16;     // keys of a warp's turn
constexpr int kQueries = 16;  // rows of a product

// ---- append
// -----------------------------------------------------------------------------------------------------------

// The fp8 format of CODE.
template <KvCode CODE>
using Float8Format = std::conditional_t<CODE == KvCode::kFloat8E4M3, numerics::Float8E4M3, numerics::Float8E5M2>;

// A warp stores one row: of the keys where blockIdx.y is 0, else of the values.
template <typename T, KvCode CODE>
__global__ void __launch_bounds__(kThreads) append_kernel(KvAppendArgs args) {
  const KvCacheShape& shape = args.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= shape.batch * shape.heads * args.tokens) return;
  const int64_t head = row / args.tokens;
  const int64_t place = args.lengths[head / shape.heads] + row % args.tokens;
  if (place < 0 || place >= shape.capacity) return;
  // Value by value: a reference to either struct would put the arguments into local memory.
  float* scale = blockIdx.y == 0 ? args.key_cache.scale : args.value_cache.scale;
  uint8_t* codes = blockIdx.y == 0 ? args.key_cache.codes : args.value_cache.codes;
  const auto* x = static_cast<const T*>(blockIdx.y == 0 ? args.key : args.value);
  const RowReader<T> reader(x + row * shape.depth, shape.depth);
  const int32_t largest = largest_of_warp(largest_of_share(reader, shape.depth, lane, kWarp));
  const int64_t to = head * shape.capacity + place;
  if constexpr (CODE == KvCode::kInt8) {
    const auto qparams = numerics::dynamic_qparams(largest);
    if (lane == 0) scale[to] = qparams.scale;
    write_codes_of_share(reader, shape.depth, lane, kWarp, qparams, codes + to * shape.depth);
  } else {
    const float row_scale = numerics::float8_scale<Float8Format<CODE>>(largest);
    if (lane == 0) scale[to] = row_scale;
    const float inv_scale = 1.0f / row_scale;
    const auto code_of = [inv_scale](float x) { return numerics::quantize_float8<Float8Format<CODE>>(x, inv_scale); };
    write_bytes_of_share(reader, shape.depth, lane, kWarp, code_of, codes + to * shape.depth);
  }
}

// ---- attention
// --------------------------------------------------------------------------------------------------------

// What a split leaves for the merge, for each query head: [batch, query_heads, splits].
struct Partials {
  float* largest;
  float* sum;
  float* out;  // [.., depth], not yet divided by the sum
};

// The queries as registers a[] of the products along the depth, in parts; rows beyond the heads are zeros. Product
// 4 * i + j of lane member m holds elements 64 * i + 16 * m + 4 * j and on, so that a key's 16 bytes are four products.
template <typename T, int DEPTH>
__device__ void share_queries(const T* query, int heads, uint4 (&shared)[kParts<T>][DEPTH / 16][kWarp]) {
  for (int i = static_cast<int>(threadIdx.x); i < DEPTH / 16 * kWarp; i += kAttentionThreads) {
    const int lane = i % kWarp;
    const int product = i / kWarp;
    const int d = product / 4 * 64 + lane % 4 * 16 + product % 4 * 4;
    uint32_t words[4][3];
#pragma unroll
    for (int reg = 0; reg < 4; ++reg) {
      const int row = lane / 4 + reg % 2 * 8;
      const int at = row * DEPTH + d + reg / 2 * 2;
      const T low = row < heads ? query[at] : from_float<T>(0.0f);
      const T high = row < heads ? query[at + 1] : from_float<T>(0.0f);
      if constexpr (std::is_same_v<T, float>) {
        split_pair(low, high, words[reg]);
      } else {
        uint16_t bits[2];
        memcpy(&bits[0], &low, 2);
        memcpy(&bits[1], &high, 2);
        words[reg][0] = bits[0] | static_cast<uint32_t>(bits[1]) << 16;
      }
    }
#pragma unroll
    for (int p = 0; p < kParts<T>; ++p)
      shared[p][product][lane] = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
  }
}

// Codes as 16-bit pairs. Those of int8 have been offset to unsigned.
template <KvCode CODE, bool BFLOAT16>
__device__ __forceinline__ auto codes_to_halves() {
  if constexpr (CODE == KvCode::kInt8) {
    return BytesToHalves<BFLOAT16>(128.0f);
  } else {
    return Float8ToHalves<Float8Format<CODE>, BFLOAT16>();
  }
}

// A lane's codes of 16 keys and values, those of int8 offset to unsigned: of keys lane / 4 and 8 more, 16 neighbours of
// each 64; of values 2 * (lane % 4), the next, and the same 8 on, DEPTH / 8 neighbours.
template <int DEPTH, KvCode CODE>
struct Turn {
  uint32_t key[2][DEPTH / 64][4];
  uint32_t value[4][DEPTH / 32];

  __device__ __forceinline__ void load(const uint8_t* keys, const uint8_t* values, int64_t first, int64_t last) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int i = 0; i < DEPTH / 64; ++i) {
        const int64_t row = inside(first + 8 * tile + lane / 4, last);
        load_words(keys + row * DEPTH + 64 * i + 16 * (lane % 4), key[tile][i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = inside(first + i / 2 * 8 + 2 * (lane % 4) + i % 2, last);
      load_words(values + row * DEPTH + lane / 4 * (DEPTH / 8), value[i]);
    }
  }

 private:
  // Beyond the last key, that one again: its weight will be zero.
  static __device__ __forceinline__ int64_t inside(int64_t row, int64_t last) { return row < last ? row : last - 1; }

  template <int WORDS>
  static __device__ __forceinline__ void load_words(const uint8_t* from, uint32_t (&words)[WORDS]) {
    const auto pack = *reinterpret_cast<const Pack<uint32_t, WORDS>*>(from);
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] = pack.value[i] ^ (CODE == KvCode::kInt8 ? 0x80808080u : 0u);
  }
};

// Softmax and output so far of a warp's keys. Row 0 is query lane / 4, row 1 the one 8 on.
template <int DEPTH>
struct Running {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this lane's keys
  float out[DEPTH / 8][4] = {};
};

// score[tile][2 * row + e]: of keys 8 * tile + 2 * (lane % 4) + e.
template <typename T, int DEPTH, KvCode CODE>
__device__ __forceinline__ void scores_of(const Turn<DEPTH, CODE>& turn,
                                          const uint4 (&queries)[kParts<T>][DEPTH / 16][kWarp], float (&score)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const auto to_halves = codes_to_halves<CODE, kAsBFloat16<T>>();
#pragma unroll
  for (int product = 0; product < DEPTH / 16; ++product) {
    uint32_t b[2][2];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const uint32_t word = turn.key[tile][product / 4][product % 4];
      b[tile][0] = to_halves.pair(word, 0);
      b[tile][1] = to_halves.pair(word, 1);
    }
#pragma unroll
    for (int p = kParts<T> - 1; p >= 0; --p) {
      const uint4 part = queries[p][product][lane];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
        multiply_add_half<kAsBFloat16<T>>(score[tile], {part.x, part.y, part.z, part.w}, b[tile]);
    }
  }
}

__device__ __forceinline__ float largest_of_four_lanes(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// What is subtracted from scores before exp: the largest, unless there is none.
__device__ __forceinline__ float reference_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// Scores to weights, times the values' scales; what was summed before shrinks to the new largest score.
template <int DEPTH>
__device__ __forceinline__ void weigh(const KvAttentionArgs& args, int64_t head, int64_t first, int64_t last,
                                      float (&weight)[2][4], Running<DEPTH>& running) {
  const int64_t at = head * args.shape.capacity;
  float value_scale[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t key = first + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
    const bool there = key < last;
    const float key_scale = there ? args.key_cache.scale[at + key] * args.scale : 0.0f;
    value_scale[i / 2][i % 2] = there ? args.value_cache.scale[at + key] : 0.0f;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float& score = weight[i / 2][2 * row + i % 2];
      score = there ? score * key_scale : -INFINITY;
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float highest =
        fmaxf(fmaxf(weight[0][2 * row], weight[0][2 * row + 1]), fmaxf(weight[1][2 * row], weight[1][2 * row + 1]));
    const float largest = fmaxf(running.largest[row], largest_of_four_lanes(highest));
    const float shrink = numerics::exp_f32(running.largest[row] - reference_of(largest));
    running.largest[row] = largest;
    running.sum[row] *= shrink;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& value = weight[i / 2][2 * row + i % 2];
      value = numerics::exp_f32(value - reference_of(largest));
      running.sum[row] += value;
      value *= value_scale[i / 2][i % 2];
    }
#pragma unroll
    for (int tile = 0; tile < DEPTH / 8; ++tile) {
      running.out[tile][2 * row] *= shrink;
      running.out[tile][2 * row + 1] *= shrink;
    }
  }
}

// Adds weights times values. Column g of tile t is element g * (DEPTH / 8) + t, so that a lane's load is whole.
template <int DEPTH, KvCode CODE>
__device__ __forceinline__ void add_values(const Turn<DEPTH, CODE>& turn, const float (&weight)[2][4],
                                           Running<DEPTH>& running) {
  uint32_t words[4][3];
#pragma unroll
  for (int i = 0; i < 4; ++i) split_pair(weight[i / 2][i % 2 * 2], weight[i / 2][i % 2 * 2 + 1], words[i]);
  const auto to_halves = codes_to_halves<CODE, true>();
#pragma unroll
  for (int tile = 0; tile < DEPTH / 8; ++tile) {
    const uint32_t b[2] = {to_halves.pair_of(turn.value[0][tile / 4], tile % 4, turn.value[1][tile / 4], tile % 4),
                           to_halves.pair_of(turn.value[2][tile / 4], tile % 4, turn.value[3][tile / 4], tile % 4)};
#pragma unroll
    for (int p = 2; p >= 0; --p)
      multiply_add_half<true>(running.out[tile], {words[0][p], words[1][p], words[2][p], words[3][p]}, b);
  }
}

// Merges the warps and writes the split's part. shared_largest: [kWarps][kQueries]; shared_out: [kQueries][DEPTH + 1],
// the sum last.
template <int DEPTH>
__device__ void write_partial(const Running<DEPTH>& running, int heads, int64_t first_index, int64_t splits,
                              const Partials& partials, float (&shared_largest)[kWarps][kQueries],
                              float (&shared_out)[kQueries][DEPTH + 1]) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * (DEPTH + 1); i += kAttentionThreads)
    shared_out[i / (DEPTH + 1)][i % (DEPTH + 1)] = 0.0f;
  if (lane % 4 == 0) {
    shared_largest[warp][lane / 4] = running.largest[0];
    shared_largest[warp][lane / 4 + 8] = running.largest[1];
  }
  __syncthreads();
  float largest[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    largest[row] = shared_largest[0][lane / 4 + 8 * row];
    for (int w = 1; w < kWarps; ++w) largest[row] = fmaxf(largest[row], shared_largest[w][lane / 4 + 8 * row]);
  }
  for (int w = 0; w < kWarps; ++w) {  // one after the other: the same order of sums at every run
    if (warp == w) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float shrink = numerics::exp_f32(running.largest[row] - reference_of(largest[row]));
        float* out = shared_out[lane / 4 + 8 * row];
#pragma unroll
        for (int tile = 0; tile < DEPTH / 8; ++tile) {
          out[lane % 4 * 2 * (DEPTH / 8) + tile] += running.out[tile][2 * row] * shrink;
          out[(lane % 4 * 2 + 1) * (DEPTH / 8) + tile] += running.out[tile][2 * row + 1] * shrink;
        }
        float sum = running.sum[row] + __shfl_xor_sync(0xffffffffu, running.sum[row], 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) out[DEPTH] += sum * shrink;
      }
    }
    __syncthreads();
  }
  for (int i = static_cast<int>(threadIdx.x); i < heads * DEPTH; i += kAttentionThreads) {
    const int row = i / DEPTH;
    partials.out[(first_index + row * splits) * DEPTH + i % DEPTH] = shared_out[row][i % DEPTH];
  }
  if (static_cast<int>(threadIdx.x) < heads) {
    const int row = static_cast<int>(threadIdx.x);
    float highest = shared_largest[0][row];
    for (int w = 1; w < kWarps; ++w) highest = fmaxf(highest, shared_largest[w][row]);
    partials.largest[first_index + row * splits] = highest;
    partials.sum[first_index + row * splits] = shared_out[row][DEPTH];
  }
}

__device__ __forceinline__ int64_t length_of(const KvAttentionArgs& args, int64_t batch) {
  const int64_t length = args.lengths[batch];
  return length < 0 ? 0 : (length < args.shape.capacity ? length : args.shape.capacity);
}

// Grid: splits, heads of the cache, sequences.
template <typename T, int DEPTH, KvCode CODE>
__global__ void __launch_bounds__(kAttentionThreads) attention_kernel(KvAttentionArgs args, Partials partials) {
  __shared__ uint4 queries[kParts<T>][DEPTH / 16][kWarp];
  __shared__ float shared_largest[kWarps][kQueries];
  __shared__ float shared_out[kQueries][DEPTH + 1];
  const int64_t splits = gridDim.x;
  const int64_t batch = blockIdx.z;
  const int64_t head = batch * args.shape.heads + blockIdx.y;
  const int heads = static_cast<int>(args.query_heads / args.shape.heads);
  const int64_t first_head = batch * args.query_heads + blockIdx.y * heads;
  share_queries<T, DEPTH>(static_cast<const T*>(args.query) + first_head * DEPTH, heads, queries);
  __syncthreads();

  const int64_t length = length_of(args, batch);
  const int64_t turns = (length + kTurn * kWarps - 1) / (kTurn * kWarps);  // of all warps
  const int64_t each = (turns + splits - 1) / splits * kTurn * kWarps;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * each;
  const int64_t last = first + each < length ? first + each : length;
  const uint8_t* keys = args.key_cache.codes + head * args.shape.capacity * DEPTH;
  const uint8_t* values = args.value_cache.codes + head * args.shape.capacity * DEPTH;
  Running<DEPTH> running;
  for (int64_t key = first + static_cast<int64_t>(threadIdx.x / kWarp) * kTurn; key < last; key += kTurn * kWarps) {
    Turn<DEPTH, CODE> turn;
    turn.load(keys, values, key, last);
    float weight[2][4] = {};
    scores_of<T>(turn, queries, weight);
    weigh<DEPTH>(args, head, key, last, weight, running);
    add_values(turn, weight, running);
  }
  write_partial<DEPTH>(running, heads, first_head * splits + blockIdx.x, splits, partials, shared_largest, shared_out);
}

// A block merges the splits of one query head.
template <typename T>
__global__ void merge_kernel(KvAttentionArgs args, Partials partials, int splits) {
  const int64_t head = blockIdx.x;
  const int64_t depth = args.shape.depth;
  float largest = -INFINITY;
  for (int s = 0; s < splits; ++s) largest = fmaxf(largest, partials.largest[head * splits + s]);
  float sum = 0.0f;
  float value = 0.0f;
  for (int s = 0; s < splits; ++s) {
    const float shrink = numerics::exp_f32(partials.largest[head * splits + s] - reference_of(largest));
    sum = fmaf(partials.sum[head * splits + s], shrink, sum);
    value = fmaf(partials.out[(head * splits + s) * depth + threadIdx.x], shrink, value);
  }
  const bool any = length_of(args, head / args.query_heads) > 0;
  static_cast<T*>(args.out)[head * depth + threadIdx.x] = from_float<T>(any ? value / sum : 0.0f);
}

// Calls f with std::integral_constant of `code`.
template <typename F>
cudaError_t dispatch_code(KvCode code, const F& f) {
  switch (code) {
    case KvCode::kInt8:
      return f(std::integral_constant<KvCode, KvCode::kInt8>{});
    case KvCode::kFloat8E4M3:
      return f(std::integral_constant<KvCode, KvCode::kFloat8E4M3>{});
    case KvCode::kFloat8E5M2:
      return f(std::integral_constant<KvCode, KvCode::kFloat8E5M2>{});
  }
  return cudaErrorInvalidValue;
}

// Enough blocks to fill a large GPU twice, but none below 256 keys of a full cache.
int64_t splits_of(const KvAttentionArgs& args) {
  constexpr int64_t kBlocks = 2 * 132;
  const int64_t wanted = ceil_div(kBlocks, args.shape.batch * args.shape.heads);
  const int64_t most = ceil_div(args.shape.capacity, 256);
  return wanted < most ? wanted : most;
}

template <typename T, int DEPTH, KvCode CODE>
cudaError_t attend(const KvAttentionArgs& args, const Partials& partials, cudaStream_t stream) {
  const auto splits = static_cast<unsigned>(splits_of(args));
  const dim3 grid(splits, static_cast<unsigned>(args.shape.heads), static_cast<unsigned>(args.shape.batch));
  const cudaError_t error =
      start_kernel(attention_kernel<T, DEPTH, CODE>, grid, kAttentionThreads, 0, stream, args, partials);
  if (error != cudaSuccess) return error;
  return start_kernel(merge_kernel<T>, static_cast<unsigned>(args.shape.batch * args.query_heads), DEPTH, 0, stream,
                      args, partials, static_cast<int>(splits));
}

}  // namespace

cudaError_t kv_append(const KvAppendArgs& args, FloatType type, cudaStream_t stream) {
  const int64_t rows = args.shape.batch * args.shape.heads * args.tokens;
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, kThreads / kWarp)), 2);
  return dispatch_type(type, [&](auto* tag) {
    return dispatch_code(args.shape.code, [&](auto code) {
      return start_kernel(append_kernel<std::remove_pointer_t<decltype(tag)>, code.value>, grid, kThreads, 0, stream,
                          args);
    });
  });
}

size_t kv_attention_scratch_bytes(const KvAttentionArgs& args) {
  return static_cast<size_t>(args.shape.batch * args.query_heads * splits_of(args) * (args.shape.depth + 2)) *
         sizeof(float);
}

cudaError_t kv_attention(const KvAttentionArgs& args, FloatType type, void* scratch, cudaStream_t stream) {
  const int64_t parts = args.shape.batch * args.query_heads * splits_of(args);
  auto* floats = static_cast<float*>(scratch);
  const Partials partials{floats, floats + parts, floats + 2 * parts};
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return dispatch_code(args.shape.code, [&](auto code) {
      return args.shape.depth == 64 ? attend<T, 64, code.value>(args, partials, stream)
                                    : attend<T, 128, code.value>(args, partials, stream);
    });
  });
}

}  // namespace torchquant::kernels::cuda
