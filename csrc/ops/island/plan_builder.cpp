// Places the values of an island and orders its work; see plan_builder.h.
#include "ops/island/plan_builder.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <unordered_map>

#include "ops/island/copy_work.h"

namespace torchquant::island {
namespace {

std::unordered_map<std::string, StepKind>& step_kinds() {
  static std::unordered_map<std::string, StepKind> kinds;
  return kinds;
}

const StepKind* find_kind(const std::string& op) {
  const auto found = step_kinds().find(op);
  return found == step_kinds().end() ? nullptr : &found->second;
}

at::Tensor meta_like(const at::Tensor& tensor) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
}

// Strides of [N, C, H, W] or [N, C, L] with the channels innermost and a border around each image.
std::vector<int64_t> channels_last_strides(at::IntArrayRef sizes, const kernels::Border& border) {
  const int64_t channels = sizes[1];
  const int64_t row = (border.left + sizes.back() + border.right) * channels;
  if (sizes.size() == 3) return {row, 1, channels};
  return {(border.top + sizes[2] + border.bottom) * row, 1, row, channels};
}

bool is_channels_last(const at::Tensor& tensor) {
  return tensor.dim() >= 3 && tensor.dim() <= 4 && tensor.stride(1) == 1;
}

bool covers(const kernels::Border& a, const kernels::Border& b) {
  return a.top >= b.top && a.bottom >= b.bottom && a.left >= b.left && a.right >= b.right;
}

bool is_empty(const kernels::Border& border) { return covers({}, border); }

kernels::Border larger(const kernels::Border& a, const kernels::Border& b) {
  return {std::max(a.top, b.top), std::max(a.bottom, b.bottom), std::max(a.left, b.left), std::max(a.right, b.right),
          std::max(a.tail_bytes, b.tail_bytes)};
}

// Readable bytes behind every buffer of the arena, so that most kernels' tail needs no attention.
constexpr int64_t kSlackBytes = 64;

bool holds_tensor(const Bound& bound) { return bound.slot != kNoSlot || !bound.slots.empty(); }

}  // namespace

RegisterStep::RegisterStep(const char* op, StepKind kind) { step_kinds().emplace(op, kind); }

StepView::StepView(const PlanBuilder& builder, const Step& step, std::vector<Slot> results)
    : step_(&step), results_(std::move(results)) {
  if (!step.op.starts_with("island::")) {
    const size_t dot = step.op.find('.');
    const std::string overload = dot == std::string::npos ? "" : step.op.substr(dot + 1);
    schema_ =
        &c10::Dispatcher::singleton().findSchemaOrThrow(step.op.substr(0, dot).c_str(), overload.c_str()).schema();
  }
  for (size_t i = 0; i < step.arguments.size(); ++i) {
    const c10::TypePtr type = schema_ ? schema_->arguments().at(i).real_type() : c10::TypePtr(c10::AnyType::get());
    arguments_.push_back(builder.bind(step.arguments[i], type));
  }
}

const Bound& StepView::bound(const std::string& name) const {
  return arguments_.at(schema_->argumentIndexWithName(name).value());
}

PlanBuilder::PlanBuilder(const Program& program, const Operands& operands, int threads)
    : program_(program), threads_(threads), sizes_(operands.sizes.begin(), operands.sizes.end()) {
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const at::Tensor& input : operands.inputs) input_slots_.push_back(add_slot(meta_like(input)));
  for (const at::Tensor& constant : operands.constants) {
    constant_slots_.push_back(add_slot(meta_like(constant)));
    slots_.back().constant = constant;
  }
  run_on_meta(operands);
  place_sources(operands);
  count_images();
}

bool PlanBuilder::build() {
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const SlotState& slot : slots_) {
    if (slot.eager.numel() == 0) return false;
  }
  choose_outputs();
  if (!collect_wishes()) return false;
  for (const StepView& view : views_) {
    if (!make_step(view)) return false;
  }
  make_outputs();
  link_convs();
  return true;
}

