// Plans an island for fixed shapes: where every value lies, and what work is done in which order. The step kinds of
// steps_*.cpp register here by op name and see the classes below; plan.cpp keeps and runs the result. An op without a
// step kind is called through the dispatcher.
//
// A plan is made in three walks over the program: a run on meta tensors tells all shapes; backwards, the readers of
// values say how they would like them to lie; forwards, every value gets its place and every step its work.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/image.h"
#include "kernels/integer_conv.h"
#include "ops/island/interpreter.h"
#include "ops/island/work.h"

namespace torchquant::island {

// A tensor of the program: an input, a constant or a result.
using Slot = int64_t;
inline constexpr Slot kNoSlot = -1;

// An argument of a step: a tensor, a list of tensors, or anything else as a value.
struct Bound {
  Slot slot = kNoSlot;
  std::vector<Slot> slots;
  c10::IValue literal;
};

// How readers want a value to lie.
struct Wish {
  bool channels_last = false;
  kernels::Border border;
  std::optional<int32_t> fill;  // what the border must hold
  Slot inside = kNoSlot;        // a concatenation that the value is a slice of, from `start` along `dim`
  int64_t dim = 0;
  int64_t start = 0;
};

class PlanBuilder;

// One step as the step kinds see it.
class StepView {
 public:
  StepView(const PlanBuilder& builder, const Step& step, std::vector<Slot> results);

  Slot slot(const std::string& name) const { return bound(name).slot; }  // kNoSlot for None
  const std::vector<Slot>& slots(const std::string& name) const { return bound(name).slots; }
  const c10::IValue& literal(const std::string& name) const { return bound(name).literal; }
  Slot result() const { return results_.at(0); }
  const std::vector<Slot>& results() const { return results_; }
  const std::vector<Bound>& arguments() const { return arguments_; }
  const Step& step() const { return *step_; }

 private:
  const Bound& bound(const std::string& name) const;

  const Step* step_;
  const c10::FunctionSchema* schema_ = nullptr;
  std::vector<Bound> arguments_;
  std::vector<Slot> results_;
};

// How an op is planned; each is a free function of a steps_*.cpp file.
struct StepKind {
  // Whether make() can plan this call.
  bool (*fits)(const PlanBuilder& builder, const StepView& step);
  // Adds wishes for what the step reads; may be null.
  void (*wish)(PlanBuilder& builder, const StepView& step);
  // Adds the step's work.
  void (*make)(PlanBuilder& builder, const StepView& step);
  // Whether image i of the results, counted along the first dimension, depends on image i of what the step reads and on
  // constants alone. Null: no.
  bool (*keeps_images_apart)(const PlanBuilder& builder, const StepView& step) = nullptr;
};

// For StepKind::keeps_images_apart.
inline bool always(const PlanBuilder&, const StepView&) { return true; }

// Registers a kind for the lifetime of the process: `const RegisterStep registration("torchquant::...", {...});`
struct RegisterStep {
  RegisterStep(const char* op, StepKind kind);
};

// What is known about a piece of memory of the plan.
struct Buffer {
  enum class Home { kArena, kInput, kConstant, kOutput };
  Home home = Home::kArena;
  int64_t index = 0;  // of the input, constant or output
  int64_t bytes = 0;
  int64_t first = -1;  // the phases between which the arena must keep it
  int64_t last = -1;
};

// Work of one phase runs together; a phase begins when the one before has ended. A phase with a `call` runs it alone.
struct Phase {
  std::vector<std::unique_ptr<Work>> works;
  std::function<void(const Memory&)> call;
};

struct OutputSpec {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  at::ScalarType dtype;
};

class PlanBuilder {
 public:
  // `operands` are real tensors. Throws c10::Error where the program cannot be run on such operands.
  PlanBuilder(const Program& program, const Operands& operands, int threads);

  // False if the plan could not be made: the island must be interpreted.
  bool build();

  // ---- for step kinds -------------------------------------------------------------------------------------------
  int threads() const { return threads_; }
  // Sizes, type and strides that the interpreter would give; a meta tensor.
  const at::Tensor& eager(Slot slot) const { return slots_[slot].eager; }
  // The tensor itself, for constants; undefined for others.
  const at::Tensor& constant(Slot slot) const { return slots_[slot].constant; }
  // Sizes and strides in the plan's memory; a meta tensor. Known when make() runs.
  const at::Tensor& physical(Slot slot) const { return slots_[slot].physical; }
  Place place(Slot slot) const;

