// CUDA half of qparams_from_histogram_percentile, _mse and _entropy. Nothing is read back from the device.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/cuda/histogram_search.h"
#include "ops/cuda_call.h"
#include "ops/observe.h"

namespace torchquant::ops {
namespace {

using kernels::cuda::HistogramSearch;
using QParamTensors = std::tuple<at::Tensor, at::Tensor>;

QParamTensors search(HistogramSearch kind, const QParamTensors& outputs, const at::Tensor& histogram,
                     const at::Tensor& min_val, const at::Tensor& max_val, double percentile, bool symmetric,
                     int64_t quant_min, int64_t quant_max) {
  const c10::cuda::CUDAGuard guard(min_val.device());
  const at::Tensor counts = histogram.contiguous(), low = min_val.contiguous(), high = max_val.contiguous();
  const auto bins = static_cast<int32_t>(counts.size(-1));
  const kernels::cuda::Histogram state{counts.mutable_data_ptr<int64_t>(), low.mutable_data_ptr<float>(),
                                       high.mutable_data_ptr<float>(), low.numel(), bins};
  const auto bytes = static_cast<int64_t>(kernels::cuda::histogram_search_scratch_bytes(kind, state.channels, bins));
  const at::Tensor scratch = at::empty({bytes}, counts.options().dtype(at::kByte));
  C10_CUDA_CHECK(kernels::cuda::qparams_from_histogram(
      kind, state, percentile, symmetric, to_range(quant_min, quant_max),
      std::get<0>(outputs).mutable_data_ptr<float>(), std::get<1>(outputs).mutable_data_ptr<float>(),
      scratch.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream(min_val.get_device())));
  return outputs;
}

QParamTensors percentile(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val,
                         double percentile, bool symmetric, int64_t quant_min, int64_t quant_max) {
  const auto outputs = check_and_allocate<&torchquant::qparams_from_histogram_percentile>(
      "torchquant::qparams_from_histogram_percentile", histogram, min_val, max_val, percentile, symmetric, quant_min,
      quant_max);
  return search(HistogramSearch::kPercentile, outputs, histogram, min_val, max_val, percentile, symmetric, quant_min,
                quant_max);
}

QParamTensors mse(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val, bool symmetric,
                  int64_t quant_min, int64_t quant_max) {
  const auto outputs = check_and_allocate<&torchquant::qparams_from_histogram_mse>(
      "torchquant::qparams_from_histogram_mse", histogram, min_val, max_val, symmetric, quant_min, quant_max);
  return search(HistogramSearch::kMse, outputs, histogram, min_val, max_val, 0.0, symmetric, quant_min, quant_max);
}

QParamTensors entropy(const at::Tensor& histogram, const at::Tensor& min_val, const at::Tensor& max_val, bool symmetric,
                      int64_t quant_min, int64_t quant_max) {
  const auto outputs = check_and_allocate<&torchquant::qparams_from_histogram_entropy>(
      "torchquant::qparams_from_histogram_entropy", histogram, min_val, max_val, symmetric, quant_min, quant_max);
  return search(HistogramSearch::kEntropy, outputs, histogram, min_val, max_val, 0.0, symmetric, quant_min, quant_max);
}

}  // namespace

TORCH_LIBRARY_IMPL(torchquant, CUDA, m) {
  m.impl("qparams_from_histogram_percentile", percentile);
  m.impl("qparams_from_histogram_mse", mse);
  m.impl("qparams_from_histogram_entropy", entropy);
}

}  // namespace torchquant::ops
