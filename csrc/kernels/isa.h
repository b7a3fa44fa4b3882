// Which CPU instruction set the kernels run with. Called by the kernel tables of this folder, `torchquant doctor`,
// receipts and tests.
#pragma once

#include <string>
#include <vector>

#include "export.h"

namespace torchquant::kernels {

enum class Isa : int { kReference = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3, kAvxVnni = 4 };

// "reference", "avx2", "avx_vnni", "avx512", "avx512_vnni"
TQ_API const char* isa_name(Isa isa);

// Every instruction set that this library holds and this CPU runs, slowest first. AVX2 means AVX2 + FMA + F16C;
// AVX-512 means F + BW + DQ + VL; AVX-VNNI and AVX-512-VNNI add the instruction that multiplies and adds four bytes.
TQ_API std::vector<Isa> available_isas();

// The fastest available one, or the one that TORCHQUANT_ISA names (read at the first use). Throws std::runtime_error
// naming the allowed values if the variable names an unknown or an unavailable set.
TQ_API Isa selected_isa();

// Overrides the selection for the running process; for tests and benchmarks. Throws like selected_isa().
TQ_API void force_isa(Isa isa);

}  // namespace torchquant::kernels
