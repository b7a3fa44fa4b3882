// Lengths at which vector code goes wrong. Used by C++ tests of kernels over runs of elements.
#pragma once

#include <cstdint>
#include <vector>

namespace torchquant::test {

// Every length around one, two, ... eight vectors of 16 lanes, so every possible end of a run.
inline std::vector<int64_t> run_lengths() {
  std::vector<int64_t> lengths;
  for (int64_t n = 0; n <= 130; ++n) lengths.push_back(n);
  return lengths;
}

// Around `block` and a few of them, with ends that fill no vector.
inline std::vector<int64_t> lengths_around(int64_t block) { return {block - 1, block, block + 17, 3 * block - 5}; }

}  // namespace torchquant::test
