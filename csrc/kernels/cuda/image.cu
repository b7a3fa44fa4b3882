// Integer max pooling, average pooling and linear resizing of NHWC codes; called through image.h.
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/image.h"

namespace torchquant::kernels::cuda {

namespace {

constexpr int kWide = 16;
constexpr int kNarrow = static_cast<int>(kPieceChannels);
// Threads from which on a GPU is full enough for each to take kWide channels.
constexpr int64_t kManyThreads = 65536;

// Which channels of which output pixel a thread computes: COUNT channels from `channel` on, `valid` of which are there.
template <int COUNT>
struct OutputPixel {
  int64_t row;
  int64_t column;
  int64_t channel;
  int valid;

  __device__ __forceinline__ OutputPixel(uint32_t index, const ImageLayout& out, int64_t channels) {
    const auto chunks = static_cast<uint32_t>((channels + COUNT - 1) / COUNT);
    const auto width = static_cast<uint32_t>(out.width);
    const uint32_t pixel = index / chunks;
    row = pixel / width;
    column = pixel % width;
    channel = static_cast<int64_t>(index % chunks) * COUNT;
    valid = channels - channel < COUNT ? static_cast<int>(channels - channel) : COUNT;
  }
};

// Calls body(image, pixel) for the work of this thread: blocks along x walk an image's pixels, along y the images.
template <int COUNT, typename Body>
__device__ __forceinline__ void for_each_output(const ImageLayout& out, int64_t channels, uint32_t work, int64_t batch,
                                                Body&& body) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= work) return;
  const OutputPixel<COUNT> pixel(index, out, channels);
  for (int64_t image = blockIdx.y; image < batch; image += gridDim.y) body(image, pixel);
}

template <int COUNT>
__global__ void __launch_bounds__(kThreads) max_pool_kernel(MaxPoolArgs args, uint32_t work, int64_t batch) {
  for_each_output<COUNT>(args.out_layout, args.channels, work, batch, [&](int64_t image, const auto& pixel) {
    const MaxPoolAxis& h = args.height;
    const MaxPoolAxis& w = args.width;
    int32_t largest[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) largest[i] = -128;
    bool padded = false;
    for (int64_t ky = 0; ky < h.kernel; ++ky) {
      const int64_t y = pixel.row * h.stride - h.padding + ky * h.dilation;
      for (int64_t kx = 0; kx < w.kernel; ++kx) {
        const int64_t x = pixel.column * w.stride - w.padding + kx * w.dilation;
        const bool inside = y >= 0 && y < args.x_layout.height && x >= 0 && x < args.x_layout.width;
        padded = padded || !inside;
        if (!inside) continue;
        int32_t q[COUNT];
        load_codes(q, args.x, args.type, args.x_layout.offset(image, y, x) + pixel.channel, pixel.valid);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) largest[i] = q[i] > largest[i] ? q[i] : largest[i];
      }
    }
    Pack<uint8_t, COUNT> codes;  // int8 codes as their bytes
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      codes.value[i] = static_cast<uint8_t>(padded && args.pad_value > largest[i] ? args.pad_value : largest[i]);
    }
    store_run(codes, args.out, args.out_layout.offset(image, pixel.row, pixel.column) + pixel.channel, pixel.valid);
  });
}

// sums[c] += sum of (q - zero_point) over the window. WHOLE: every access is one of all COUNT channels, which leaves no
// branch in the loop, so that several loads are under way at a time.
template <int COUNT, bool WHOLE>
__device__ __forceinline__ void sum_window(int32_t (&sums)[COUNT], const AvgPoolArgs& args, const PoolWindow& rows,
                                           const PoolWindow& columns, int64_t first, int valid) {
  for (int64_t y = rows.begin; y < rows.end; ++y) {
#pragma unroll 4
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const int64_t index = first + args.x_layout.offset(0, y, x);
      int32_t q[COUNT];
      if constexpr (WHOLE) {
        const auto bytes = *reinterpret_cast<const Pack<uint8_t, COUNT>*>(static_cast<const uint8_t*>(args.x) + index);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
          q[i] = args.x_type == ElementType::kUInt8 ? bytes.value[i] : static_cast<int8_t>(bytes.value[i]);
        }
      } else {
        load_codes(q, args.x, args.x_type, index, valid);
      }
#pragma unroll
      for (int i = 0; i < COUNT; ++i) sums[i] += q[i] - args.x_zero_point;
    }
  }
}