void PlanBuilder::link_convs() {
  Work* last = nullptr;
  for (const Phase& phase : phases) {
    for (const auto& work : phase.works) {
      if (work->conv() == nullptr) continue;
      if (last != nullptr) last->set_next_conv(work->conv());
      last = work.get();
    }
  }
}

// ---- shapes -----------------------------------------------------------------------------------------------------

Slot PlanBuilder::add_slot(const at::Tensor& tensor) {
  slots_.emplace_back().eager = tensor;
  return static_cast<Slot>(slots_.size()) - 1;
}

void PlanBuilder::run_on_meta(const Operands& operands) {
  for (const at::Tensor& input : operands.inputs) meta_inputs_.push_back(meta_like(input));
  for (const at::Tensor& constant : operands.constants) meta_constants_.push_back(meta_like(constant));
  for (const Step& step : program_.steps) {
    const size_t first = values_.size();
    run_step(step, {meta_inputs_, sizes_, meta_constants_}, values_);
    std::vector<Slot> results;
    for (size_t i = first; i < values_.size(); ++i) {
      value_slots_.emplace_back();
      const c10::IValue& value = values_[i];
      if (step.op == kUnpack) {
        value_slots_.back() = {value_slots_.at(std::get<Reference>(step.arguments[0].content).index).at(i - first)};
      } else if (value.isTensor()) {
        value_slots_.back() = {add_slot(value.toTensor())};
      } else if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorVector()) value_slots_.back().push_back(add_slot(tensor));
      }
      results.insert(results.end(), value_slots_.back().begin(), value_slots_.back().end());
    }
    // Sizes are known now, and the elements of lists were named with the list.
    if (!step.op.starts_with("island::")) views_.emplace_back(*this, step, std::move(results));
  }
}

Bound PlanBuilder::bind(const Argument& argument, const c10::TypePtr& type) const {
  const auto slots_of = [&](const Reference& reference) -> std::vector<Slot> {
    switch (reference.source) {
      case Source::kValue:
        return value_slots_.at(reference.index);
      case Source::kInput:
        return {input_slots_.at(reference.index)};
      case Source::kConstant:
        return {constant_slots_.at(reference.index)};
      case Source::kSize:
        return {};
    }
    return {};
  };
  Bound bound;
  if (const auto* reference = std::get_if<Reference>(&argument.content)) {
    const std::vector<Slot> slots = slots_of(*reference);
    if (slots.size() == 1) bound.slot = slots[0];
    if (slots.size() > 1) bound.slots = slots;
  } else if (std::holds_alternative<List>(argument.content)) {
    for_each_reference(argument, [&](const Reference& reference) {
      const std::vector<Slot> slots = slots_of(reference);
      bound.slots.insert(bound.slots.end(), slots.begin(), slots.end());
    });
  }
  if (!holds_tensor(bound)) bound.literal = resolve(argument, type, {meta_inputs_, sizes_, meta_constants_}, values_);
  return bound;
}

// ---- wishes -----------------------------------------------------------------------------------------------------

// A value that leaves the island is written where it leaves, unless a second output is the same value.
void PlanBuilder::choose_outputs() {
  for (size_t i = 0; i < program_.outputs.size(); ++i) {
    const Reference& output = program_.outputs[i];
    if (output.source != Source::kValue || value_slots_.at(output.index).size() != 1) continue;
    SlotState& slot = slots_[value_slots_[output.index][0]];
    if (slot.output < 0) slot.output = static_cast<int64_t>(i);
  }
}

bool PlanBuilder::collect_wishes() {
  for (const StepView& view : views_) {
    const StepKind* kind = find_kind(view.step().op);
    if (!kind || !kind->fits(*this, view)) continue;
    for (const Slot result : view.results()) slots_[result].made_here = true;
  }
  for (auto view = views_.rbegin(); view != views_.rend(); ++view) {
    const StepKind* kind = find_kind(view->step().op);
    if (kind && kind->wish && kind->fits(*this, *view)) kind->wish(*this, *view);
  }
  return true;
}

Slot PlanBuilder::root(Slot slot) const {
  while (slots_[slot].wish.inside != kNoSlot) slot = slots_[slot].wish.inside;
  return slot;
}