  void wish_channels_last(Slot slot);
  void wish_border(Slot slot, const kernels::Border& border, int32_t fill);
  // Asks for `slot` to lie inside `target`; true if it will.
  bool wish_inside(Slot slot, Slot target, int64_t dim, int64_t start);
  bool lies_inside(Slot slot, Slot target) const { return slots_[slot].wish.inside == target; }

  // Whether `slot` has such a border around it with `fill` in it.
  bool has_border(Slot slot, const kernels::Border& border, int32_t fill) const;
  // A copy of an image with a border, made in a phase of its own.
  Slot add_bordered_copy(Slot slot, const kernels::Border& border, int32_t fill);

  // A copy with the strides of `layout`, which is dense; made in a phase of its own.
  Slot add_copy_like(Slot slot, const at::Tensor& layout);

  // A value of the same sizes and type that lies as the interpreter's would, and work in a phase of its own that copies
  // it to where `to` lies.
  Slot add_like(Slot slot);
  void add_copy(Slot from, Slot to);

  // Adds work that belongs to one phase; reads and writes are the tensors that must live then.
  void add(std::unique_ptr<Work> work, const std::vector<Slot>& reads, const std::vector<Slot>& writes);

  // ---- the result -----------------------------------------------------------------------------------------------
  std::vector<Phase> phases;
  std::vector<Buffer> buffers;
  std::vector<OutputSpec> outputs;
  // Images along the first dimension of every input, if no step mixes them: the island can run on some at a time. Else
  // 0.
  int64_t separate_images() const { return images_; }

 private:
  struct SlotState {
    at::Tensor eager;
    at::Tensor constant;
    at::Tensor physical;
    int64_t buffer = -1;
    bool made_here = false;  // a step kind writes it, so it may lie where readers want it
    int64_t output = -1;     // the output of the island that it is
    Wish wish;
    kernels::Border border;  // that its buffer has, if `fill` is set
    std::optional<int32_t> fill;
    bool per_image = false;  // one entry per image along the first dimension
  };

  friend class StepView;

  Bound bind(const Argument& argument, const c10::TypePtr& type) const;
  Slot add_slot(const at::Tensor& tensor);
  Slot add_results(const c10::IValue& value);
  void run_on_meta(const Operands& operands);
  bool collect_wishes();
  void choose_outputs();
  void place_sources(const Operands& operands);
  void count_images();
  void note_images(const StepView& view, bool apart);
  bool cuts_images(const at::Tensor& source, const at::Tensor& view) const;
  void place_result(Slot slot);
  void place_in_arena(Slot slot);
  bool make_step(const StepView& view);
  bool make_view(const StepView& view);
  bool make_call(const StepView& view);
  void make_outputs();
  void link_convs();
  void fill_border_of(Slot slot);
  void touch(Slot slot);
  Slot root(Slot slot) const;

  const Program& program_;
  int threads_;
  int64_t images_ = 0;
  std::vector<c10::IValue> values_;             // of the meta run
  std::vector<std::vector<Slot>> value_slots_;  // of each value: one for a tensor, several for a list, none for a size
  std::vector<Slot> input_slots_, constant_slots_;
  std::vector<at::Tensor> meta_inputs_, meta_constants_;
  std::vector<c10::SymInt> sizes_;
  std::deque<SlotState> slots_;  // step kinds hold references to tensors of slots while they add others
  std::vector<StepView> views_;
};

// An image in the plan's memory: [N, C, H, W], [N, C, L] or [N, C] whose channels are adjacent; nullopt for any other.
std::optional<kernels::ImageLayout> image_layout(const at::Tensor& physical);
// [..., K] as one row of pixels of K channels; nullopt where rows are not evenly spaced.
std::optional<kernels::ImageLayout> rows_layout(const at::Tensor& physical);
// Whether both are dense and have the same strides.
bool same_dense_layout(const at::Tensor& a, const at::Tensor& b);

}  // namespace torchquant::island
