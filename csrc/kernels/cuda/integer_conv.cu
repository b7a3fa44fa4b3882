// Packs the weights of integer convolutions on the device and chooses the kernel of a layer; see integer_conv.h.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/integer_conv.h"
#include "kernels/cuda/integer_conv_kernels.cuh"
#include "numerics/int4.h"

namespace torchquant::kernels::cuda {
namespace {

struct PackParams {
  PackedConvLayout layout;
  StoredConvWeight weight;
  int64_t group_out;
  bool transposed;
  int8_t* codes;
  int32_t* sums;

  __device__ int32_t code(int64_t out_channel, int64_t tap, int64_t channel) const {
    const int64_t group = out_channel / group_out;
    const int64_t row = transposed ? group * layout.group_in + channel : out_channel;
    const int64_t column = transposed ? out_channel % group_out : channel;
    const int64_t(&strides)[4] = weight.strides;
    const int64_t in_row =
        column * strides[1] + tap / layout.kernel_width * strides[2] + tap % layout.kernel_width * strides[3];
    if (weight.bits == 4) {
      return numerics::unpack_int4_value(static_cast<const uint8_t*>(weight.data) + row * strides[0], in_row,
                                         weight.quant_min);
    }
    return static_cast<const int8_t*>(weight.data)[row * strides[0] + in_row];
  }
};

// A warp per row of the packed weights.
__global__ void __launch_bounds__(kThreads) pack_kernel(const PackParams params) {
  const PackedConvLayout& layout = params.layout;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (row >= layout.rows()) return;
  int32_t sum = 0;
  for (int64_t slot = lane; slot < layout.slots; slot += kWarp) {
    const int64_t tap = layout.tap(slot);
    const bool filled = tap >= 0 && row < layout.out_channels;
    const int32_t code = filled ? params.code(row, tap, slot % layout.group_in) : 0;
    params.codes[layout.index(row, slot)] = static_cast<int8_t>(code);
    sum += code;
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
  if (lane == 0) params.sums[row] = sum;
}

ConvShape conv_shape(const IntegerConvArgs& args) {
  const ConvSpec& spec = args.spec;
  return {static_cast<int32_t>(args.batch * args.out_height * args.out_width),
          static_cast<int32_t>(spec.in_channels),
          static_cast<int32_t>(spec.out_channels),
          static_cast<int32_t>(spec.in_channels / spec.groups),
          static_cast<int32_t>(spec.out_channels / spec.groups),
          tap_axis(spec.height, spec.transposed, args.in_height, args.out_height),
          tap_axis(spec.width, spec.transposed, args.in_width, args.out_width)};
}

}  // namespace

const char* integer_conv_kernel(const ConvSpec& spec) {
  if (is_depthwise(spec)) return "cuda_depthwise";
  return is_narrow_group(spec) ? "cuda_direct" : "cuda_mma_int8";
}

int64_t packed_conv_bytes(const ConvSpec& spec) { return packed_conv_layout(spec).bytes(); }

cudaError_t pack_conv(const ConvSpec& spec, const StoredConvWeight& weight, void* packed, cudaStream_t stream) {
  const PackedConvLayout layout = packed_conv_layout(spec);
  auto* bytes = static_cast<unsigned char*>(packed);
  const PackParams params{layout,
                          weight,
                          spec.out_channels / spec.groups,
                          spec.transposed,
                          reinterpret_cast<int8_t*>(bytes),
                          reinterpret_cast<int32_t*>(bytes + layout.sums_offset())};
  const auto blocks = static_cast<unsigned>(ceil_div(layout.rows(), kThreads / kWarp));
  return start_kernel(pack_kernel, dim3(blocks), dim3(kThreads), 0, stream, params);
}

cudaError_t integer_conv(const IntegerConvArgs& args, cudaStream_t stream) {
  if (args.batch * args.out_height * args.out_width >= kMaxConvPixels) return cudaErrorInvalidValue;
  const PackedConvLayout layout = packed_conv_layout(args.spec);
  const auto* packed = static_cast<const unsigned char*>(args.packed);
  const ConvParams params{conv_shape(args),
                          static_cast<const uint8_t*>(args.x),
                          args.x_zero_point,
                          args.x_type == ElementType::kInt8,
                          reinterpret_cast<const int8_t*>(packed),
                          reinterpret_cast<const int32_t*>(packed + layout.sums_offset()),
                          layout.depthwise ? layout.rows() : layout.slots,
                          args.epilogue,
                          args.out};
  if (params.shape.pixels == 0) return cudaSuccess;
  if (layout.depthwise) return conv_depthwise(params, stream);
  if (is_narrow_group(args.spec)) return conv_direct(params, stream);
  return conv_mma(params, args.tile, stream);
}

}  // namespace torchquant::kernels::cuda
