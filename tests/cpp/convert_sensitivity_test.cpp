// The sensitivity scan in C++: which fake-quants belong to a layer, what each switch computes, the ranking and the
// errors; and the layers that are taken out to be measured.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ATen/Functions.h"
#include "ATen/TensorOperators.h"
#include "convert/layer_pairs.h"
#include "convert/sensitivity.h"
#include "ops/ops.h"
#include "support/graph_text.h"

namespace torchquant {
namespace {

using testing::Buffers;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::make_module;
using ::testing::ThrowsMessage;

// Two linear layers whose weights are quantized coarsely (u) and finely (w), with an activation between them.
Buffers buffers() {
  at::manual_seed(0);
  return {{"w", at::randn({4, 4})},   {"ws", at::full({4}, 0.02)}, {"u", at::randn({4, 4})},
          {"us", at::full({4}, 0.9)}, {"z", at::zeros({4})},       {"s", at::full({1}, 0.03)},
          {"t", at::full({1}, 0.1)},  {"o", at::full({1}, 120.0)}};
}

constexpr const char* kBody =
    "x = torchquant.fake_quantize(x, self.s, self.o, quant_min=0, quant_max=255)\n"
    "w = torchquant.fake_quantize(self.w, self.ws, self.z, axis=0, quant_min=-127, quant_max=127)\n"
    "h = torchquant.fake_quantize(torch.relu(torch.linear(x, w)), self.t, self.o, quant_min=0, quant_max=255)\n"
    "u = torchquant.fake_quantize(self.u, self.us, self.z, axis=0, quant_min=-127, quant_max=127)\n"
    "return torch.linear(h.view([-1, 4]), u)";

torch::jit::Module prepared() { return make_module(buffers(), "x", kBody); }

// The model of kBody with these fake-quants only.
at::Tensor expected(const at::Tensor& input, bool x_on, bool w_on, bool h_on, bool u_on) {
  std::map<std::string, at::Tensor> b;
  for (const auto& [name, tensor] : buffers()) b[name] = tensor;
  const auto activation = [&](const at::Tensor& v, const char* scale, bool on) {
    return on ? fake_quantize(v, b[scale], b["o"], std::nullopt, std::nullopt, 0, 255) : v;
  };
  const auto weight = [&](const char* name, const char* scale, bool on) {
    return on ? fake_quantize(b[name], b[scale], b["z"], 0, std::nullopt, -127, 127) : b[name];
  };
  const at::Tensor h = at::relu(at::linear(activation(input, "s", x_on), weight("w", "ws", w_on)));
  return at::linear(activation(h, "t", h_on), weight("u", "us", u_on));
}

double sqnr_db(const at::Tensor& reference, const at::Tensor& actual) {
  const double signal = reference.to(at::kDouble).square().sum().item<double>();
  return 10 * std::log10(signal / (reference - actual).to(at::kDouble).square().sum().item<double>());
}

TEST(Sensitivity, FindsTheFakeQuantsOfEachLayerThroughOpsThatPassCodes) {
  const auto layers = layer_fake_quants(prepared());
  ASSERT_EQ(layers.size(), 2);
  EXPECT_EQ(layers[0].layer, "w");
  EXPECT_EQ(layers[0].kind, "linear");
  EXPECT_EQ(layers[1].layer, "u");
  EXPECT_EQ(layers[1].weights.size(), 1);
  EXPECT_EQ(layers[1].inputs.size(), 1);
}

TEST(Sensitivity, QuantizesEachLayerAloneAndAllButEach) {
  const at::Tensor x = at::randn({32, 4});
  const SensitivityScan scan = scan_sensitivity(prepared(), {{x}});
  const at::Tensor reference = expected(x, false, false, false, false);
  EXPECT_NEAR(scan.quantized_sqnr_db, sqnr_db(reference, expected(x, true, true, true, true)), 1e-6);
  ASSERT_EQ(scan.rows.size(), 2);
  EXPECT_NEAR(scan.rows[0].alone_sqnr_db, sqnr_db(reference, expected(x, true, true, false, false)), 1e-6);
  EXPECT_NEAR(scan.rows[0].but_one_sqnr_db, sqnr_db(reference, expected(x, false, false, true, true)), 1e-6);
  EXPECT_NEAR(scan.rows[1].alone_sqnr_db, sqnr_db(reference, expected(x, false, false, true, true)), 1e-6);
  EXPECT_NEAR(scan.rows[1].but_one_sqnr_db, sqnr_db(reference, expected(x, true, true, false, false)), 1e-6);
  EXPECT_EQ(scan.ranking()[0].layer, "u");
}

TEST(Sensitivity, SumsOverBatchesAndReportsProgress) {
  const at::Tensor x = at::randn({32, 4});
  std::vector<std::pair<size_t, size_t>> steps;
  const auto whole = scan_sensitivity(prepared(), {{x}});
  const auto halves = scan_sensitivity(prepared(), {{x.narrow(0, 0, 12)}, {x.narrow(0, 12, 20)}},
                                       [&](size_t done, size_t total) { steps.emplace_back(done, total); });
  EXPECT_NEAR(halves.rows[0].alone_sqnr_db, whole.rows[0].alone_sqnr_db, 1e-6);
  EXPECT_EQ(steps.size(), 5);
  EXPECT_EQ(steps.back(), std::make_pair(size_t{5}, size_t{5}));
}

TEST(Sensitivity, LeavesWhatAnotherLayerReadsQuantized) {
  const auto module =
      make_module(buffers(), "x",
                  "x = torchquant.fake_quantize(x, self.s, self.o, quant_min=0, quant_max=255)\n"
                  "w = torchquant.fake_quantize(self.w, self.ws, self.z, axis=0, quant_min=-127, quant_max=127)\n"
                  "u = torchquant.fake_quantize(self.u, self.us, self.z, axis=0, quant_min=-127, quant_max=127)\n"
                  "return torch.linear(x, w), torch.linear(x, u)");
  const auto layers = layer_fake_quants(module);
  EXPECT_EQ(layers[0].inputs, layers[1].inputs);
  const auto scan = scan_sensitivity(module, {{at::randn({32, 4})}});
  // Without u's coarse weight, the error of x stays: less than exact, far better than u alone.
  EXPECT_GT(scan.rows[1].but_one_sqnr_db, scan.rows[1].alone_sqnr_db + 6);
  EXPECT_TRUE(std::isfinite(scan.rows[1].but_one_sqnr_db));
}

TEST(Sensitivity, LeavesThePreparedModuleAlone) {
  const auto module = prepared();
  const at::Tensor x = at::randn({8, 4});
  const std::string before = testing::GraphText(*module.get_method("forward").graph()).str();
  auto copy = module;
  const at::Tensor output = copy.forward({x}).toTensor();
  scan_sensitivity(module, {{x}});
  EXPECT_EQ(testing::GraphText(*module.get_method("forward").graph()).str(), before);
  EXPECT_TRUE(at::equal(copy.forward({x}).toTensor(), output));
}

TEST(Sensitivity, RanksByTheLayerAloneAndKeepsTheOrderOfEqualOnes) {
  const SensitivityScan scan{0, {{"a", "linear", 30, 0}, {"b", "linear", 20, 0}, {"c", "linear", 30, 0}}};
  std::vector<std::string> names;
  for (const auto& row : scan.ranking()) names.push_back(row.layer);
  EXPECT_THAT(names, ElementsAre("b", "a", "c"));
}

TEST(Sensitivity, IsInfiniteWithoutNoise) {
  SignalAndNoise sums;
  sums.add(at::ones({3}), at::ones({3}));
  EXPECT_TRUE(std::isinf(sums.sqnr_db()));
  sums.add(c10::ivalue::Tuple::create({at::ones({1}), at::arange(3)}),
           c10::ivalue::Tuple::create({at::zeros({1}), at::arange(3)}));
  EXPECT_NEAR(sums.sqnr_db(), 10 * std::log10(4), 1e-9);
}

TEST(Sensitivity, IsMinusInfinityForNoiseThatIsNoNumber) {
  for (const float broken : {NAN, INFINITY, -INFINITY}) {
    SignalAndNoise sums;
    sums.add(at::ones({3}), at::full({3}, broken));
    EXPECT_EQ(sums.sqnr_db(), -INFINITY) << broken;
  }
}

TEST(Sensitivity, RefusesWhatItCannotScan) {
  const auto text = [](const char* part) { return ThrowsMessage<c10::Error>(HasSubstr(part)); };
  const auto plain = make_module({}, "x", "return torch.relu(x)");
  EXPECT_THAT([&] { layer_fake_quants(plain); }, text("no layer with a fake-quantized weight"));
  EXPECT_THAT([&] { scan_sensitivity(prepared(), {}); }, text("batches is empty"));
  EXPECT_THAT(
      [&] {
        scan_sensitivity(prepared(), {{at::ones({1, 4}), at::ones({1})}});
      },
      text("the model takes 1 inputs, got 2"));
  EXPECT_THAT([&] { scan_sensitivity(prepared(), {{at::full({1, 4}, NAN)}}); }, text("outputs hold NaN or infinity"));
  SignalAndNoise sums;
  EXPECT_THAT([&] { sums.add(at::ones({2}), at::ones({3})); }, text("the outputs have shapes [2] and [3]"));
  EXPECT_THAT([&] { sums.add(c10::IValue(1), c10::IValue(1)); },
              text("the outputs must be tensors, or tuples and lists of them; got Int"));
}

TEST(LayerPairs, RunTheFusedOpAndWhatItReplaces) {
  const auto module = prepared();
  module.get_method("forward").graph()->inputs()[1]->setType(c10::TensorType::get()->withDim(2));
  const at::Tensor x = at::randn({8, 4});
  auto pairs = layer_pairs(module, {x});
  ASSERT_EQ(pairs.size(), 2);
  EXPECT_EQ(pairs[0].layer, "w");
  EXPECT_THAT(pairs[0].kernel, HasSubstr("quantized_linear"));
  EXPECT_EQ(pairs[0].quantized_inputs.at(0).toTensor().scalar_type(), at::kByte);
  std::map<std::string, at::Tensor> b;
  for (const auto& [name, tensor] : buffers()) b[name] = tensor;
  const at::Tensor h = pairs[0].float_layer.forward(pairs[0].float_inputs).toTensor();
  const at::Tensor codes = pairs[0].quantized_layer.forward(pairs[0].quantized_inputs).toTensor();
  EXPECT_GE(h.min().item<float>(), 0);  // the activation belongs to it
  EXPECT_LE((dequantize(codes, b["t"], b["o"], std::nullopt, std::nullopt, at::kFloat) - h.clamp_max(13.5))
                .abs()
                .max()
                .item<float>(),
            0.051f);
}

TEST(LayerPairs, FloatModuleHasNoFakeQuants) {
  const at::Tensor x = at::randn({8, 4});
  torch::jit::Module module = float_module(prepared());
  EXPECT_TRUE(at::equal(module.forward({x}).toTensor(), expected(x, false, false, false, false)));
}

}  // namespace
}  // namespace torchquant
