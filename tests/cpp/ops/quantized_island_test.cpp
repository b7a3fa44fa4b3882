// torchquant::quantized_island in the steady state: nothing is allocated but the results, no page is touched first, and
// threads of one run wait for each other without depending on which of them exist. Large batches run in parts.
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <thread>

#include "ATen/Functions.h"
#include "ATen/TensorOperators.h"
#include "ATen/core/dispatch/Dispatcher.h"
#include "ops/island/batch_plan.h"
#include "ops/island/phase_counter.h"
#include "ops/island/program.h"

namespace torchquant::island {
namespace {

Argument input(int64_t index) { return {Reference{Source::kInput, index}}; }
Argument constant(int64_t index) { return {Reference{Source::kConstant, index}}; }
Argument value(int64_t index) { return {Reference{Source::kValue, index}}; }

// quantize, a 3x3 convolution, a residual one, a max pool, a global average, flatten and a linear layer.
struct Network {
  std::vector<at::Tensor> constants;
  std::string program;
};

void add_conv(Network& network, Program& program, int64_t in, int64_t out, Argument x, Argument residual) {
  const auto first = static_cast<int64_t>(network.constants.size());
  network.constants.push_back(at::randint(-127, 128, {out, in, 3, 3}, at::kChar));
  network.constants.push_back(at::rand({out}) * 1e-3);
  network.constants.push_back(at::randn({out}));
  const auto pair = [](int64_t number) { return Argument{List{{number}, {number}}}; };
  program.steps.push_back({"torchquant::quantized_conv",
                           {x,
                            constant(first),
                            constant(first + 1),
                            constant(first + 2),
                            residual,
                            pair(3),
                            pair(1),
                            pair(1),
                            pair(1),
                            {int64_t{1}},
                            {false},
                            pair(0),
                            {int64_t{7}},
                            {int64_t{8}},
                            {int64_t{-127}},
                            {0.5},
                            {int64_t{3}},
                            {"none"},
                            {List{}},
                            {1.0},
                            {int64_t{7}},
                            {int64_t{0}},
                            {int64_t{255}},
                            {int64_t{0}}}});
}

// `flatten`: the step that takes [N, 32, 1, 1] to the rows that leave.
Network make_network(const Step& flatten = {"aten::flatten.using_ints", {value(4), {int64_t{1}}, {int64_t{-1}}}}) {
  at::manual_seed(0);
  Network network{{at::full({1}, 0.02), at::full({1}, 7.0)}, {}};
  Program program;
  program.steps.push_back({"torchquant::quantize",
                           {input(0), constant(0), constant(1), {}, {}, {int64_t{0}}, {int64_t{0}}, {int64_t{255}}}});
  add_conv(network, program, 3, 32, value(0), {});
  add_conv(network, program, 32, 32, value(1), value(1));
  const auto pair = [](int64_t number) { return Argument{List{{number}, {number}}}; };
  program.steps.push_back(
      {"torchquant::quantized_max_pool", {value(2), pair(3), pair(2), pair(1), pair(1), {false}, {int64_t{0}}}});
  program.steps.push_back(
      {"torchquant::quantized_adaptive_avg_pool",
       {value(3), pair(1), {int64_t{7}}, {1.0}, {int64_t{7}}, {int64_t{0}}, {int64_t{255}}, {int64_t{0}}}});
  program.steps.push_back(flatten);
  program.steps.push_back({"torchquant::dequantize", {value(5), constant(0), constant(1), {}, {}, {int64_t{6}}}});
  program.outputs = {{Source::kValue, 6}};
  network.program = program.to_text();
  return network;
}

std::vector<at::Tensor> call(const Network& network, const at::Tensor& x) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("torchquant::quantized_island", "")
          .typed<std::vector<at::Tensor>(at::TensorList, c10::SymIntArrayRef, at::TensorList, std::string_view)>();
  return op.call({x}, {}, network.constants, network.program);
}

// The CPU allocator of torch, counting.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    ++count;
    return torch_allocator->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return torch_allocator->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    torch_allocator->copy_data(to, from, bytes);
  }

  c10::Allocator* torch_allocator = c10::GetCPUAllocator();
  int64_t count = 0;
};

int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

