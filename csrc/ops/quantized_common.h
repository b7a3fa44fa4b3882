// What the integer ops share: the output arguments with their schema text, argument checks, NHWC tensors and 4-bit
// weights. Called by csrc/ops/quantized_*.cpp. Every check names the op, the argument, what is allowed and what it got.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/quantized_kernels.h"
#include "ops/checks.h"

namespace torchquant::ops {

// Schema text of OutputArgs; every op that requantizes ends with it.
inline constexpr const char* kOutputSchema =
    "str activation=\"none\", float[] activation_args=[], float output_scale=1.0, int output_zero_point=0, "
    "int output_quant_min=0, int output_quant_max=255, ScalarType output_dtype";
// Stands before kOutputSchema in ops that can add a residual branch.
inline constexpr const char* kResidualSchema = "float residual_multiplier=1.0, int residual_zero_point=0, ";

// Declares an op. The same function then serves CPU and Meta: it returns after its checks and with an empty output
// unless x is on the CPU. The CUDA half calls it so too (check_and_allocate in ops/cuda_call.h).
inline void define(torch::Library& library, const std::string& schema) {
  library.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
}

struct OutputArgs {
  std::string_view activation;
  at::ArrayRef<double> activation_args;
  double scale;
  int64_t zero_point;
  int64_t quant_min;
  int64_t quant_max;
  at::ScalarType dtype;
};

// "none", "relu", "relu6", "hardtanh", ... -> kernel form. The three clamps take [lo, hi] divided by the output scale;
// the others take no arguments.
TQ_API kernels::ActivationSpec activation_spec(const char* op, std::string_view activation,
                                               at::ArrayRef<double> activation_args, double output_scale);

std::string activation_names();  // all of them, for messages

// Checks the output arguments and turns them into the kernel's form. A half output is computed in fp32 and converted.
TQ_API kernels::OutputSpec output_spec(const char* op, const OutputArgs& args);

bool is_code_type(at::ScalarType type);  // uint8 or int8
TQ_API kernels::ElementType element_type(at::ScalarType type);
TQ_API at::ScalarType compute_dtype(at::ScalarType output_dtype);  // what the kernel stores: fp32 for bf16 and fp16

void check_codes(const char* op, const char* name, const at::Tensor& x);
void check_output_dtype(const char* op, at::ScalarType type);
void check_zero_point(const char* op, const char* name, int64_t zero_point, at::ScalarType type);
void check_finite(const char* op, const char* name, double value);
// Every value finite; with `positive`, also > 0. Reads the values: not for Meta tensors.
void check_values(const char* op, const char* name, const at::Tensor& values, bool positive);
// An fp32 vector with one element per output channel.
void check_per_channel(const char* op, const char* name, const at::Tensor& values, const c10::SymInt& channels);
void check_shape(const char* op, const char* name, const at::Tensor& x, c10::SymIntArrayRef expected);
// The most products that an int32 sum holds: depth * 255 * 127 stays below 2^31, with 128 where weights may be -128.
int64_t largest_depth(int64_t weight_quant_min);
void check_depth(const char* op, const c10::SymInt& depth, int64_t weight_quant_min);
// weight_bits and weight_quant_min, and the weight's dtype, which follows from them.
void check_weight_bits(const char* op, const at::Tensor& weight, int64_t bits, int64_t quant_min);
// Columns of a row of `codes` codes as stored: codes for 8 bits, ceil(codes / 2) for 4.
c10::SymInt stored_columns(const c10::SymInt& codes, int64_t bits);

// x [..., K] and weight [N, K] (packed: [N, ceil(K / 2)]) of a linear op; returns the output's sizes [..., N].
std::vector<c10::SymInt> check_linear(const char* op, const at::Tensor& x, const at::Tensor& weight, int64_t bits,
                                      int64_t quant_min);
// Scale, and zero point where there is one, of weight rows of `columns` codes: [rows], or [rows, columns / group_size].
void check_grouped_scale(const char* op, const at::Tensor& scale, const std::optional<at::Tensor>& zero_point,
                         const c10::SymInt& rows, const c10::SymInt& columns, std::optional<int64_t> group_size);
// Both operands of an elementwise op hold codes, their zero points fit, and they share a device.
void check_operands(const char* op, const at::Tensor& a, int64_t a_zero_point, const at::Tensor& b,
                    int64_t b_zero_point);

// A dense int8 matrix [rows, columns] of the weight's codes: the tensor itself for 8 bits, unpacked for 4.
at::Tensor int8_weight(const at::Tensor& weight, int64_t rows, int64_t columns, int64_t bits, int64_t quant_min);

// NHWC: an empty [N, C, L] or [N, C, H, W] whose channels are innermost in memory, and a copy of x in that layout where
// x has another one. The pointer of either is a dense [N, (H,) W, C].
at::Tensor empty_channels_last(c10::SymIntArrayRef sizes, const at::TensorOptions& options);
TQ_API at::Tensor to_channels_last(const at::Tensor& x);
// The dense layout that either has; a tensor of three dimensions is an image of one row.
TQ_API kernels::ImageLayout image_layout(const at::Tensor& x);

// The output of an elementwise op: laid out like the first operand that has its shape and is dense, else contiguous.
at::Tensor empty_elementwise(c10::SymIntArrayRef sizes, const at::Tensor& a, const at::Tensor& b, at::ScalarType dtype);
// x broadcast to out's shape with out's strides, so that both can be walked as one dense run.
TQ_API at::Tensor match_layout(const at::Tensor& x, const at::Tensor& out);

// The residual's parameters; `data` is left to the caller, who knows the layout. Its shape must be the output's: a
// fused residual does not broadcast.
TQ_API kernels::Residual residual_spec(const char* op, const std::optional<at::Tensor>& residual, const at::Tensor& x,
                                       c10::SymIntArrayRef sizes, double multiplier, int64_t zero_point);
TQ_API kernels::Operand operand(const at::Tensor& dense, int64_t zero_point);

// An optional per-channel tensor as dense fp32, undefined where there is none, and its data, null where undefined.
TQ_API at::Tensor float_or_undefined(const std::optional<at::Tensor>& tensor);
TQ_API const float* float_data_or_null(const at::Tensor& tensor);

// Items of `cost` operations each that are worth a thread of their own.
inline int64_t grain_size(int64_t cost) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cost)); }

template <typename Fn>
void parallel_range(int64_t count, int64_t cost, Fn&& fn) {
  at::parallel_for(0, count, grain_size(cost), [&](int64_t begin, int64_t end) {
    fn(kernels::IndexRange{begin, end});
  });
}

// Operations that requantizing one element takes, for grain_size.
inline constexpr int64_t kElementCost = 8;

}  // namespace torchquant::ops
