// Integer pooling and resizing of NHWC codes on CUDA. Called by csrc/ops/quantized_image_cuda.cpp. Every function
// enqueues work on `stream` and returns its launch error; `batch` images. Windows and taps come as rules: a list of
// them would have to be copied to the device first.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/image_axes.h"
#include "kernels/quantized_image.h"
#include "kernels/quantized_pool.h"

namespace torchquant::kernels::cuda {

// A thread takes this many channels of a pixel, or more. An output image of more such pieces than kMaxImagePieces is
// refused.
inline constexpr int64_t kPieceChannels = 4;
constexpr int64_t image_pieces(int64_t pixels, int64_t channels) {
  return pixels * ((channels + kPieceChannels - 1) / kPieceChannels);
}
inline constexpr int64_t kMaxImagePieces = int64_t{1} << 31;

cudaError_t max_pool(const MaxPoolArgs& args, int64_t batch, cudaStream_t stream);

// args.rows and args.columns are not read, and the output has no activation.
cudaError_t avg_pool(const AvgPoolArgs& args, const PoolAxis& rows, const PoolAxis& columns, int64_t batch,
                     cudaStream_t stream);
cudaError_t resize_linear(const ResizeLinearArgs& args, const ResizeAxis& rows, const ResizeAxis& columns,
                          int64_t batch, cudaStream_t stream);

}  // namespace torchquant::kernels::cuda
