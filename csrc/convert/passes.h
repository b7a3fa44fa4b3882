// The passes of the converter, in the order in which convert.cpp runs them. Each is one transformation in one file of
// passes/; each leaves a graph that computes what it computed before.
#pragma once

#include "convert/conversion.h"

namespace torchquant::conversion {

// Removes what does nothing in eval mode: dropout.
void remove_identities(Conversion& conversion);
// view -> reshape (integer convolutions give channels-last tensors), and ranks that are known -> constants.
void normalize_shapes(Conversion& conversion);
// conv1d, conv2d, conv_transpose1d/2d, _convolution, _convolution_mode with a fake-quantized weight ->
// aten::convolution.
void normalize_convolution(Conversion& conversion);
// matmul, mm, addmm on a fake-quantized weight -> aten::linear.
void normalize_linear(Conversion& conversion);
// mean over all spatial dimensions of a fake-quantized tensor -> adaptive average pool.
void normalize_mean(Conversion& conversion);

// fake_quantize of an activation -> quantize, dequantize.
void lower_activations(Conversion& conversion);
// quantize of what moves, pads, concatenates or max-pools values -> the same on codes.
void hoist_quantize(Conversion& conversion);
// The same ops on dequantized values -> dequantize of the op on codes.
void sink_dequantize(Conversion& conversion);

// fake_quantize_fp8, linear on a weight with a fake_quantize_fp8 -> quantized_linear_fp8. Before the other layers,
// whose passes know weights of integers alone.
void lower_fp8_linear(Conversion& conversion);
// dequantize, compute, [batch norm], [residual], [activation], [quantize] -> one op.
void lower_convolution(Conversion& conversion);
void lower_linear(Conversion& conversion);
// choose_qparams, fake_quantize, linear -> quantized_linear_dynamic.
void lower_dynamic_linear(Conversion& conversion);
// linear and embedding on a fake-quantized weight and a float input.
void lower_weight_only_linear(Conversion& conversion);
void lower_embedding(Conversion& conversion);

// batch_norm of a quantized tensor that no layer takes in.
void lower_batch_norm(Conversion& conversion);
// Average pools of quantized tensors.
void lower_average_pool(Conversion& conversion);
// Linear and bilinear resizes of quantized tensors.
void lower_resize(Conversion& conversion);
// add and mul of two quantized tensors.
void lower_add(Conversion& conversion);
void lower_mul(Conversion& conversion);
// matmul, bmm and mm of two quantized tensors.
void lower_matmul(Conversion& conversion);
// Pointwise functions between two quantized tensors -> a table; quantize of what is quantized already -> nothing or a
// table.
void lower_pointwise(Conversion& conversion);

// Marks every layer with a fake-quant that is still there as a fallback, and stores its weight as floats.
void collect_fallbacks(Conversion& conversion);
// Devices and tensors that tracing baked in -> the input's device and buffers.
void follow_input_device(Conversion& conversion);
// scaled_dot_product_attention -> torchquant::attention, whose bits do not depend on the CPU.
void lower_attention(Conversion& conversion);
// layer_norm over the last dimension -> torchquant::layer_norm, likewise.
void lower_layer_norm(Conversion& conversion);
// Linear ops on one input that finish alike (query, key, value) -> one over all their rows.
void merge_linears(Conversion& conversion);
// Connected runs of integer ops, with the attention, layer norms and sums between them -> one op each. After the
// receipt's rows are known, which it hands on.
void form_islands(Conversion& conversion);

}  // namespace torchquant::conversion
