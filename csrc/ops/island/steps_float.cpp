// Step kinds of the float work that an island takes in between its integer ops: attention, layer norm and sums.
#include "kernels/float_rows.h"
#include "kernels/quantized_kernels.h"
#include "ops/attention.h"
#include "ops/island/step_arguments.h"

namespace torchquant::island {
namespace {

bool is_float(const PlanBuilder& builder, Slot slot) { return builder.eager(slot).scalar_type() == at::kFloat; }

// `slot` in the layout of `like`, copied if it lies otherwise.
Slot laid_out_like(PlanBuilder& builder, Slot slot, const at::Tensor& like) {
  return same_dense_layout(builder.physical(slot), like) ? slot : builder.add_copy_like(slot, like);
}

// ---- sums -------------------------------------------------------------------------------------------------------

class AddFloats final : public Work {
 public:
  AddFloats(Place a, Place b, Place out, int64_t elements, int threads)
      : a_(a), b_(b), out_(out), slices_(elements, 1, threads) {}

  int64_t tasks() const override { return slices_.count(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    const auto at = [&](const Place& place) { return reinterpret_cast<float*>(memory.at(place)); };
    kernels::float_row_kernels(kernels::selected_isa()).add({at(a_), at(b_), at(out_)}, slices_.items(tasks));
  }

 private:
  Place a_, b_, out_;
  Slices slices_;
};

bool add_fits(const PlanBuilder& builder, const StepView& step) {
  const Slot a = step.slot("self"), b = step.slot("other");
  const at::Tensor& out = builder.eager(step.result());
  const auto fits = [&](Slot slot) {
    return slot != kNoSlot && is_float(builder, slot) && builder.eager(slot).sizes() == out.sizes();
  };
  const c10::IValue& alpha = step.literal("alpha");
  return fits(a) && fits(b) && out.is_non_overlapping_and_dense() && alpha.isInt() && alpha.toInt() == 1;
}

void make_add(PlanBuilder& builder, const StepView& step) {
  const Slot out = step.result();
  const at::Tensor layout = builder.physical(out);
  const Slot a = laid_out_like(builder, step.slot("self"), layout);
  const Slot b = laid_out_like(builder, step.slot("other"), layout);
  builder.add(std::make_unique<AddFloats>(builder.place(a), builder.place(b), builder.place(out), layout.numel(),
                                          builder.threads()),
              {a, b}, {out});
}

// ---- layer norm -------------------------------------------------------------------------------------------------

class LayerNorm final : public Work {
 public:
  LayerNorm(const kernels::LayerNormArgs& args, Place x, Place out, std::optional<Place> weight,
            std::optional<Place> bias, const Slices& rows)
      : args_(args), x_(x), out_(out), weight_(weight), bias_(bias), rows_(rows) {}

  int64_t tasks() const override { return rows_.count(); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    const auto at = [&](const Place& place) { return reinterpret_cast<float*>(memory.at(place)); };
    kernels::LayerNormArgs args = args_;
    args.x = at(x_);
    args.out = at(out_);
    args.weight = weight_ ? at(*weight_) : nullptr;
    args.bias = bias_ ? at(*bias_) : nullptr;
    kernels::float_row_kernels(kernels::selected_isa()).layer_norm(args, rows_.items(tasks));
  }

 private:
  kernels::LayerNormArgs args_;
  Place x_, out_;
  std::optional<Place> weight_, bias_;
  Slices rows_;
};

bool layer_norm_fits(const PlanBuilder& builder, const StepView& step) {
  const at::Tensor& x = builder.eager(step.slot("x"));
  const auto fits = [&](Slot slot) {
    return slot == kNoSlot || (is_float(builder, slot) && builder.eager(slot).is_contiguous() &&
                               builder.eager(slot).sizes() == at::IntArrayRef{x.size(-1)});
  };
  return x.dim() > 0 && is_float(builder, step.slot("x")) && fits(step.slot("weight")) && fits(step.slot("bias"));
}

void make_layer_norm(PlanBuilder& builder, const StepView& step) {
  const Slot out = step.result();
  const at::Tensor layout = builder.physical(out);
  const Slot x = laid_out_like(builder, step.slot("x"), layout);
  const int64_t columns = layout.size(-1);
  std::vector<Slot> reads{x};
  const auto vector_at = [&](const char* name) -> std::optional<Place> {
    const Slot slot = step.slot(name);
    if (slot == kNoSlot) return std::nullopt;
    reads.push_back(slot);
    return builder.place(slot);
  };
  const auto weight = vector_at("weight"), bias = vector_at("bias");
  const kernels::LayerNormArgs args{columns, nullptr, nullptr, nullptr, static_cast<float>(real(step, "eps")), nullptr};
  builder.add(std::make_unique<LayerNorm>(args, builder.place(x), builder.place(out), weight, bias,
                                          Slices(layout.numel() / columns, columns, builder.threads())),
              reads, {out});
}

// ---- attention --------------------------------------------------------------------------------------------------

class Attention final : public Work {
 public:
  struct Places {
    Place q, k, v, out;
    std::optional<Place> mask;
  };
  Attention(const kernels::AttentionArgs& args, const Places& places) : args_(args), places_(places) {}

