// QAT in C++: the layers, what freezing their ranges does, and the trace that goes to the converter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "convert/convert.h"
#include "nn/fake_quantize.h"
#include "nn/layers.h"
#include "nn/trace.h"

namespace torchquant::nn {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  NetImpl() { reset(); }
  void reset() override {
    input = register_module("input", FakeQuantize());
    conv = register_module("conv", Conv2d(torch::nn::Conv2dOptions(1, 4, 3)));
    norm = register_module("norm", torch::nn::BatchNorm2d(4));
    between = register_module("between", FakeQuantize());
    head = register_module("head", Linear(4, 2));
  }
  torch::Tensor forward(torch::Tensor x) {
    x = between(torch::relu(norm(conv(input(x)))));
    return head(between(x.mean({2, 3})));
  }

  FakeQuantize input{nullptr}, between{nullptr};
  Conv2d conv{nullptr};
  torch::nn::BatchNorm2d norm{nullptr};
  Linear head{nullptr};
};
TORCH_MODULE(Net);

Net trained_net() {
  torch::manual_seed(0);
  Net net;
  net->forward(torch::randn({4, 1, 6, 6}));
  return net;
}

TEST(Layers, CloneInsideAModel) {
  const Net net = trained_net();
  const auto copy = std::dynamic_pointer_cast<NetImpl>(net->clone());
  ASSERT_TRUE(copy);
  copy->eval();
  net.ptr()->eval();
  const auto x = torch::randn({2, 1, 6, 6});
  EXPECT_TRUE(torch::equal(copy->forward(x), net.ptr()->forward(x)));
  // The copy computes with its own fake-quant, and shares nothing with the original.
  EXPECT_EQ(copy->conv->weight_fake_quant.ptr(), copy->conv->named_children()["weight_fake_quant"]);
  torch::NoGradGuard no_grad;
  copy->conv->weight.mul_(3);
  copy->train();
  copy->forward(x);
  EXPECT_FALSE(torch::equal(copy->conv->weight_fake_quant->scale, net->conv->weight_fake_quant->scale));
}

template <typename Layer>
void expect_clones(Layer layer, const torch::Tensor& x) {
  const auto expected = layer->forward(x);
  auto copy = layer->clone();
  EXPECT_TRUE(torch::equal(copy->template as<typename Layer::ContainedType>()->forward(x), expected));
}

TEST(Layers, EachClones) {
  expect_clones(Linear(torch::nn::LinearOptions(3, 2).bias(false)), torch::randn({4, 3}));
  expect_clones(Conv1d(torch::nn::Conv1dOptions(3, 2, 3), /*weight_bits=*/4), torch::randn({4, 3, 5}));
  expect_clones(Conv2d(torch::nn::Conv2dOptions(2, 4, 3).groups(2)), torch::randn({4, 2, 5, 5}));
  expect_clones(Embedding(torch::nn::EmbeddingOptions(7, 3).padding_idx(-1)), torch::arange(7));
}

TEST(Layers, HaveTheParametersOfTheTorchLayer) {
  Conv2d layer(torch::nn::Conv2dOptions(2, 4, 3).bias(false));
  const auto parameters = layer->named_parameters();
  ASSERT_EQ(parameters.size(), 1u);
  EXPECT_TRUE(parameters["weight"].requires_grad());
  EXPECT_EQ(Linear(3, 2)->named_parameters().keys(), (std::vector<std::string>{"weight", "bias"}));
}

TEST(FakeQuantize, RaisesBeforeAnythingWasObserved) {
  FakeQuantize fake_quant;
  fake_quant->observer_enabled = false;
  const auto x = torch::randn({8});
  EXPECT_THAT([&] { fake_quant->forward(x); }, ThrowsMessage<c10::Error>(HasSubstr("nothing was observed")));
  // A range that came with a state is as good.
  FakeQuantize source;
  source->forward(x);
  for (const auto& buffer : source->named_buffers()) fake_quant->named_buffers()[buffer.key()].copy_(buffer.value());
  EXPECT_TRUE(torch::equal(fake_quant->forward(x), source->forward(x)));
}

