// Integer weights; see weight.h.
#include "convert/weight.h"

#include <cmath>

#include "ATen/TensorOperators.h"
#include "ATen/core/grad_mode.h"
#include "numerics/affine.h"
#include "ops/float8.h"
#include "ops/int4_weight.h"
#include "ops/ops.h"
#include "ops/quantized_common.h"

namespace torchquant::conversion {
namespace {

namespace prim = c10::prim;

struct WeightFakeQuant {
  at::Tensor weight, scale, zero_point;
  std::optional<int64_t> axis, group_size;
  int64_t quant_min, quant_max;
};

std::optional<int64_t> optional_int(const c10::IValue& value) {
  return value.isNone() ? std::nullopt : std::optional(value.toInt());
}

c10::IValue resolve_argument(const Conversion& conversion, const Node* node, const char* name) {
  const auto value = conversion.resolve(argument(node, name));
  if (!value) throw CannotLower(std::string("the ") + name + " of its weight's fake-quant is computed at run time");
  return *value;
}

WeightFakeQuant read(const Conversion& conversion, const Node* node) {
  const auto get = [&](const char* name) { return resolve_argument(conversion, node, name); };
  const auto get_float = [&](const char* name) { return get(name).toTensor().detach().to(at::kFloat); };
  return {get_float("x"),
          get_float("scale"),
          get_float("zero_point"),
          optional_int(get("axis")),
          optional_int(get("group_size")),
          get("quant_min").toInt(),
          get("quant_max").toInt()};
}

// A user's mistake, whatever happens to layers that cannot be lowered.
void check_parameters(const std::string& layer, const WeightFakeQuant& fq) {
  const at::Tensor scales = fq.scale.flatten().contiguous(), zero_points = fq.zero_point.flatten().contiguous();
  for (int64_t i = 0; i < scales.numel(); ++i) {
    const float scale = scales.const_data_ptr<float>()[i];
    TORCH_CHECK(numerics::valid_scale(scale), "convert: the scale of the weight of '", layer,
                "' must be finite and > 0, with a finite reciprocal, got ", scale, " at index ", i);
  }
  for (int64_t i = 0; i < zero_points.numel(); ++i) {
    const float zero_point = zero_points.const_data_ptr<float>()[i];
    TORCH_CHECK(std::isfinite(zero_point), "convert: the zero point of the weight of '", layer,
                "' must be finite, got ", zero_point, " at index ", i);
  }
}

// A parameter of the fake-quant, one per tensor, channel or group, repeated to the shape of the weight.
at::Tensor spread(const at::Tensor& stored, const WeightFakeQuant& fq) {
  const at::Tensor parameter = stored.flatten();
  if (!fq.axis) return parameter.expand(fq.weight.sizes());
  const int64_t axis = *fq.axis < 0 ? *fq.axis + fq.weight.dim() : *fq.axis;
  if (!fq.group_size) {
    std::vector<int64_t> shape(fq.weight.dim(), 1);
    shape[axis] = -1;
    return parameter.view(shape).expand(fq.weight.sizes());
  }
  std::vector<int64_t> grouped = fq.weight.sizes().vec();
  grouped[axis] /= *fq.group_size;
  return parameter.view(grouped).repeat_interleave(*fq.group_size, axis);
}

// One row for each output channel.
at::Tensor rows_by_channel(const at::Tensor& tensor, const WeightLayout& layout) {
  if (!layout.transposed) return tensor.reshape({tensor.size(0), -1});
  const int64_t channels = tensor.size(1);
  return tensor.reshape({layout.groups, tensor.size(0) / layout.groups, channels, -1})
      .permute({0, 2, 1, 3})
      .reshape({layout.groups * channels, -1});
}

bool constant_along_rows(const at::Tensor& rows) { return rows.eq(rows.narrow(-1, 0, 1)).all().item<bool>(); }

// [O, K] -> [O] where a row shares one value, else [O, K / group_size].
at::Tensor collapse(const at::Tensor& rows, std::optional<int64_t> group_size) {
  if (constant_along_rows(rows)) return rows.select(1, 0).contiguous();
  if (group_size && rows.size(1) % *group_size == 0) {
    const at::Tensor groups = rows.reshape({rows.size(0), -1, *group_size});
    if (constant_along_rows(groups)) return groups.select(2, 0).contiguous();
  }
  throw CannotLower("its weight's scales differ inside an output channel, in no groups along the inputs");
}

// Both parameters per channel, or both per group.
void set_parameters(IntegerWeight& weight, const at::Tensor& scale_rows, const at::Tensor& zero_point_rows,
                    std::optional<int64_t> group_size) {
  const bool per_channel = constant_along_rows(scale_rows) && constant_along_rows(zero_point_rows);
  if (per_channel) group_size.reset();
  weight.group_size = group_size;
  weight.scale = collapse(scale_rows, group_size);
  weight.zero_point = collapse(zero_point_rows, group_size);
  if (weight.scale.dim() != weight.zero_point.dim()) {
    const at::Tensor& grouped = weight.scale.dim() == 2 ? weight.scale : weight.zero_point;
    at::Tensor& plain = weight.scale.dim() == 2 ? weight.zero_point : weight.scale;
    plain = plain.unsqueeze(1).expand_as(grouped).contiguous();
  }
}

bool fits(const at::Tensor& codes, int64_t quant_min, int64_t quant_max) {
  return codes.numel() == 0 || (codes.min().item<int64_t>() >= quant_min && codes.max().item<int64_t>() <= quant_max);
}

// Stores codes as int8, with the zero point subtracted from them where the result still fits.
void set_codes(IntegerWeight& weight, const at::Tensor& codes, const at::Tensor& zero_points,
               const WeightFakeQuant& fq) {
  weight.bits = fq.quant_max - fq.quant_min <= 15 && fq.quant_min >= -8 && fq.quant_min <= 0 ? 4 : 8;
  const int64_t lowest = weight.bits == 4 ? -8 : -128;
  const bool symmetric = zero_points.eq(0).all().item<bool>();
  const at::Tensor centred = codes - zero_points;
  if (fits(centred, lowest, -lowest - 1)) {
    weight.codes = centred.to(at::kChar);
    weight.quant_min = symmetric ? fq.quant_min : lowest;
    weight.zero_point = at::Tensor();
    return;
  }
  // Codes of [0, 255] do not fit int8: moved down by half the range, zero point and all.
  const int64_t shift = fq.quant_max > 127 ? 128 : 0;
  weight.codes = (codes - shift).to(at::kChar);
  weight.quant_min = fq.quant_min - shift;
  weight.zero_point = symmetric && shift == 0 ? at::Tensor() : weight.zero_point - shift;
}

}  // namespace

Node* weight_fake_quant(const Conversion& conversion, const Value* weight) {
  const Node* node = weight->node();
  if (is_fake_quant(node) && conversion.resolve(node->input(0))) return const_cast<Node*>(node);
  if (node->kind() == prim::ListUnpack || moves_data(conversion, node)) {
    return weight_fake_quant(conversion, node->input(0));
  }
  return nullptr;
}

std::optional<std::vector<int64_t>> weight_shape(const Conversion& conversion, const Value* weight) {
  Known known;  // the shape of the floats before the fake-quant, which need not run for it
  if (const Node* fake_quant = weight_fake_quant(conversion, weight)) {
    known[fake_quant->output()] = *conversion.resolve(fake_quant->input(0));
  }
  const auto resolved = conversion.resolve(weight, known);
  if (!resolved || !resolved->isTensor()) return std::nullopt;
  return resolved->toTensor().sizes().vec();
}

std::string layer_of(const Conversion& conversion, const Value* weight) {
  const Node* fake_quant = weight_fake_quant(conversion, weight);
  const Value* value = fake_quant ? fake_quant->input(0) : weight;
  while (value->node()->kind() != prim::GetAttr && !value->node()->inputs().empty()) value = value->node()->input(0);
  const std::string path = attribute_path(value);
  const std::string owner = parent_path(path);
  return owner.empty() ? path : owner;
}

IntegerWeight integer_weight(const Conversion& conversion, const Value* weight, const WeightLayout& layout) {
  const at::NoGradGuard no_grad;
  const Node* node = weight_fake_quant(conversion, weight);
  const WeightFakeQuant fq = read(conversion, node);
  const auto as_read = [&](const at::Tensor& tensor) {
    return conversion.resolve(weight, {{node->output(), tensor}})->toTensor();
  };
  IntegerWeight result;
  result.layer = layer_of(conversion, weight);
  check_parameters(result.layer, fq);
  const auto code_type = fq.quant_max > 127 ? at::kByte : at::kChar;
  const at::Tensor codes =
      quantize(fq.weight, fq.scale, fq.zero_point, fq.axis, fq.group_size, code_type, fq.quant_min, fq.quant_max);
  const at::Tensor zero_point = fq.zero_point.round().clamp(fq.quant_min, fq.quant_max);
  const at::Tensor zero_points = as_read(spread(zero_point, fq));
  set_parameters(result, rows_by_channel(as_read(spread(fq.scale, fq)), layout), rows_by_channel(zero_points, layout),
                 fq.group_size);
  set_codes(result, as_read(codes).to(at::kInt), zero_points.to(at::kInt), fq);
  return result;
}

Float8Weight float8_weight(const Conversion& conversion, const Value* weight) {
  const at::NoGradGuard no_grad;
  const Node* node = weight_fake_quant(conversion, weight);
  if (!resolve_argument(conversion, node, "scale").isNone()) {
    throw CannotLower("the fp8 fake-quant of its weight has a given scale, and the kernel takes one for each row");
  }
  const auto dtype = static_cast<at::ScalarType>(resolve_argument(conversion, node, "dtype").toInt());
  const at::Tensor floats = conversion.resolve(node->input(0))->toTensor().detach().to(at::kFloat);
  TORCH_CHECK(floats.isfinite().all().item<bool>(), "convert: the weight of '", layer_of(conversion, weight),
              "' must be finite to become 8-bit floats");
  const auto [codes, scale] = quantize_fp8_dynamic(floats, dtype);
  // What moves the weight about moves bytes and scales alike.
  const auto as_read = [&](const at::Tensor& tensor) {
    return conversion.resolve(weight, {{node->output(), tensor}})->toTensor();
  };
  const at::Tensor scales = as_read(scale.unsqueeze(-1).expand(floats.sizes()));
  if (!constant_along_rows(scales)) throw CannotLower("its weight's scales differ inside an output channel");
  return {layer_of(conversion, weight), as_read(codes.view(at::kByte)).contiguous().view(dtype),
          scales.select(1, 0).contiguous()};
}

void require_symmetric_per_channel(const IntegerWeight& weight) {
  if (weight.group_size) {
    throw CannotLower("its weight has one scale per group of " + std::to_string(*weight.group_size) +
                      " inputs, and kernels that add integers take one per output channel; use a weight-only QConfig");
  }
  if (weight.zero_point.defined()) {
    throw CannotLower("its weight has a zero point, and kernels that add integers take symmetric weights");
  }
}

void require_int32_sum(const IntegerWeight& weight, int64_t depth) {
  const int64_t largest = ops::largest_depth(weight.quant_min);
  if (depth <= largest) return;
  throw CannotLower("an output sums " + std::to_string(depth) + " products, and an int32 sum holds at most " +
                    std::to_string(largest));
}

Value* weight_buffer(Conversion& conversion, const IntegerWeight& weight) {
  const at::Tensor codes = weight.codes.contiguous();
  return conversion.buffer(weight.layer + ".weight_" + weight.precision(),
                           weight.bits == 4 ? ops::pack_int4(codes, weight.quant_min) : codes);
}

}  // namespace torchquant::conversion