template <int COUNT, bool WHOLE>
__global__ void __launch_bounds__(kThreads)
    avg_pool_kernel(AvgPoolArgs args, PoolAxis rows, PoolAxis columns, uint32_t work, int64_t batch) {
  args.output.activation = numerics::no_activation();
  for_each_output<COUNT>(args.out_layout, args.channels, work, batch, [&](int64_t image, const auto& pixel) {
    const PoolWindow row = rows.window(pixel.row);
    const PoolWindow column = columns.window(pixel.column);
    int32_t sums[COUNT] = {};
    sum_window<COUNT, WHOLE>(sums, args, row, column, args.x_layout.offset(image, 0, 0) + pixel.channel, pixel.valid);
    const int64_t count = args.divisor != 0 ? args.divisor : row.count * column.count;
    const float factor = args.multiplier / static_cast<float>(count);
    float v[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = static_cast<float>(sums[i]) * factor;
    store_values(v, args.output, args.out, args.out_layout.offset(image, pixel.row, pixel.column) + pixel.channel,
                 pixel.valid);
  });
}

// The row between two pixels, in units of the input's codes.
template <int COUNT>
__device__ __forceinline__ void interpolate_row(float (&v)[COUNT], const ResizeLinearArgs& args, int64_t row_start,
                                                const numerics::LinearTap& x, int valid) {
  int32_t left[COUNT], right[COUNT];
  load_codes(left, args.x, args.x_type, row_start + x.index[0] * args.x_layout.pixel_pitch, valid);
  load_codes(right, args.x, args.x_type, row_start + x.index[1] * args.x_layout.pixel_pitch, valid);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    v[i] = numerics::interpolate(static_cast<float>(left[i] - args.x_zero_point),
                                 static_cast<float>(right[i] - args.x_zero_point), x);
  }
}

template <int COUNT>
__global__ void __launch_bounds__(kThreads)
    resize_linear_kernel(ResizeLinearArgs args, ResizeAxis rows, ResizeAxis columns, uint32_t work, int64_t batch) {
  args.output.activation = numerics::no_activation();
  for_each_output<COUNT>(args.out_layout, args.channels, work, batch, [&](int64_t image, const auto& pixel) {
    const numerics::LinearTap y = rows.tap(pixel.row);
    const numerics::LinearTap x = columns.tap(pixel.column);
    float v[COUNT], lower[COUNT];
    interpolate_row(v, args, args.x_layout.offset(image, y.index[0], 0) + pixel.channel, x, pixel.valid);
    interpolate_row(lower, args, args.x_layout.offset(image, y.index[1], 0) + pixel.channel, x, pixel.valid);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = numerics::interpolate(v[i], lower[i], y) * args.multiplier;
    store_values(v, args.output, args.out, args.out_layout.offset(image, pixel.row, pixel.column) + pixel.channel,
                 pixel.valid);
  });
}

// Whether every run of `count` channels of an image is one aligned access.
bool has_whole_runs(const void* data, const ImageLayout& layout, int64_t channels, int64_t count) {
  return is_aligned(data, static_cast<size_t>(count)) && channels % count == 0 && layout.pixel_pitch % count == 0 &&
         layout.row_pitch % count == 0 && layout.image_pitch % count == 0;
}

// Starts kernel_of(COUNT) with args... and the work: kWide channels a thread where they are whole runs of both images
// and there are enough of them.
template <typename Args, typename KernelOf, typename... More>
cudaError_t start(const Args& args, int64_t batch, cudaStream_t stream, const KernelOf& kernel_of, More... more) {
  const ImageLayout& out = args.out_layout;
  const int64_t pixels = out.height * out.width;
  if (batch * pixels * args.channels == 0) return cudaSuccess;
  const bool wide = batch * pixels * args.channels >= kManyThreads * kWide &&
                    has_whole_runs(args.x, args.x_layout, args.channels, kWide) &&
                    has_whole_runs(args.out, out, args.channels, kWide);
  if (image_pieces(pixels, args.channels) > kMaxImagePieces) return cudaErrorInvalidValue;
  const int64_t work = pixels * ceil_div(args.channels, wide ? kWide : kNarrow);
  constexpr int64_t kMostRows = 65535;  // of a grid
  const dim3 grid(static_cast<unsigned>(ceil_div(work, kThreads)),
                  static_cast<unsigned>(batch < kMostRows ? batch : kMostRows));
  const auto run = [&](auto count) {
    return start_kernel(kernel_of(count), grid, kThreads, 0, stream, args, more..., static_cast<uint32_t>(work), batch);
  };
  return wide ? run(std::integral_constant<int, kWide>()) : run(std::integral_constant<int, kNarrow>());
}

}  // namespace

cudaError_t max_pool(const MaxPoolArgs& args, int64_t batch, cudaStream_t stream) {
  return start(args, batch, stream, [](auto count) { return max_pool_kernel<decltype(count)::value>; });
}

cudaError_t avg_pool(const AvgPoolArgs& args, const PoolAxis& rows, const PoolAxis& columns, int64_t batch,
                     cudaStream_t stream) {
  const bool whole = has_whole_runs(args.x, args.x_layout, args.channels, kNarrow);
  return start(
      args, batch, stream,
      [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        if constexpr (kCount == kWide) {
          return avg_pool_kernel<kCount, true>;
        } else {
          return whole ? avg_pool_kernel<kCount, true> : avg_pool_kernel<kCount, false>;
        }
      },
      rows, columns);
}

cudaError_t resize_linear(const ResizeLinearArgs& args, const ResizeAxis& rows, const ResizeAxis& columns,
                          int64_t batch, cudaStream_t stream) {
  return start(
      args, batch, stream, [](auto count) { return resize_linear_kernel<decltype(count)::value>; }, rows, columns);
}

}  // namespace torchquant::kernels::cuda