void PlanBuilder::wish_channels_last(Slot slot) {
  if (slots_[slot].made_here && slots_[slot].eager.dim() >= 3) slots_[slot].wish.channels_last = true;
}

void PlanBuilder::wish_border(Slot slot, const kernels::Border& border, int32_t fill) {
  if (!slots_[slot].made_here) return;
  Wish& wish = slots_[root(slot)].wish;
  wish.border.tail_bytes = std::max(wish.border.tail_bytes, border.tail_bytes);
  if (is_empty(border)) return;
  if (wish.fill && *wish.fill != fill) return;  // the second reader gets a copy
  wish.channels_last = true;
  wish.border = larger(wish.border, border);
  wish.fill = fill;
}

bool PlanBuilder::wish_inside(Slot slot, Slot target, int64_t dim, int64_t start) {
  SlotState& part = slots_[slot];
  const SlotState& whole = slots_[target];
  const bool pixels = whole.wish.channels_last || is_channels_last(whole.eager) || whole.eager.dim() == 2;
  if (!part.made_here || !whole.made_here || !pixels || part.output >= 0 || part.wish.inside != kNoSlot) return false;
  const Wish before = part.wish;
  if (before.fill && slots_[root(target)].wish.fill.value_or(*before.fill) != *before.fill) return false;
  part.wish.inside = target;
  part.wish.dim = dim;
  part.wish.start = start;
  if (before.fill) wish_border(slot, before.border, *before.fill);
  return true;
}

// ---- places -----------------------------------------------------------------------------------------------------

void PlanBuilder::place_sources(const Operands& operands) {
  const auto place = [&](Slot slot, Buffer::Home home, size_t index) {
    SlotState& state = slots_[slot];
    state.physical = state.eager;
    state.buffer = static_cast<int64_t>(buffers.size());
    buffers.push_back({.home = home, .index = static_cast<int64_t>(index)});
  };
  for (size_t i = 0; i < operands.inputs.size(); ++i) place(input_slots_[i], Buffer::Home::kInput, i);
  for (size_t i = 0; i < operands.constants.size(); ++i) place(constant_slots_[i], Buffer::Home::kConstant, i);
}

// ---- images -----------------------------------------------------------------------------------------------------

void PlanBuilder::count_images() {
  // A size that comes from outside may be the number of images.
  if (input_slots_.empty() || !sizes_.empty()) return;
  const at::Tensor& first = slots_[input_slots_[0]].eager;
  const int64_t images = first.dim() > 0 ? first.size(0) : 0;
  for (const Slot input : input_slots_) {
    const at::Tensor& tensor = slots_[input].eager;
    if (tensor.dim() == 0 || tensor.size(0) != images) return;
  }
  for (const Slot input : input_slots_) slots_[input].per_image = true;
  images_ = images;
}

// Follows images through a step that keeps those of its operands `apart`, as far as its own code goes.
void PlanBuilder::note_images(const StepView& view, bool apart) {
  const auto known = [&](Slot slot) { return slots_[slot].per_image || slots_[slot].constant.defined(); };
  for (const Bound& bound : view.arguments()) {
    if (bound.slot != kNoSlot) apart = apart && known(bound.slot);
    for (const Slot slot : bound.slots) apart = apart && known(slot);
  }
  for (const Slot result : view.results()) {
    const at::Tensor& tensor = slots_[result].eager;
    apart = apart && tensor.dim() > 0 && tensor.size(0) == images_;
    slots_[result].per_image = apart;
  }
  if (!apart) images_ = 0;
}

// Whether image i of `view` lies within image i of `source`.
bool PlanBuilder::cuts_images(const at::Tensor& source, const at::Tensor& view) const {
  if (view.dim() == 0 || view.size(0) != images_) return false;
  if (images_ == 1) return true;
  int64_t last = view.storage_offset() - source.storage_offset();
  for (int64_t dim = 1; dim < view.dim(); ++dim) last += (view.size(dim) - 1) * view.stride(dim);
  return view.stride(0) == source.stride(0) && last < source.stride(0);
}

// ---- arena ------------------------------------------------------------------------------------------------------

