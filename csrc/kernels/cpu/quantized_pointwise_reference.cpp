// Reference add, mul and table lookup over dense runs. Reached through kernels/quantized_kernels.h.
#include <cmath>

#include "kernels/cpu/image_runs.h"
#include "kernels/cpu/quantized_reference.h"
#include "kernels/cpu/quantized_tile_reference.h"

namespace torchquant::kernels::reference {
namespace {

constexpr int64_t kChunk = 1024;

void centre_operand(const Operand& operand, int64_t offset, int64_t n, int16_t* centred) {
  with_code_type(operand.type, [&](auto* code) {
    centre(static_cast<decltype(code)>(operand.data) + offset, n, operand.zero_point, centred);
  });
}

// Centres n codes of both operands chunk by chunk, combines them with fn(a, b) and stores the results.
template <typename Args, typename Fn>
void combine(const Args& args, RunOffsets offsets, int64_t n, Fn&& fn) {
  int16_t centred_a[kChunk];
  int16_t centred_b[kChunk];
  float v[kChunk];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = std::min(kChunk, n - begin);
    centre_operand(args.a, offsets.a + begin, count, centred_a);
    centre_operand(args.b, offsets.b + begin, count, centred_b);
    for (int64_t i = 0; i < count; ++i) v[i] = fn(centred_a[i], centred_b[i]);
    store_values(v, count, args.output, args.out, offsets.out + begin);
  }
}

void add_run(const AddArgs& args, RunOffsets offsets, int64_t n) {
  combine(args, offsets, n, [&](int16_t a, int16_t b) {
    return fmaf(static_cast<float>(b), args.b_multiplier, static_cast<float>(a) * args.a_multiplier);
  });
}

void mul_run(const MulArgs& args, RunOffsets offsets, int64_t n) {
  combine(args, offsets, n, [&](int16_t a, int16_t b) {
    return static_cast<float>(static_cast<int32_t>(a) * static_cast<int32_t>(b)) * args.multiplier;
  });
}

// The index is the code's distance from the smallest code of its type; flipping the sign bit does that for int8.
template <typename Entry>
void lookup_entries(const LookupArgs& args, RunOffsets offsets, int64_t n) {
  const uint8_t flip = args.x_type == ElementType::kInt8 ? 0x80 : 0;
  const auto* x = static_cast<const uint8_t*>(args.x) + offsets.a;
  const auto* table = static_cast<const Entry*>(args.table);
  auto* out = static_cast<Entry*>(args.out) + offsets.out;
  for (int64_t i = 0; i < n; ++i) out[i] = table[x[i] ^ flip];
}

void lookup_run(const LookupArgs& args, RunOffsets offsets, int64_t n) {
  switch (args.element_size) {
    case 1:
      return lookup_entries<uint8_t>(args, offsets, n);
    case 2:
      return lookup_entries<uint16_t>(args, offsets, n);
    default:
      return lookup_entries<uint32_t>(args, offsets, n);
  }
}

}  // namespace

void add(const AddArgs& args, IndexRange elements) {
  add_run(args, {elements.begin, elements.begin, elements.begin}, elements.end - elements.begin);
}

void mul(const MulArgs& args, IndexRange elements) {
  mul_run(args, {elements.begin, elements.begin, elements.begin}, elements.end - elements.begin);
}

void lookup(const LookupArgs& args, IndexRange elements) {
  lookup_run(args, {elements.begin, elements.begin, elements.begin}, elements.end - elements.begin);
}

void add_image(const AddArgs& args, const PointwiseImages& images, IndexRange rows) {
  for_each_run(images, rows, [&](RunOffsets offsets, int64_t n) { add_run(args, offsets, n); });
}

void mul_image(const MulArgs& args, const PointwiseImages& images, IndexRange rows) {
  for_each_run(images, rows, [&](RunOffsets offsets, int64_t n) { mul_run(args, offsets, n); });
}

void lookup_image(const LookupArgs& args, const PointwiseImages& images, IndexRange rows) {
  for_each_run(images, rows, [&](RunOffsets offsets, int64_t n) { lookup_run(args, offsets, n); });
}

}  // namespace torchquant::kernels::reference
