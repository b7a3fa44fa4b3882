// From a histogram (numerics/stats.h) to the range that quantizes it best: percentile, mean squared error, entropy.
// Called by the qparams_from_histogram ops, on CPU and CUDA, which give the same bits: prefix sums are added bin after
// bin, and the logarithm is our own. Every result is clipped to the range seen; an empty histogram gives [0, 0].
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/qparams.h"
#include "numerics/stats.h"

namespace torchquant::numerics {

struct Histogram {
  const int64_t* counts;
  Range range;
  HistogramGrid grid;
};

// Range to quantize when nothing is clipped: what was seen, and zero.
TQ_HOST_DEVICE Range full_range(const Histogram& h) {
  if (h.range.empty()) return {0.0f, 0.0f};
  return {fminf(h.range.min_val, 0.0f), fmaxf(h.range.max_val, 0.0f)};
}

TQ_HOST_DEVICE int64_t count_at(const Histogram& h, int32_t bin) {
  return bin >= 0 && bin < h.grid.bins ? h.counts[bin] : 0;
}

TQ_HOST_DEVICE int64_t total_count(const Histogram& h) {
  int64_t total = 0;
  for (int32_t bin = 0; bin < h.grid.bins; ++bin) total += h.counts[bin];
  return total;
}

// ---- percentile -----------------------------------------------------------------------------------------------------
// The edges of the central mass: `percentile` in (50, 100] cuts (100 - percentile) % off each tail; symmetric ranges
// end at that percentile of |x|. Inside a bin the values count as evenly spread.

// Distance from zero in bins, outwards from `first` in steps of `step`, at which `rank` values lie nearer than that.
// `step` = 0 folds both signs together.
TQ_HOST_DEVICE double distance_at_rank(const Histogram& h, int32_t step, double rank) {
  double nearer = 0.0;
  int32_t last = 0;
  for (int32_t m = 0; m < h.grid.bins; ++m) {
    const int64_t above = step >= 0 ? count_at(h, h.grid.negative + m) : 0;
    const int64_t below = step <= 0 ? count_at(h, h.grid.negative - 1 - m) : 0;
    const double count = static_cast<double>(above + below);
    if (count == 0.0) continue;
    if (nearer + count >= rank) return m + (rank - nearer) / count;
    nearer += count;
    last = m + 1;
  }
  return last;
}

// End of the side `step` (+1 above zero, -1 below) that leaves `cut` values outside; 0 if that side holds no more.
TQ_HOST_DEVICE float end_of_side(const Histogram& h, int32_t step, double cut) {
  int64_t side = 0;
  for (int32_t bin = 0; bin < h.grid.bins; ++bin) side += (bin >= h.grid.negative) == (step > 0) ? h.counts[bin] : 0;
  const double rank = static_cast<double>(side) - cut;
  if (rank <= 0.0) return 0.0f;
  return ldexpf(static_cast<float>(distance_at_rank(h, step, rank)), h.grid.exponent);
}

TQ_HOST_DEVICE Range percentile_range(const Histogram& h, double percentile, bool symmetric) {
  const Range full = full_range(h);
  const double total = static_cast<double>(total_count(h));
  if (total == 0.0) return full;
  const double cut = total * (100.0 - percentile) / 100.0;
  if (symmetric) {
    const float end = ldexpf(static_cast<float>(distance_at_rank(h, 0, total - cut)), h.grid.exponent);
    const float largest = fmaxf(-full.min_val, full.max_val);
    return {-fminf(end, largest), fminf(end, largest)};
  }
  return {fmaxf(-end_of_side(h, -1, cut), full.min_val), fminf(end_of_side(h, 1, cut), full.max_val)};
}

// ---- mean squared error ---------------------------------------------------------------------------------------------
// The squared error of a quantizer over values that are evenly spread inside each bin, exactly: a code v takes the
// values of a cell around it, and the error of a cell is M2 - 2 v M1 + v^2 M0 with the moments of the values in it.
// Moments come from prefix sums, so one candidate costs a step per code, not per bin. Distances are in bin widths from
// zero.

struct Moments {
  double m0;
  double m1;
  double m2;
};

TQ_HOST_DEVICE Moments operator-(Moments a, Moments b) { return {a.m0 - b.m0, a.m1 - b.m1, a.m2 - b.m2}; }

// Moments of the first `part` in [0, 1] of a bin whose lower edge is `edge`.
TQ_HOST_DEVICE Moments bin_moments(double count, double edge, double part) {
  const double m0 = count * part;
  return {m0, m0 * (edge + 0.5 * part), m0 * (edge * edge + edge * part + part * part / 3.0)};
}

TQ_HOST_DEVICE Moments moments_of_bin(const Histogram& h, int32_t bin) {
  return bin_moments(static_cast<double>(h.counts[bin]), bin - h.grid.negative, 1.0);
}

// prefix: bins + 1 entries; entry i holds the moments of bins 0 ... i-1.
TQ_HOST_DEVICE void fill_moments(const Histogram& h, Moments* prefix) {
  Moments sum{0.0, 0.0, 0.0};
  for (int32_t bin = 0; bin < h.grid.bins; ++bin) {
    prefix[bin] = sum;
    const Moments m = moments_of_bin(h, bin);
    sum = {sum.m0 + m.m0, sum.m1 + m.m1, sum.m2 + m.m2};
  }
  prefix[h.grid.bins] = sum;
}

// Moments of all values below `x`.
TQ_HOST_DEVICE Moments moments_below(const Histogram& h, const Moments* prefix, double x) {
  const double position = x + h.grid.negative;
  if (!(position > 0.0)) return prefix[0];
  if (position >= h.grid.bins) return prefix[h.grid.bins];
  const int32_t bin = static_cast<int32_t>(position);
  const Moments part = bin_moments(static_cast<double>(h.counts[bin]), bin - h.grid.negative, position - bin);
  const Moments below = prefix[bin];
  return {below.m0 + part.m0, below.m1 + part.m1, below.m2 + part.m2};
}

// Sum over all values of (x_hat - x)^2, in squared bin widths, when `range` is what is quantized.
TQ_HOST_DEVICE double squared_error(const Histogram& h, const Moments* prefix, Range range, bool symmetric,
                                    QRange codes) {
  const ScaleZeroPoint p = choose_qparams(range.min_val, range.max_val, symmetric, codes);
  const double step = ldexp(static_cast<double>(p.scale), -h.grid.exponent);
  double error = 0.0;
  Moments below = prefix[0];
  for (float code = codes.quant_min; code <= codes.quant_max; code += 1.0f) {
    const double value = (code - p.zero_point) * step;
    const bool last = code == codes.quant_max;
    const Moments upto = last ? prefix[h.grid.bins] : moments_below(h, prefix, value + 0.5 * step);
    const Moments cell = upto - below;
    error += cell.m2 - 2.0 * value * cell.m1 + value * value * cell.m0;
    below = upto;
  }
  return error;
}

inline constexpr int32_t kMseCandidates = 100;  // of each search: the full range times 1/100 ... 100/100
inline constexpr int32_t kMseRounds = 2;

// Which ends of the range a search moves.
struct MovingEnds {
  bool low;
  bool high;
};

// Candidate i: the moving ends are those of the full range times i / kMseCandidates, the others stay.
TQ_HOST_DEVICE Range mse_candidate(Range full, Range start, MovingEnds moving, int32_t i) {
  const float part = static_cast<float>(i) / kMseCandidates;
  return {moving.low ? full.min_val * part : start.min_val, moving.high ? full.max_val * part : start.max_val};
}

struct RangeError {
  Range range;
  double error;
};

// Both ends shrink together first; then, for affine ranges, each end moves alone while the other stays. The error never
// exceeds that of the full range. search(full, best, moving) gives the better of `best` and the candidates of `moving`;
// of equal errors `best`, then the widest candidate.
template <typename Search>
TQ_HOST_DEVICE Range search_mse_range(const Histogram& h, const Moments* prefix, bool symmetric, QRange codes,
                                      const Search& search) {
  const Range full = full_range(h);
  if (prefix[h.grid.bins].m0 == 0.0) return full;
  RangeError best{full, squared_error(h, prefix, full, symmetric, codes)};
  best = search(full, best, MovingEnds{true, true});
  const bool two_sided = best.range.min_val < 0.0f && best.range.max_val > 0.0f;
  for (int32_t round = 0; !symmetric && two_sided && round < kMseRounds; ++round) {
    best = search(full, best, MovingEnds{true, false});
    best = search(full, best, MovingEnds{false, true});
  }
  return best.range;
}

// `prefix` is scratch of bins + 1 entries.
TQ_HOST_DEVICE Range mse_range(const Histogram& h, bool symmetric, QRange codes, Moments* prefix) {
  fill_moments(h, prefix);
  return search_mse_range(h, prefix, symmetric, codes, [&](Range full, RangeError best, MovingEnds moving) {
    const Range start = best.range;
    for (int32_t i = kMseCandidates; i > 0; --i) {
      const Range candidate = mse_candidate(full, start, moving, i);
      const double error = squared_error(h, prefix, candidate, symmetric, codes);
      if (error < best.error) best = {candidate, error};
    }
    return best;
  });
}

// ---- entropy --------------------------------------------------------------------------------------------------------
// After S. Migacz, "8-bit inference with TensorRT" (NVIDIA GTC 2017): of the ranges [-t, t], clipped to what was seen
// for affine codes, take the one whose quantized distribution Q has the least Kullback-Leibler divergence from the
// reference P.
//   P: the bins inside, with everything outside added to the outermost ones
//   Q: the bins inside, averaged over the non-empty bins of each of the codes' equal shares of the window
// Zeros are exact whatever the range, so the bin that holds them weighs no more than its larger neighbour.

// Sums over the bins before one, for bins of count c: of c, of c * log(c), and how many have c > 0.
struct EntropySums {
  double count;
  double count_log;
  int32_t occupied;
};

// Of a positive normal number, within 2 units in the last place: log(m) = 2 artanh((m - 1) / (m + 1)) for m in
// [sqrt(1/2), sqrt(2)), by its series. The libraries' logarithms differ in the last place between machines.
TQ_HOST_DEVICE double natural_log(double x) {
  constexpr double kLn2High = 6.93147180369123816490e-01;  // 32 bits, so that its products with exponents are exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  int exponent = 0;
  double m = frexp(x, &exponent);  // in [0.5, 1)
  if (m < 0.70710678118654752) {
    m *= 2.0;
    --exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;  // below 0.03
  double sum = 0.0;
  for (int32_t odd = 21; odd > 1; odd -= 2) sum = (sum + 1.0 / odd) * z;
  return exponent * kLn2High + (exponent * kLn2Low + (2.0 * s * sum + 2.0 * s));
}

TQ_HOST_DEVICE double x_log_x(double x) { return x > 0.0 ? x * natural_log(x) : 0.0; }

TQ_HOST_DEVICE double entropy_count(const Histogram& h, int32_t bin) {
  const int64_t count = count_at(h, bin);
  if (bin != h.grid.negative) return static_cast<double>(count);
  const int64_t left = count_at(h, bin - 1);
  const int64_t right = count_at(h, bin + 1);
  const int64_t neighbour = left > right ? left : right;
  return static_cast<double>(neighbour > 0 && neighbour < count ? neighbour : count);
}

TQ_HOST_DEVICE EntropySums entropy_sums_of_bin(const Histogram& h, int32_t bin) {
  const double count = entropy_count(h, bin);
  return {count, x_log_x(count), count > 0.0 ? 1 : 0};
}

// prefix: bins + 1 entries.
TQ_HOST_DEVICE void fill_entropy_sums(const Histogram& h, EntropySums* prefix) {
  EntropySums sum{0.0, 0.0, 0};
  for (int32_t bin = 0; bin < h.grid.bins; ++bin) {
    prefix[bin] = sum;
    const EntropySums more = entropy_sums_of_bin(h, bin);
    sum = {sum.count + more.count, sum.count_log + more.count_log, sum.occupied + more.occupied};
  }
  prefix[h.grid.bins] = sum;
}

// Bins [first, last) of a candidate; it may reach beyond the grid, where every bin is empty.
struct Window {
  int32_t first;
  int32_t last;
};

TQ_HOST_DEVICE Window candidate_window(const Histogram& h, Range full, int32_t half_width, bool symmetric) {
  const int32_t zero = h.grid.negative;
  if (symmetric) return {zero - half_width, zero + half_width};
  const int32_t below = bins_up_to(-full.min_val, h.grid.inv_width);
  const int32_t above = bins_up_to(full.max_val, h.grid.inv_width) + (full.max_val > 0.0f ? 0 : 1);  // zeros lie there
  return {zero - (half_width < below ? half_width : below), zero + (half_width < above ? half_width : above)};
}

TQ_HOST_DEVICE int32_t clamp_bin(int32_t bin, int32_t bins) { return bin < 0 ? 0 : (bin > bins ? bins : bin); }

// How much P differs from the histogram in one outermost bin that takes in `outside` more values: in sum of p * log(p).
TQ_HOST_DEVICE double edge_log_gain(double count, double outside) { return x_log_x(count + outside) - x_log_x(count); }

// KL(P || Q); infinite where P has mass that Q lacks.
TQ_HOST_DEVICE double divergence(const Histogram& h, const EntropySums* prefix, Window window, int32_t codes) {
  const int32_t bins = h.grid.bins;
  const int64_t width = window.last - window.first;
  const EntropySums all = prefix[bins];
  const EntropySums begin = prefix[clamp_bin(window.first, bins)];
  const EntropySums end = prefix[clamp_bin(window.last, bins)];
  const double left = begin.count;
  const double right = all.count - end.count;
  const double inside = end.count - begin.count;
  if (inside <= 0.0) return INFINITY;
  const double first_count = entropy_count(h, window.first);
  const double last_count = entropy_count(h, window.last - 1);
  const double p_log_p =
      end.count_log - begin.count_log + edge_log_gain(first_count, left) + edge_log_gain(last_count, right);
  double p_log_q = 0.0;
  EntropySums share_begin = begin;
  for (int64_t code = 0; code < codes; ++code) {
    const int32_t share_last = window.first + static_cast<int32_t>((code + 1) * width / codes);
    const EntropySums share_end = prefix[clamp_bin(share_last, bins)];
    const double q = share_end.count - share_begin.count;
    const double p = q + (code == 0 ? left : 0.0) + (code == codes - 1 ? right : 0.0);
    // An outermost bin that was empty is occupied in P, so it takes its part of Q as well.
    const int32_t occupied = share_end.occupied - share_begin.occupied +
                             (code == 0 && left > 0.0 && first_count == 0.0 ? 1 : 0) +
                             (code == codes - 1 && right > 0.0 && last_count == 0.0 ? 1 : 0);
    if (p > 0.0 && q <= 0.0) return INFINITY;
    if (p > 0.0) p_log_q += p * natural_log(q / occupied);
    share_begin = share_end;
  }
  return (p_log_p - p_log_q) / all.count - natural_log(all.count) + natural_log(inside);
}

inline constexpr int32_t kEntropyCandidates = 1024;

// Half widths that the search tries: widest, widest - stride, ... while positive.
struct EntropyCandidates {
  int32_t widest;
  int32_t stride;

  TQ_HOST_DEVICE int32_t count() const { return widest > 0 ? (widest - 1) / stride + 1 : 0; }
  TQ_HOST_DEVICE int32_t half_width(int32_t i) const { return widest - i * stride; }
};

TQ_HOST_DEVICE EntropyCandidates entropy_candidates(const Histogram& h) {
  const Range full = full_range(h);
  const int32_t widest = bins_up_to(fmaxf(-full.min_val, full.max_val), h.grid.inv_width);
  return {widest, (widest + kEntropyCandidates - 1) / kEntropyCandidates};
}

// Infinite where a window has fewer bins than codes: it loses nothing, which says nothing.
TQ_HOST_DEVICE double candidate_divergence(const Histogram& h, const EntropySums* prefix, int32_t half_width,
                                           bool symmetric, QRange codes) {
  const int32_t code_count = static_cast<int32_t>(codes.quant_max - codes.quant_min) + 1;
  const Window window = candidate_window(h, full_range(h), half_width, symmetric);
  return window.last - window.first < code_count ? INFINITY : divergence(h, prefix, window, code_count);
}

TQ_HOST_DEVICE Range entropy_window_range(const Histogram& h, int32_t half_width) {
  const Range full = full_range(h);
  const float end = ldexpf(static_cast<float>(half_width), h.grid.exponent);
  return {fmaxf(-end, full.min_val), fminf(end, full.max_val)};
}

// `prefix` is scratch of bins + 1 entries.
TQ_HOST_DEVICE Range entropy_range(const Histogram& h, bool symmetric, QRange codes, EntropySums* prefix) {
  fill_entropy_sums(h, prefix);
  if (prefix[h.grid.bins].count == 0.0) return full_range(h);
  const EntropyCandidates candidates = entropy_candidates(h);
  int32_t best = candidates.widest;
  double least = INFINITY;
  for (int32_t i = 0; i < candidates.count(); ++i) {  // from the widest: a tie clips less
    const double kl = candidate_divergence(h, prefix, candidates.half_width(i), symmetric, codes);
    if (kl < least) {
      least = kl;
      best = candidates.half_width(i);
    }
  }
  return entropy_window_range(h, best);
}

}  // namespace torchquant::numerics