void PlanBuilder::place_in_arena(Slot slot) {
  SlotState& state = slots_[slot];
  const at::Tensor& eager = state.eager;
  std::vector<int64_t> strides;
  int64_t offset = 0;
  const bool image = eager.dim() == 3 || eager.dim() == 4;
  if (image && (state.wish.channels_last || is_channels_last(eager))) {
    strides = channels_last_strides(eager.sizes(), state.wish.border);
    offset = state.wish.border.left * eager.size(1) + (eager.dim() == 4 ? state.wish.border.top * strides[2] : 0);
    state.fill = state.wish.fill;
  } else {
    strides = eager.is_non_overlapping_and_dense() ? eager.strides().vec() : eager.contiguous().strides().vec();
  }
  state.border = state.wish.border;
  const int64_t elements = image && strides[1] == 1 ? eager.size(0) * strides[0] : eager.numel();
  state.buffer = static_cast<int64_t>(buffers.size());
  buffers.push_back(
      {.bytes = elements * static_cast<int64_t>(eager.element_size()) + state.border.tail_bytes + kSlackBytes});
  state.physical = at::empty({elements}, eager.options()).as_strided(eager.sizes(), strides, offset);
}

void PlanBuilder::place_result(Slot slot) {
  SlotState& state = slots_[slot];
  if (state.physical.defined()) return;
  if (state.wish.inside != kNoSlot) {
    place_result(state.wish.inside);
    const SlotState& whole = slots_[state.wish.inside];
    state.physical = whole.physical.narrow(state.wish.dim, state.wish.start, state.eager.size(state.wish.dim));
    state.buffer = whole.buffer;
    return;
  }
  const bool keeps_strides = !state.wish.channels_last || is_channels_last(state.eager);
  if (state.output >= 0 && state.made_here && !state.wish.fill && keeps_strides &&
      state.eager.is_non_overlapping_and_dense()) {
    state.physical = state.eager;
    state.buffer = static_cast<int64_t>(buffers.size());
    buffers.push_back({.home = Buffer::Home::kOutput, .index = state.output});
    return;
  }
  state.output = -1;
  place_in_arena(slot);
}

Place PlanBuilder::place(Slot slot) const {
  const SlotState& state = slots_[slot];
  return {state.buffer, state.physical.storage_offset() * static_cast<int64_t>(state.physical.element_size())};
}

bool PlanBuilder::has_border(Slot slot, const kernels::Border& border, int32_t fill) const {
  const Buffer& buffer = buffers[slots_[slot].buffer];
  if (buffer.home != Buffer::Home::kArena) return is_empty(border) && border.tail_bytes == 0;
  if (border.tail_bytes > kSlackBytes + slots_[root(slot)].border.tail_bytes) return false;
  if (is_empty(border)) return true;
  for (Slot part = slot; slots_[part].wish.inside != kNoSlot; part = slots_[part].wish.inside) {
    if (slots_[part].wish.dim > 1) return false;  // a neighbour lies where the border should be
  }
  const SlotState& whole = slots_[root(slot)];
  return slots_[slot].made_here && whole.fill == fill && covers(whole.border, border);
}

// ---- work -------------------------------------------------------------------------------------------------------

void PlanBuilder::touch(Slot slot) {
  Buffer& buffer = buffers[slots_[slot].buffer];
  const auto now = static_cast<int64_t>(phases.size()) - 1;
  if (buffer.first < 0) {
    buffer.first = now;
    fill_border_of(slot);
  }
  buffer.last = now;
}

void PlanBuilder::fill_border_of(Slot slot) {
  const Slot whole = root(slot);
  const SlotState& state = slots_[whole];
  if (!state.fill || is_empty(state.border)) return;
  const auto layout = image_layout(state.physical);
  phases.back().works.push_back(std::make_unique<BorderWork>(place(whole), *layout, state.physical.size(0),
                                                             state.physical.size(1), state.border, *state.fill));
}

void PlanBuilder::add(std::unique_ptr<Work> work, const std::vector<Slot>& reads, const std::vector<Slot>& writes) {
  for (const Slot slot : reads) touch(slot);
  for (const Slot slot : writes) touch(slot);
  phases.back().works.push_back(std::move(work));
}

