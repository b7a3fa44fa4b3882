// FakeQuantize for C++ training: observes a tensor and fake-quantizes it. Used by the layers in nn/layers.h and
// directly by users for activations.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>

#include "export.h"

namespace torchquant::nn {

// What a FakeQuantize produces. The presets below are the ones that the converter lowers to integer kernels.
struct FakeQuantizeOptions {
  int64_t quant_min = 0;
  int64_t quant_max = 255;
  bool symmetric = false;
  // Per channel along `axis` with `channels` entries; per tensor when empty.
  std::optional<int64_t> axis;
  int64_t channels = 1;
  // Weight of the newest batch in the moving average of the observed range; 1 keeps the newest batch alone.
  double averaging_constant = 0.01;

  // uint8 [0, 255], affine, per tensor.
  static FakeQuantizeOptions activation() { return {}; }
  // Symmetric [-(2^(bits-1) - 1), 2^(bits-1) - 1], one scale per channel of `axis`; `bits` in 2..8.
  TQ_API static FakeQuantizeOptions weight(int64_t channels, int64_t axis = 0, int64_t bits = 8);
};

// Buffers, all fp32 but the last: scale, zero_point, min_val, max_val [channels] ([1] per tensor) and
// nonfinite_count [1] (int64). New modules observe and fake-quantize, which is the state for training.
class TQ_API FakeQuantizeImpl : public torch::nn::Cloneable<FakeQuantizeImpl> {
 public:
  explicit FakeQuantizeImpl(FakeQuantizeOptions options = FakeQuantizeOptions::activation());
  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  // x: fp32, bf16 or fp16 of any shape; returns a tensor like x. Straight-through gradient.
  // Raises c10::Error when asked to fake-quantize before anything was observed, here or by the module whose state was
  // loaded.
  torch::Tensor forward(const torch::Tensor& x);

  // Updates the range, and scale and zero point with it. forward does so while `observer_enabled`.
  void observe(const torch::Tensor& x);
  // Whether every channel saw a finite value. Reads min_val and max_val back from their device.
  bool observed() const;

  FakeQuantizeOptions options;
  bool observer_enabled = true;
  bool fake_quant_enabled = true;

  torch::Tensor scale;
  torch::Tensor zero_point;
  torch::Tensor min_val;
  torch::Tensor max_val;
  torch::Tensor nonfinite_count;

 private:
  void require_range();

  bool has_range_ = false;  // known on the host, so that a training step reads nothing back
};
TORCH_MODULE(FakeQuantize);

// Calibration: every FakeQuantize below `module` observes and passes its input through unchanged.
TQ_API void start_calibration(torch::nn::Module& module);

// Ends calibration or training: observers off, fake-quantization on. A weight that a layer holds as `weight` beside its
// `weight_fake_quant` is observed once more: the optimizer moved it after its last forward. Raises c10::Error naming
// the first FakeQuantize that observed nothing, or values that were not finite; then every one stays as it was.
TQ_API void freeze_qparams(torch::nn::Module& module);

}  // namespace torchquant::nn
