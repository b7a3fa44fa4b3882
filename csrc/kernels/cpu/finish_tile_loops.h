// finish_tile() as plain loops over the contract's scalar functions, which the compiler turns into vectors. Included
// only by finish_tile_avx2.cpp and finish_tile_avx512.cpp, inside a namespace of the instruction set's own.
//
// Whole tiles go through each step, and always 32 channels: lanes beyond the last channel compute on zeros and are
// never stored.

constexpr int64_t kLanes = kFinishChannels;

struct TileValues {
  alignas(64) float v[kFinishPixels * kLanes];
};

TQ_HOST_DEVICE void scale_pixels(const FinishArgs& args, TileValues& tile) {
  for (int64_t p = 0; p < args.pixels; ++p) {
    const int32_t* acc = args.accumulators + p * kLanes;
    float* v = tile.v + p * kLanes;
    if (args.row_scale == nullptr) {
      for (int64_t c = 0; c < kLanes; ++c) v[c] = numerics::scale_accumulator(acc[c], args.multiplier[c], args.bias[c]);
    } else {
      const float scale = args.row_scale[p];
      for (int64_t c = 0; c < kLanes; ++c) {
        v[c] = numerics::scale_accumulator(acc[c], scale * args.multiplier[c], args.bias[c]);
      }
    }
  }
}

template <typename T>
TQ_HOST_DEVICE void add_residual_pixels(const FinishArgs& args, TileValues& tile) {
  const auto* residual = static_cast<const uint8_t*>(args.residual.data);
  const int32_t zero_point = args.residual.zero_point;
  const float multiplier = args.residual.multiplier;
  for (int64_t p = 0; p < args.pixels; ++p) {
    T codes[kLanes] = {};
    memcpy(codes, residual + p * args.residual_step, args.channels);
    float* v = tile.v + p * kLanes;
    for (int64_t c = 0; c < kLanes; ++c) v[c] = numerics::add_residual(v[c], codes[c] - zero_point, multiplier);
  }
}

template <Activation kKind>
TQ_HOST_DEVICE void activate_real_pixels(const FinishArgs& args, TileValues& tile) {
  const numerics::ActivationSpec spec = args.output->activation;
  for (int64_t i = 0; i < args.pixels * kLanes; ++i) {
    tile.v[i] = numerics::activate_real(kKind, tile.v[i] * spec.output_scale) * spec.inv_output_scale;
  }
}

TQ_HOST_DEVICE void activate_pixels(const FinishArgs& args, TileValues& tile) {
  switch (args.output->activation.kind) {
    case Activation::kNone:
      return;
    case Activation::kClamp: {
      const numerics::QRange clamp = args.output->activation.clamp;
      for (int64_t i = 0; i < args.pixels * kLanes; ++i) tile.v[i] = numerics::saturate(tile.v[i], clamp);
      return;
    }
#define TQ_ACTIVATION(kind) \
  case Activation::kind:    \
    return activate_real_pixels<Activation::kind>(args, tile);
      TQ_ACTIVATION(kHardswish)
      TQ_ACTIVATION(kHardsigmoid)
      TQ_ACTIVATION(kSilu)
      TQ_ACTIVATION(kGelu)
      TQ_ACTIVATION(kGeluTanh)
      TQ_ACTIVATION(kSigmoid)
      TQ_ACTIVATION(kTanh)
#undef TQ_ACTIVATION
  }
}

template <typename T>
TQ_HOST_DEVICE void store_code_pixels(const FinishArgs& args, const TileValues& tile) {
  const numerics::QRange range = args.output->range;
  const float zero_point = args.output->zero_point;
  alignas(64) T codes[kFinishPixels * kLanes];
  for (int64_t i = 0; i < args.pixels * kLanes; ++i) {
    codes[i] = static_cast<T>(static_cast<int32_t>(numerics::output_code(tile.v[i], zero_point, range)));
  }
  auto* out = static_cast<uint8_t*>(args.out);
  for (int64_t p = 0; p < args.pixels; ++p) memcpy(out + p * args.out_step, codes + p * kLanes, args.channels);
}

TQ_HOST_DEVICE void store_float_pixels(const FinishArgs& args, const TileValues& tile) {
  auto* out = static_cast<uint8_t*>(args.out);
  for (int64_t p = 0; p < args.pixels; ++p) {
    memcpy(out + p * args.out_step, tile.v + p * kLanes, args.channels * sizeof(float));
  }
}

TQ_HOST_DEVICE void finish(const FinishArgs& args) {
  TileValues tile;
  scale_pixels(args, tile);
  if (args.residual.data != nullptr) {
    if (args.residual.type == ElementType::kUInt8) {
      add_residual_pixels<uint8_t>(args, tile);
    } else {
      add_residual_pixels<int8_t>(args, tile);
    }
  }
  activate_pixels(args, tile);
  switch (args.output->type) {
    case ElementType::kUInt8:
      return store_code_pixels<uint8_t>(args, tile);
    case ElementType::kInt8:
      return store_code_pixels<int8_t>(args, tile);
    case ElementType::kFloat32:
      return store_float_pixels(args, tile);
  }
}