Slot PlanBuilder::add_bordered_copy(Slot slot, const kernels::Border& border, int32_t fill) {
  const Slot copy = add_slot(slots_[slot].eager);
  slots_[copy].made_here = true;
  slots_[copy].wish.channels_last = true;
  slots_[copy].wish.border = border;
  slots_[copy].wish.fill = fill;
  place_in_arena(copy);
  add(make_copy(physical(slot), place(slot), physical(copy), place(copy), threads_), {slot}, {copy});
  phases.emplace_back();
  return copy;
}

Slot PlanBuilder::add_copy_like(Slot slot, const at::Tensor& layout) {
  const Slot copy = add_slot(slots_[slot].eager);
  SlotState& state = slots_[copy];
  state.physical = at::empty_strided(layout.sizes(), layout.strides(), state.eager.options());
  state.buffer = static_cast<int64_t>(buffers.size());
  buffers.push_back({.bytes = state.physical.numel() * static_cast<int64_t>(state.eager.element_size()) + kSlackBytes});
  add(make_copy(physical(slot).expand(layout.sizes()), place(slot), physical(copy), place(copy), threads_), {slot},
      {copy});
  phases.emplace_back();
  return copy;
}

Slot PlanBuilder::add_like(Slot slot) {
  const Slot added = add_slot(slots_[slot].eager);
  place_in_arena(added);
  return added;
}

void PlanBuilder::add_copy(Slot from, Slot to) {
  phases.emplace_back();
  add(make_copy(physical(from), place(from), physical(to), place(to), threads_), {from}, {to});
}

bool PlanBuilder::make_step(const StepView& view) {
  const StepKind* kind = find_kind(view.step().op);
  if (kind && kind->fits(*this, view)) {
    phases.emplace_back();
    for (const Slot result : view.results()) place_result(result);
    kind->make(*this, view);
    if (phases.back().works.empty()) phases.pop_back();
    note_images(view, kind->keeps_images_apart && kind->keeps_images_apart(*this, view));
    return true;
  }
  return make_view(view) || make_call(view);
}

namespace {

// The arguments of a step, given what stands for each slot.
template <typename TensorOf>
std::vector<c10::IValue> stack_of(const StepView& view, const TensorOf& tensor_of) {
  std::vector<c10::IValue> stack;
  for (const Bound& bound : view.arguments()) {
    if (!bound.slots.empty()) {
      c10::List<at::Tensor> list;
      for (const Slot slot : bound.slots) list.push_back(tensor_of(slot));
      stack.emplace_back(std::move(list));
    } else {
      stack.push_back(bound.slot != kNoSlot ? c10::IValue(tensor_of(bound.slot)) : bound.literal);
    }
  }
  return stack;
}

c10::OperatorHandle op_of(const Step& step) {
  const size_t dot = step.op.find('.');
  const std::string overload = dot == std::string::npos ? "" : step.op.substr(dot + 1);
  return c10::Dispatcher::singleton().findSchemaOrThrow(step.op.substr(0, dot).c_str(), overload.c_str());
}

std::vector<at::Tensor> tensors_in(const c10::IValue& value) {
  return value.isTensor() ? std::vector{value.toTensor()} : value.toTensorVector();
}

}  // namespace

// Asks the op itself whether its result is a view of the first tensor that it reads, as that lies in the plan.
bool PlanBuilder::make_view(const StepView& view) {
  if (!view.step().op.starts_with("aten::") || view.arguments().empty() || view.arguments()[0].slot == kNoSlot)
    return false;
  const Slot source = view.arguments()[0].slot;
  std::vector<c10::IValue> stack = stack_of(view, [&](Slot slot) { return slots_[slot].physical; });
  op_of(view.step()).callBoxed(stack);
  const std::vector<at::Tensor> results = tensors_in(stack.at(0));
  for (const at::Tensor& result : results) {
    if (!result.is_alias_of(slots_[source].physical)) return false;
  }
  bool apart = true;
  for (size_t i = 0; i < results.size(); ++i) {
    SlotState& state = slots_[view.results().at(i)];
    state.physical = results[i];
    state.buffer = slots_[source].buffer;
    state.output = -1;
    apart = apart && cuts_images(slots_[source].physical, results[i]);
  }
  note_images(view, apart);
  return true;
}