TEST(QuantizedIsland, AllocatesItsResultsAndNothingElse) {
  const Network network = make_network();
  const at::Tensor x = at::randn({2, 3, 64, 64});
  for (int warm_up = 0; warm_up < 3; ++warm_up) call(network, x);
  CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/100);
  const auto results = call(network, x);
  c10::SetCPUAllocator(allocator.torch_allocator, /*priority=*/101);
  EXPECT_EQ(allocator.count, static_cast<int64_t>(results.size()));

  const int64_t before = page_faults();
  for (int run = 0; run < 50; ++run) call(network, x);
  EXPECT_LT(page_faults() - before, 10);
}

constexpr int64_t kLargeBatch = 77;  // on images of 64 x 64 its values take 25 MB

struct Planned {
  std::shared_ptr<const BatchPlan> plan;
  std::vector<at::Tensor> expected;  // op by op
  std::vector<at::Tensor> actual;
};

Planned plan_large_batch(const Network& network) {
  const std::vector<at::Tensor> inputs{at::randn({kLargeBatch, 3, 64, 64})};
  const InterpretedProgram interpreted(network.program);
  const Operands operands{inputs, {}, network.constants};
  auto plan = BatchPlan::make(interpreted.program, operands, 2);
  return {plan, interpret(interpreted, operands), plan->run(inputs, network.constants)};
}

TEST(BatchPlan, RunsALargeBatchInParts) {
  const Planned planned = plan_large_batch(make_network());
  EXPECT_GT(planned.plan->parts(), 2u);
  EXPECT_NE(kLargeBatch % static_cast<int64_t>(planned.plan->parts()), 0);  // the last part is another size
  EXPECT_TRUE(at::equal(planned.actual.at(0), planned.expected.at(0)));
}

TEST(BatchPlan, RunsABatchWholeWhereSizesAreThoseOfTheBatch) {
  const Argument sizes{List{{kLargeBatch}, {int64_t{-1}}}};
  const Planned planned = plan_large_batch(make_network({"aten::view", {value(4), sizes}}));
  EXPECT_EQ(planned.plan->parts(), 1u);
  EXPECT_TRUE(at::equal(planned.actual.at(0), planned.expected.at(0)));
}

TEST(BatchPlan, RunsABatchWholeWhereImagesMeet) {
  for (const Step& step :
       {Step{"aten::cat", {Argument{List{value(4), value(4)}}, {int64_t{0}}}},
        Step{"aten::flatten.using_ints", {value(4), {int64_t{0}}, {int64_t{-1}}}}, Step{"aten::clone", {value(4), {}}},
        Step{"aten::slice.Tensor", {value(4), {int64_t{0}}, {int64_t{1}}, {kLargeBatch}, {int64_t{1}}}},
        Step{"aten::transpose.int", {value(4), {int64_t{0}}, {int64_t{1}}}}}) {
    const Planned planned = plan_large_batch(make_network(step));
    EXPECT_EQ(planned.plan->parts(), 1u) << step.op;
    EXPECT_TRUE(at::equal(planned.actual.at(0), planned.expected.at(0))) << step.op;
  }
}

TEST(QuantizedIsland, GivesTheSameFromManyThreads) {
  const Network network = make_network();
  const at::Tensor x = at::randn({2, 3, 33, 47});
  const at::Tensor expected = call(network, x)[0];
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int run = 0; run < 20; ++run) wrong += !at::equal(call(network, x)[0], expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Inside a parallel region of the caller's there are no threads to share with.
TEST(QuantizedIsland, RunsInsideAParallelRegion) {
  const Network network = make_network();
  const at::Tensor x = at::randn({1, 3, 20, 20});
  const at::Tensor expected = call(network, x)[0];
  std::atomic<int> wrong{0};
  at::parallel_for(0, 4, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) wrong += !at::equal(call(network, x)[0], expected);
  });
  EXPECT_EQ(wrong, 0);
}

// A thread that never comes must not be waited for; one that has taken a task must be.
TEST(PhaseCounter, WaitsForTakenTasksOnly) {
  constexpr int64_t kTasks = 100;
  PhaseCounter counter(2);
  counter.reset(kTasks);
  std::atomic<int64_t> sum{0};
  const auto work = [&](int64_t thread) {
    for (int64_t task; (task = counter.take(thread)) >= 0;) {
      if (task == 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));  // longer than anyone spins
      sum += task;
      counter.finish_one(kTasks);
    }
    counter.wait_for(kTasks);
    EXPECT_EQ(sum, kTasks * (kTasks - 1) / 2);
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  counter.reset(kTasks);
  sum = 0;
  work(1);
}

}  // namespace
}  // namespace torchquant::island
