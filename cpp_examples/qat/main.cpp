// Quantization-aware training in C++ alone: trains a small residual CNN on synthetic strokes, freezes its ranges,
// traces it, converts it to integers, saves the file and runs it again from the file. No Python anywhere.
//
//   qat [output.pt]      default: qat_model.pt
#include <torch/torch.h>
#include <torchquant/torchquant.h>

#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace tqnn = torchquant::nn;

namespace {

constexpr int64_t kClasses = 4;
constexpr int64_t kSide = 12;

// Images of one noisy stroke: horizontal, vertical, or one of the two diagonals.
std::pair<torch::Tensor, torch::Tensor> make_strokes(int64_t count) {
  auto images = torch::randn({count, 1, kSide, kSide}) * 0.35;
  auto labels = torch::randint(kClasses, {count}, torch::kInt64);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = labels[i].item<int64_t>();
    const int64_t offset = torch::randint(3, kSide - 3, {1}).item<int64_t>();
    for (int64_t t = 0; t < kSide; ++t) {
      const int64_t diagonal = (t + offset) % kSide;
      const int64_t row = label == 0 ? offset : label == 3 ? kSide - 1 - t : t;
      const int64_t column = label == 0 ? t : label == 1 ? offset : diagonal;
      images[i][0][row][column] += 1.5;
    }
  }
  return {images, labels};
}

// conv-bn-relu, a residual block with a depthwise layer, global pooling, linear. A FakeQuantize stands on the input
// and on the output of every fused group; the logits stay float.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    using Conv = torch::nn::Conv2dOptions;
    stem = register_module("stem", tqnn::Conv2d(Conv(1, 16, 3).padding(1).bias(false)));
    stem_bn = register_module("stem_bn", torch::nn::BatchNorm2d(16));
    depthwise = register_module("depthwise", tqnn::Conv2d(Conv(16, 16, 3).padding(1).groups(16)));
    pointwise = register_module("pointwise", tqnn::Conv2d(Conv(16, 16, 1).bias(false)));
    pointwise_bn = register_module("pointwise_bn", torch::nn::BatchNorm2d(16));
    classifier = register_module("classifier", tqnn::Linear(16 * 3 * 3, kClasses));
    for (const char* name : {"input", "stem_out", "depthwise_out", "residual_out", "pooled"}) {
      activations.push_back(register_module(std::string(name) + "_fake_quant", tqnn::FakeQuantize()));
    }
  }

  torch::Tensor forward(torch::Tensor x) {
    x = activations[0](x);
    x = activations[1](torch::relu(stem_bn(stem(x))));
    auto y = activations[2](torch::relu(depthwise(x)));
    x = activations[3](torch::relu(pointwise_bn(pointwise(y)) + x));
    x = activations[4](torch::avg_pool2d(x, 4));
    return classifier(x.flatten(1));
  }

  tqnn::Conv2d stem{nullptr}, depthwise{nullptr}, pointwise{nullptr};
  torch::nn::BatchNorm2d stem_bn{nullptr}, pointwise_bn{nullptr};
  tqnn::Linear classifier{nullptr};
  std::vector<tqnn::FakeQuantize> activations;
};
TORCH_MODULE(Net);

double accuracy(const torch::Tensor& logits, const torch::Tensor& labels) {
  return logits.argmax(1).eq(labels).to(torch::kFloat64).mean().item<double>();
}

void train(Net& net) {
  torch::optim::Adam optimizer(net->parameters(), torch::optim::AdamOptions(3e-3));
  for (int step = 1; step <= 200; ++step) {
    auto [images, labels] = make_strokes(64);
    optimizer.zero_grad();
    auto loss = torch::nn::functional::cross_entropy(net->forward(images), labels);
    loss.backward();
    optimizer.step();
    if (step % 50 == 0) std::printf("step %3d   loss %.4f\n", step, loss.item<double>());
  }
}

int run(const std::string& path) {
  torch::manual_seed(0);
  Net net;
  train(net);
  tqnn::freeze_qparams(*net);
  net->eval();

  auto [images, labels] = make_strokes(512);
  torch::NoGradGuard no_grad;
  const auto trained = net->forward(images);

  torch::jit::Module prepared = tqnn::trace(net, images);
  torchquant::ConvertResult converted = torchquant::convert(prepared);
  torchquant::save(converted.module, converted.receipt, path);
  const auto integer = torchquant::load(path).forward({images}).toTensor();

  const double agreement = accuracy(integer, trained.argmax(1));
  std::printf("accuracy   QAT model %.4f   integer model from %s %.4f   same predictions %.4f\n",
              accuracy(trained, labels), path.c_str(), accuracy(integer, labels), agreement);
  for (const auto& row : converted.receipt.rows) {
    std::printf("  %-12s %-8s %-6s %s\n", row.layer.c_str(), row.kind.c_str(), row.precision.c_str(),
                (row.reason.empty() ? row.kernel : row.reason).c_str());
  }
  return accuracy(integer, labels) > 0.9 && agreement > 0.98 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "qat_model.pt");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "qat: %s\n", error.what());
    return 1;
  }
}