// An op that has no step kind, called through the dispatcher on tensors over the plan's memory.
bool PlanBuilder::make_call(const StepView& view) {
  phases.emplace_back();
  std::vector<std::pair<Place, at::Tensor>> memory(slots_.size());
  const auto use = [&](Slot slot) {
    touch(slot);
    memory[slot] = {place(slot), physical(slot)};
  };
  for (const Bound& bound : view.arguments()) {
    if (bound.slot != kNoSlot) use(bound.slot);
    for (const Slot slot : bound.slots) use(slot);
  }
  for (const Slot result : view.results()) {
    slots_[result].output = -1;
    place_in_arena(result);
    memory.resize(slots_.size());
    use(result);
  }
  phases.back().call = [view, memory = std::move(memory), op = op_of(view.step())](const Memory& bases) {
    const auto tensor_of = [&](Slot slot) {
      const auto& [place, physical] = memory[slot];
      return at::from_blob(bases.at(place), physical.sizes(), physical.strides(), physical.options().device(at::kCPU));
    };
    std::vector<c10::IValue> stack = stack_of(view, tensor_of);
    op.callBoxed(stack);
    const std::vector<at::Tensor> results = tensors_in(stack.at(0));
    for (size_t i = 0; i < results.size(); ++i) tensor_of(view.results()[i]).copy_(results[i]);
  };
  note_images(view, false);
  return true;
}

void PlanBuilder::make_outputs() {
  for (size_t i = 0; i < program_.outputs.size(); ++i) {
    const Bound bound = bind({program_.outputs[i]}, c10::TensorType::get());
    const at::Tensor eager = slots_[bound.slot].eager;
    outputs.push_back({eager.sizes().vec(), eager.strides().vec(), eager.scalar_type()});
    if (slots_[bound.slot].output == static_cast<int64_t>(i)) continue;
    const Slot out = add_slot(eager);
    // A view's own offset is one in what it was cut from, not in the output.
    slots_[out].physical = at::empty_strided(eager.sizes(), eager.strides(), eager.options());
    slots_[out].buffer = static_cast<int64_t>(buffers.size());
    buffers.push_back({.home = Buffer::Home::kOutput, .index = static_cast<int64_t>(i)});
    add_copy(bound.slot, out);
  }
}

// ---- layouts ----------------------------------------------------------------------------------------------------

std::optional<kernels::ImageLayout> image_layout(const at::Tensor& x) {
  if (x.dim() < 2 || x.dim() > 4 || (x.stride(1) != 1 && x.size(1) != 1)) return std::nullopt;
  if (x.dim() == 2) return kernels::ImageLayout{1, 1, x.stride(0), x.stride(0), x.stride(0)};
  if (x.dim() == 3) return kernels::ImageLayout{1, x.size(2), x.stride(2), x.size(2) * x.stride(2), x.stride(0)};
  return kernels::ImageLayout{x.size(2), x.size(3), x.stride(3), x.stride(2), x.stride(0)};
}

std::optional<kernels::ImageLayout> rows_layout(const at::Tensor& x) {
  if (x.dim() == 0 || (x.stride(-1) != 1 && x.size(-1) != 1)) return std::nullopt;
  int64_t rows = 1;
  int64_t pitch = x.size(-1);
  for (int64_t dim = x.dim() - 2; dim >= 0; --dim) {
    if (x.size(dim) == 1) continue;
    if (rows > 1 && x.stride(dim) != rows * pitch) return std::nullopt;
    if (rows == 1) pitch = x.stride(dim);
    rows *= x.size(dim);
  }
  return kernels::ImageLayout{1, rows, pitch, rows * pitch, rows * pitch};
}

bool same_dense_layout(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.is_non_overlapping_and_dense();
}

}  // namespace torchquant::island