  int64_t tasks() const override { return kernels::attention_blocks(args_); }
  void run(const Memory& memory, kernels::IndexRange tasks) const override {
    const auto at = [&](const Place& place) { return reinterpret_cast<float*>(memory.at(place)); };
    thread_local std::vector<float> scratch;  // kept, so that a steady run allocates nothing
    const auto needed = static_cast<size_t>(kernels::attention_scratch(args_));
    if (scratch.size() < needed) scratch.resize(needed);
    kernels::AttentionArgs args = args_;
    args.q.data = at(places_.q);
    args.k.data = at(places_.k);
    args.v.data = at(places_.v);
    args.out.data = at(places_.out);
    if (places_.mask) args.mask.data = at(*places_.mask);
    kernels::quantized_kernels().attention(args, tasks, scratch.data());
  }

 private:
  kernels::AttentionArgs args_;
  Places places_;
};

// A bool mask has to become numbers first: the op does that.
bool attention_fits(const PlanBuilder& builder, const StepView& step) {
  const Slot mask = step.slot("attn_mask");
  return ops::attention_kernel_takes(builder.eager(step.slot("query")), builder.eager(step.slot("key")),
                                     builder.eager(step.slot("value"))) &&
         (mask == kNoSlot || (is_float(builder, mask) && !step.literal("is_causal").toBool()));
}

void make_attention(PlanBuilder& builder, const StepView& step) {
  const auto rows_of = [&](const char* name) {
    const Slot slot = step.slot(name);
    return builder.physical(slot).stride(-1) == 1 ? slot
                                                  : builder.add_copy_like(slot, builder.eager(slot).contiguous());
  };
  const Slot q = rows_of("query"), k = rows_of("key"), v = rows_of("value"), mask = step.slot("attn_mask");
  const Slot out = step.result();
  const c10::IValue& scale = step.literal("scale");
  kernels::AttentionArgs args =
      ops::attention_args(builder.physical(q), builder.physical(k), step.literal("is_causal").toBool(),
                          scale.isNone() ? std::nullopt : std::optional(scale.toDouble()));
  ops::set_head_strides(args.q, builder.physical(q));
  ops::set_head_strides(args.k, builder.physical(k));
  ops::set_head_strides(args.v, builder.physical(v));
  ops::set_head_strides(args.out, builder.physical(out));
  std::vector<Slot> reads{q, k, v};
  std::optional<Place> mask_place;
  if (mask != kNoSlot) {
    const at::Tensor whole = builder.physical(mask).expand({args.batch, args.heads, args.queries, args.keys});
    ops::set_head_strides(args.mask, whole);
    args.mask_column_stride = whole.stride(3);
    reads.push_back(mask);
    mask_place = builder.place(mask);
  }
  builder.add(std::make_unique<Attention>(args, Attention::Places{builder.place(q), builder.place(k), builder.place(v),
                                                                  builder.place(out), mask_place}),
              reads, {out});
}

const RegisterStep kAdd("aten::add.Tensor", {add_fits, nullptr, make_add});
const RegisterStep kLayerNorm("torchquant::layer_norm", {layer_norm_fits, nullptr, make_layer_norm});
const RegisterStep kAttention("torchquant::attention", {attention_fits, nullptr, make_attention});

}  // namespace
}  // namespace torchquant::island
