// Convolutions that would waste the tensor cores: depthwise ones, and groups of few channels. A thread computes a few
// adjacent channels of some output pixels. Reached through integer_conv.cu.
#include <algorithm>

#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/integer_conv_kernels.cuh"

namespace torchquant::kernels::cuda {
namespace {

constexpr int kPixelsPerThread = 4;

// A thread's channels; its pixels are `first`, `first + step`, ... below `end`.
struct ThreadPlace {
  int32_t channel;
  int32_t first;
  int32_t step;
  int32_t end;
};

// Neighbouring threads have neighbouring channels. blockIdx.x walks over pixels, blockIdx.y over channels.
template <int COUNT>
__device__ __forceinline__ ThreadPlace thread_place(const ConvShape& shape, int threads_across) {
  const int across = static_cast<int>(threadIdx.x) % threads_across;
  const int down = static_cast<int>(threadIdx.x) / threads_across;
  const int rows = static_cast<int>(blockDim.x) / threads_across;
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * rows * kPixelsPerThread;
  const int32_t end = begin + rows * kPixelsPerThread;
  return {(static_cast<int32_t>(blockIdx.y) * threads_across + across) * COUNT, begin + down, rows,
          end < shape.pixels ? end : shape.pixels};
}

// Calls body(offset, tap) for the taps of a pixel that read the image, with the element at which their pixel starts.
template <typename Body>
__device__ __forceinline__ void for_each_tap(const ConvShape& shape, int32_t pixel, const Body& body) {
  const PixelOrigin origin = shape.origin(pixel);
  for (int32_t ky = 0; ky < shape.height.kernel; ++ky) {
    for (int32_t kx = 0; kx < shape.width.kernel; ++kx) {
      const int64_t offset = shape.input_offset(origin, ky, kx);
      if (offset >= 0) body(offset, ky * shape.width.kernel + kx);
    }
  }
}

template <int COUNT>
__device__ __forceinline__ void finish_pixel(const int32_t (&acc)[COUNT], const ChannelScales<COUNT>& scales,
                                             const ConvParams& params, int32_t pixel, int32_t channel, int valid) {
  finish_run(acc, scales, params.epilogue, params.out,
             static_cast<int64_t>(pixel) * params.shape.out_channels + channel, valid);
}

constexpr int kDepthwiseChannels = 4;

// Byte j of word i becomes byte i of word j.
__device__ __forceinline__ void transpose_bytes(uint32_t (&w)[4]) {
  const uint32_t low01 = __byte_perm(w[0], w[1], 0x5140);
  const uint32_t low23 = __byte_perm(w[2], w[3], 0x5140);
  const uint32_t high01 = __byte_perm(w[0], w[1], 0x7362);
  const uint32_t high23 = __byte_perm(w[2], w[3], 0x7362);
  w[0] = __byte_perm(low01, low23, 0x5410);
  w[1] = __byte_perm(low01, low23, 0x7632);
  w[2] = __byte_perm(high01, high23, 0x5410);
  w[3] = __byte_perm(high01, high23, 0x7632);
}

// The codes of four channels as the bytes of a word.
__device__ __forceinline__ uint32_t load_word(const uint8_t* from, int valid) {
  if (is_whole_access<4>(from, valid)) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= i < valid ? uint32_t{from[i]} << 8 * i : 0;
  return word;
}

// Raw products of four channels of a pixel, four taps of a kernel row at a time; padding counts as the zero point.
// `filling` and `flip`: four zero points, and what turns four codes into int8.
__device__ __forceinline__ void multiply_depthwise(const ConvParams& params, int32_t pixel, int32_t channel, int valid,
                                                   uint32_t filling, uint32_t flip,
                                                   int32_t (&acc)[kDepthwiseChannels]) {
  const ConvShape& shape = params.shape;
  const PixelOrigin origin = shape.origin(pixel);
  const auto* quads = reinterpret_cast<const int4*>(params.weight + 4 * channel);
  const int64_t quad_step = params.weight_pitch / 4;  // quads of as many channels, in int4
  for (int32_t ky = 0; ky < shape.height.kernel; ++ky) {
    for (int32_t kx = 0; kx < shape.width.kernel; kx += 4) {
      uint32_t codes[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t from = kx + i < shape.width.kernel ? shape.input_offset(origin, ky, kx + i) : -1;
        codes[i] = (from < 0 ? filling : load_word(params.x + from + channel, valid)) ^ flip;
      }
      transpose_bytes(codes);
      const int4 weights = *quads;
      quads += quad_step;
      const int32_t taps[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[i] = __dp4a(static_cast<int32_t>(codes[i]), taps[i], acc[i]);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 4) depthwise_kernel(const ConvParams params, int threads_across) {
  constexpr int kCount = kDepthwiseChannels;
  const ThreadPlace place = thread_place<kCount>(params.shape, threads_across);
  const int valid = params.shape.out_channels - place.channel;
  if (valid <= 0) return;
  const ChannelScales<kCount> scales(params.epilogue, place.channel, valid);
  const uint32_t filling = (params.zero_point & 0xff) * 0x01010101u;
  const uint32_t flip = params.signed_x ? 0u : 0x80808080u;
  const int32_t zero_point = params.signed_x ? params.zero_point : params.zero_point - 128;
  int32_t centre[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) centre[i] = -zero_point * params.weight_sum[place.channel + i];
#pragma unroll 1
  for (int32_t pixel = place.first; pixel < place.end; pixel += place.step) {
    int32_t acc[kCount] = {centre[0], centre[1], centre[2], centre[3]};
    multiply_depthwise(params, pixel, place.channel, valid, filling, flip, acc);
    finish_pixel(acc, scales, params, pixel, place.channel, valid);
  }
}

__global__ void __launch_bounds__(kThreads) direct_kernel(const ConvParams params, int threads_across) {
  const ConvShape& shape = params.shape;
  const ThreadPlace place = thread_place<1>(shape, threads_across);
  if (place.channel >= shape.out_channels) return;
  const ChannelScales<1> scales(params.epilogue, place.channel);
  const int32_t first_input = place.channel / shape.group_out * shape.group_in;
  const int8_t* weight = params.weight + place.channel * params.weight_pitch;
#pragma unroll 1
  for (int32_t pixel = place.first; pixel < place.end; pixel += place.step) {
    int32_t acc[1] = {};
    for_each_tap(shape, pixel, [&](int64_t offset, int32_t tap) {
      const uint8_t* x = params.x + offset + first_input;
      const int8_t* w = weight + tap * shape.group_in;
      for (int32_t i = 0; i < shape.group_in; ++i) {
        const int32_t q = params.signed_x ? static_cast<int8_t>(x[i]) : x[i];
        acc[0] += (q - params.zero_point) * w[i];
      }
    });
    finish_pixel(acc, scales, params, pixel, place.channel, 1);
  }
}

cudaError_t launch(void (*kernel)(ConvParams, int), int channels_per_thread, const ConvParams& params,
                   cudaStream_t stream) {
  const int64_t needed_across = ceil_div(params.shape.out_channels, channels_per_thread);
  const int threads_across = static_cast<int>(std::min<int64_t>(kThreads, needed_across));
  const int64_t pixels_per_block = int64_t{kThreads} / threads_across * kPixelsPerThread;
  const dim3 grid(static_cast<unsigned>(ceil_div(params.shape.pixels, pixels_per_block)),
                  static_cast<unsigned>(ceil_div(needed_across, threads_across)));
  // Whole rows of threads: what does not fill one would repeat pixels.
  const dim3 block(static_cast<unsigned>(kThreads / threads_across * threads_across));
  return start_kernel(kernel, grid, block, 0, stream, params, threads_across);
}

}  // namespace

cudaError_t conv_depthwise(const ConvParams& params, cudaStream_t stream) {
  return launch(depthwise_kernel, kDepthwiseChannels, params, stream);
}

cudaError_t conv_direct(const ConvParams& params, cudaStream_t stream) {
  return launch(direct_kernel, 1, params, stream);
}

}  // namespace torchquant::kernels::cuda
