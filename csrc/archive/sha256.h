// SHA-256 of a record in a saved file. Called by the archive alone.
//
// Our own, because the wheel depends on torch and nothing else: no crypto library is there to link, and torch exports
// only SHA-1, which no longer protects against a file that was altered on purpose.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "export.h"

namespace torchquant::archive {

// FIPS 180-4, fed in pieces of any size.
class TQ_API Sha256 {
 public:
  void update(const void* data, size_t size);
  // Lower-case hexadecimal digest of everything fed so far; the object is used up.
  std::string hex_digest();

 private:
  void process_block(const uint8_t* block);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> pending_{};  // the bytes of a block that is not full yet
  size_t pending_size_ = 0;
  uint64_t total_size_ = 0;
};

TQ_API std::string sha256_hex(const void* data, size_t size);

}  // namespace torchquant::archive
