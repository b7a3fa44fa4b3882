// Elementwise training kernels (fake-quantize forward and straight-through backward, quantize, dequantize) for every
// granularity; called through launch.h.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "numerics/affine.h"

namespace torchquant::kernels::cuda {

namespace {

// Each operation reads up to two inputs of type In and writes one Out.
template <typename T>
struct FakeQuantize {
  using In = T;
  using Out = T;
  static constexpr bool kReadsSecond = false;
  __device__ static T apply(T x, T, QParams p, QRange range) {
    return from_float<T>(numerics::fake_quantize_value(to_float(x), p, range));
  }
};

template <typename T>
struct Backward {
  using In = T;
  using Out = T;
  static constexpr bool kReadsSecond = true;
  __device__ static T apply(T x, T grad, QParams p, QRange range) {
    return from_float<T>(numerics::ste_grad(to_float(grad), to_float(x), p, range));
  }
};

template <typename T>
struct Quantize {
  using In = T;
  using Out = uint8_t;
  static constexpr bool kReadsSecond = false;
  // Through int, so that negative codes wrap into their two's-complement byte.
  __device__ static uint8_t apply(T x, T, QParams p, QRange range) {
    return static_cast<uint8_t>(static_cast<int>(numerics::quantize_value(to_float(x), p, range)));
  }
};

template <typename T, typename Code>
struct Dequantize {
  using In = Code;
  using Out = T;
  static constexpr bool kReadsSecond = false;
  __device__ static T apply(Code q, Code, QParams p, QRange) {
    return from_float<T>(numerics::dequantize_value(static_cast<float>(q), p));
  }
};

struct Arguments {
  const void* first;
  const void* second;
  void* out;
  ParamLayout layout;
  DeviceQParams qparams;
  QRange range;
  bool per_tensor;
};

// One thread handles VEC neighbours that share a parameter per step.
template <typename Op, int VEC>
__global__ void __launch_bounds__(kThreads) elementwise_kernel(Arguments args) {
  using InPack = Pack<typename Op::In, VEC>;
  using OutPack = Pack<typename Op::Out, VEC>;
  const auto* first = static_cast<const InPack*>(args.first);
  const auto* second = static_cast<const InPack*>(args.second);
  auto* out = static_cast<OutPack*>(args.out);
  const int64_t packs = args.layout.numel() / VEC;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  QParams p = numerics::make_qparams(args.qparams.scale[0], args.qparams.zero_point[0], args.range);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += step) {
    if (!args.per_tensor) {
      const int64_t index = args.layout.param_of(i * VEC);
      p = numerics::make_qparams(args.qparams.scale[index], args.qparams.zero_point[index], args.range);
    }
    const InPack a = first[i];
    InPack b = a;
    if constexpr (Op::kReadsSecond) b = second[i];
    OutPack result;
#pragma unroll
    for (int k = 0; k < VEC; ++k) result.value[k] = Op::apply(a.value[k], b.value[k], p, args.range);
    out[i] = result;
  }
}

template <typename Op, int VEC>
cudaError_t launch(const Arguments& args, cudaStream_t stream) {
  const int64_t packs = args.layout.numel() / VEC;
  const int64_t blocks = ceil_div(packs, kThreads);
  elementwise_kernel<Op, VEC><<<blocks < kMaxBlocks ? blocks : kMaxBlocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

// The widest access whose elements share a parameter and whose addresses are aligned. The tail of a tensor that is not
// a multiple of the width makes the whole tensor take the narrower form: such tensors are small or rare.
template <typename Op>
cudaError_t run(const void* first, const void* second, void* out, ParamLayout layout, DeviceQParams qparams,
                QRange range, cudaStream_t stream) {
  if (layout.numel() == 0) return cudaSuccess;
  constexpr int kWide = 16 / (sizeof(typename Op::In) > sizeof(typename Op::Out) ? sizeof(typename Op::In)
                                                                                 : sizeof(typename Op::Out));
  const Arguments args{first, second, out, layout, qparams, range, layout.params() == 1};
  const bool aligned = is_aligned(first, kWide * sizeof(typename Op::In)) &&
                       is_aligned(out, kWide * sizeof(typename Op::Out)) &&
                       (!Op::kReadsSecond || is_aligned(second, kWide * sizeof(typename Op::In)));
  const int64_t uniform = layout.params() == 1 ? kWide : layout.uniform_run(kWide);
  if (aligned && uniform == kWide && layout.numel() % kWide == 0) return launch<Op, kWide>(args, stream);
  return launch<Op, 1>(args, stream);
}

}  // namespace

cudaError_t fake_quantize(const void* x, void* y, FloatType type, ParamLayout layout, DeviceQParams p, QRange range,
                          cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<FakeQuantize<T>>(x, nullptr, y, layout, p, range, stream);
  });
}

cudaError_t fake_quantize_backward(const void* grad, const void* x, void* grad_x, FloatType type, ParamLayout layout,
                                   DeviceQParams p, QRange range, cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<Backward<T>>(x, grad, grad_x, layout, p, range, stream);
  });
}

cudaError_t quantize(const void* x, void* q, FloatType type, ParamLayout layout, DeviceQParams p, QRange range,
                     cudaStream_t stream) {
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return run<Quantize<T>>(x, nullptr, q, layout, p, range, stream);
  });
}

cudaError_t dequantize(const void* q, void* y, bool q_signed, FloatType type, ParamLayout layout, DeviceQParams p,
                       cudaStream_t stream) {
  // Zero points of codes lie inside the widest 8-bit range of their sign.
  const QRange range = q_signed ? QRange{-128.0f, 127.0f} : QRange{0.0f, 255.0f};
  return dispatch_type(type, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    return q_signed ? run<Dequantize<T, int8_t>>(q, nullptr, y, layout, p, range, stream)
                    : run<Dequantize<T, uint8_t>>(q, nullptr, y, layout, p, range, stream);
  });
}

}  // namespace torchquant::kernels::cuda
