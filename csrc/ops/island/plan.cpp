// Memory and threads of a planned island; see plan.h.
#include "ops/island/plan.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <new>
#include <numeric>

#include "ops/island/phase_counter.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace torchquant::island {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Arena = std::unique_ptr<std::byte, Free>;

// Touched once here, so that no run meets a fresh page.
Arena make_arena(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
  const int64_t size = round_up(std::max<int64_t>(bytes, 1), alignment);
  Arena arena(static_cast<std::byte*>(std::aligned_alloc(alignment, size)));
  if (!arena) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(arena.get(), size, MADV_HUGEPAGE);
#endif
  std::memset(arena.get(), 0, size);
  return arena;
}

bool overlap(const Buffer& a, const Buffer& b) { return a.first <= b.last && b.first <= a.last; }

}  // namespace

struct Plan::Context {
  Arena arena;
  Memory memory;
  std::deque<PhaseCounter> counters;
  std::mutex error_mutex;
  std::exception_ptr error;
};

// A context for the duration of one run.
class Plan::Lease {
 public:
  explicit Lease(const Plan& plan) : plan_(plan) {
    {
      const std::lock_guard lock(plan.mutex_);
      if (!plan.free_.empty()) {
        context_ = std::move(plan.free_.back());
        plan.free_.pop_back();
      }
    }
    if (!context_) context_ = plan.make_context();
  }
  ~Lease() {
    const std::lock_guard lock(plan_.mutex_);
    plan_.free_.push_back(std::move(context_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Context& operator*() const { return *context_; }

 private:
  const Plan& plan_;
  std::unique_ptr<Context> context_;
};

std::shared_ptr<const Plan> Plan::make(const Program& program, const Operands& operands, int threads) {
  PlanBuilder builder(program, operands, threads);
  if (!builder.build()) return nullptr;
  return std::shared_ptr<const Plan>(new Plan(std::move(builder), threads));
}

Plan::Plan(PlanBuilder&& builder, int threads)
    : threads_(threads),
      separate_images_(builder.separate_images()),
      phases_(std::move(builder.phases)),
      buffers_(std::move(builder.buffers)),
      outputs_(std::move(builder.outputs)) {
  for (const Phase& phase : phases_) {
    tasks_.push_back(std::accumulate(phase.works.begin(), phase.works.end(), int64_t{0},
                                     [](int64_t sum, const auto& work) { return sum + work->tasks(); }));
  }
  place_arena();
}

Plan::~Plan() = default;

// The largest buffers first, each at the lowest address where no buffer of the same time lies.
void Plan::place_arena() {
  std::vector<size_t> order;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].home == Buffer::Home::kArena && buffers_[i].first >= 0) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return buffers_[a].bytes > buffers_[b].bytes; });
  arena_offsets_.assign(buffers_.size(), 0);
  std::vector<size_t> placed;  // by address
  for (const size_t i : order) {
    int64_t offset = 0;
    for (const size_t other : placed) {
      if (!overlap(buffers_[i], buffers_[other])) continue;
      if (arena_offsets_[other] >= offset + buffers_[i].bytes) break;
      offset = std::max(offset, round_up(arena_offsets_[other] + buffers_[other].bytes, kCacheLine));
    }
    arena_offsets_[i] = offset;
    arena_bytes_ = std::max(arena_bytes_, offset + buffers_[i].bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](size_t a, size_t b) { return arena_offsets_[a] < arena_offsets_[b]; }),
                  i);
  }
}

std::unique_ptr<Plan::Context> Plan::make_context() const {
  auto context = std::make_unique<Context>();
  context->arena = make_arena(arena_bytes_);
  for (size_t i = 0; i < phases_.size(); ++i) context->counters.emplace_back(threads_);
  context->memory.bases.assign(buffers_.size(), nullptr);
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].home == Buffer::Home::kArena) context->memory.bases[i] = context->arena.get() + arena_offsets_[i];
  }
  return context;
}

void Plan::run(at::TensorList inputs, at::TensorList constants, at::TensorList outputs, int64_t first_image) const {
  const Lease lease(*this);
  Context& context = *lease;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const auto set = [&](const at::Tensor& tensor, int64_t image) {
      const int64_t bytes = image == 0 ? 0 : image * tensor.stride(0) * static_cast<int64_t>(tensor.element_size());
      context.memory.bases[i] = static_cast<std::byte*>(const_cast<void*>(tensor.const_data_ptr())) + bytes;
    };
    if (buffers_[i].home == Buffer::Home::kInput) set(inputs[buffers_[i].index], first_image);
    if (buffers_[i].home == Buffer::Home::kConstant) set(constants[buffers_[i].index], 0);
    if (buffers_[i].home == Buffer::Home::kOutput) set(outputs[buffers_[i].index], first_image);
  }
  run_phases(context);
}

void Plan::run_phases(Context& context) const {
  for (size_t first = 0; first < phases_.size();) {
    if (phases_[first].call) {
      phases_[first++].call(context.memory);
      continue;
    }
    size_t last = first;
    while (last < phases_.size() && !phases_[last].call) ++last;
    run_together(context, first, last);
    first = last;
  }
}

// One parallel region for phases [first, last); none where there is nothing to share out.
void Plan::run_together(Context& context, size_t first, size_t last) const {
  for (size_t phase = first; phase < last; ++phase) context.counters[phase].reset(tasks_[phase]);
  const bool shared =
      std::any_of(tasks_.begin() + first, tasks_.begin() + last, [](int64_t tasks) { return tasks > 1; });
  if (threads_ == 1 || !shared) {
    work_through(context, first, last, 0);
  } else {
    at::parallel_for(0, threads_, 1, [&](int64_t thread, int64_t) { work_through(context, first, last, thread); });
  }
  if (context.error) std::rethrow_exception(std::exchange(context.error, nullptr));
}

// What each thread does: takes tasks of a phase while there are any, waits for those that others have taken, goes on to
// the next phase. A thread that comes late finds the early phases done.
void Plan::work_through(Context& context, size_t first, size_t last, int64_t thread) const {
  for (size_t phase = first; phase < last; ++phase) {
    PhaseCounter& counter = context.counters[phase];
    for (int64_t task; (task = counter.take(thread)) >= 0;) {
      try {
        run_task(context, phase, task);
      } catch (...) {
        const std::lock_guard lock(context.error_mutex);
        context.error = std::current_exception();
      }
      counter.finish_one(tasks_[phase]);
    }
    counter.wait_for(tasks_[phase]);
  }
}

void Plan::run_task(const Context& context, size_t phase, int64_t task) const {
  for (const auto& work : phases_[phase].works) {
    if (task < work->tasks()) return work->run(context.memory, {task, task + 1});
    task -= work->tasks();
  }
}

}  // namespace torchquant::island