TEST(FreezeQParams, ObservesWeightsAfterTheLastStep) {
  Net net = trained_net();
  {
    torch::NoGradGuard no_grad;
    net->conv->weight.mul_(2);  // what an optimizer does after the last forward
  }
  freeze_qparams(*net);
  const auto absmax = net->conv->weight.abs().amax({1, 2, 3});
  EXPECT_TRUE(torch::allclose(net->conv->weight_fake_quant->scale, absmax / 127));
  // Frozen now: another call changes nothing.
  const auto scale = net->conv->weight_fake_quant->scale.clone();
  {
    torch::NoGradGuard no_grad;
    net->conv->weight.mul_(2);
  }
  freeze_qparams(*net);
  EXPECT_TRUE(torch::equal(net->conv->weight_fake_quant->scale, scale));
}

TEST(FreezeQParams, ChangesNothingWhereItRaises) {
  Net net = trained_net();
  net->between->forward(torch::tensor({kNaN}));
  EXPECT_THAT([&] { freeze_qparams(*net); }, ThrowsMessage<c10::Error>(HasSubstr("'between' observed 1 values")));
  EXPECT_TRUE(net->input->observer_enabled);
  EXPECT_TRUE(net->conv->weight_fake_quant->observer_enabled);
}

TEST(Trace, RestoresTheFlagOfEveryModule) {
  Net net = trained_net();
  freeze_qparams(*net);
  net->train();
  net->norm->eval();  // a frozen batch norm
  trace(net, torch::randn({2, 1, 6, 6}));
  EXPECT_TRUE(net->is_training());
  EXPECT_TRUE(net->conv->is_training());
  EXPECT_FALSE(net->norm->is_training());
}

TEST(Trace, GivesWhatTheConverterTakes) {
  Net net = trained_net();
  freeze_qparams(*net);
  auto module = trace(net, torch::randn({2, 1, 6, 6}));
  auto converted = convert(module).module;
  const auto x = torch::randn({5, 1, 6, 6});
  // Integers and floats round a few values to neighbouring codes.
  EXPECT_TRUE(torch::allclose(converted.forward({x}).toTensor(), module.forward({x}).toTensor(), 0, 0.05));
}

TEST(Trace, RefusesABatchSizeThatIsBakedIn) {
  Linear layer(3, 2);
  layer->forward(torch::randn({2, 3}));
  freeze_qparams(*layer);
  const std::vector<torch::Tensor> inputs{torch::randn({2, 3})};
  const Forward forward = [&](const std::vector<torch::Tensor>& x) {
    return std::vector<torch::Tensor>{layer->forward(x[0]).view({x[0].size(0) * 1, -1}).flatten(1)};
  };
  EXPECT_NO_THROW(trace(*layer, forward, inputs, /*fixed_shapes=*/true));
  EXPECT_THAT(
      [&] { trace(*layer, forward, inputs); },
      ThrowsMessage<c10::Error>(HasSubstr("fixes dimension 0 of its input at 2, while the model also runs with 3")));
}

TEST(Trace, LeavesOutSizesThatTheModelDoesNotTake) {
  Linear layer(3, 2);
  layer->forward(torch::randn({2, 3}));
  freeze_qparams(*layer);
  const Forward forward = [&](const std::vector<torch::Tensor>& x) {
    return std::vector<torch::Tensor>{layer->forward(x[0]).view({2, 2})};
  };
  EXPECT_NO_THROW(trace(*layer, forward, {torch::randn({2, 3})}));
}

TEST(Trace, RefusesWhatDiffersFromTheModel) {
  Linear layer(3, 2);
  layer->forward(torch::randn({2, 3}));
  freeze_qparams(*layer);
  int calls = 0;
  const Forward forward = [&](const std::vector<torch::Tensor>& x) {
    return std::vector<torch::Tensor>{layer->forward(x[0]) + static_cast<double>(calls++)};
  };
  EXPECT_THAT(
      [&] {
        trace(*layer, forward, {torch::randn({2, 3})});
      },
      ThrowsMessage<c10::Error>(HasSubstr("its results differ from the model's")));
}

}  // namespace
}  // namespace torchquant::nn
