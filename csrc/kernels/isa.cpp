// Chooses the CPU instruction set once per process. Called through isa.h by the kernel tables.
#include "kernels/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace torchquant::kernels {
namespace {

struct IsaName {
  Isa isa;
  const char* name;
};

constexpr IsaName kBuilt[] = {
#define TQ_ISA(enumerator, name) {Isa::enumerator, #name},
#include "kernels/isa_list.inc"
#undef TQ_ISA
};

// __builtin_cpu_supports reads cpuid and, for the vector registers, asks whether the operating system saves them.
bool cpu_runs(Isa isa) {
  switch (isa) {
    case Isa::kReference:
      return true;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvxVnni:
      return cpu_runs(Isa::kAvx2) && __builtin_cpu_supports("avxvnni");
    case Isa::kAvx512:
      return cpu_runs(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Vnni:
      return cpu_runs(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
#endif
    default:
      return false;
  }
}

std::string available_names() {
  std::string names;
  for (Isa isa : available_isas()) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

Isa isa_from_environment() {
  const std::vector<Isa> available = available_isas();
  const char* requested = std::getenv("TORCHQUANT_ISA");
  if (requested == nullptr || *requested == '\0') return available.back();
  for (Isa isa : available) {
    if (std::string(requested) == isa_name(isa)) return isa;
  }
  throw std::runtime_error("TORCHQUANT_ISA must be one of " + available_names() + " on this processor; got '" +
                           requested + "'.");
}

// A throwing initializer leaves the variable unset, so every later use reports the same error.
std::atomic<Isa>& selection() {
  static std::atomic<Isa> selected{isa_from_environment()};
  return selected;
}

}  // namespace

const char* isa_name(Isa isa) {
  for (const IsaName& built : kBuilt) {
    if (built.isa == isa) return built.name;
  }
  return "unknown";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> available;
  for (const IsaName& built : kBuilt) {
    if (cpu_runs(built.isa)) available.push_back(built.isa);
  }
  return available;
}

Isa selected_isa() { return selection().load(std::memory_order_relaxed); }

void force_isa(Isa isa) {
  for (Isa candidate : available_isas()) {
    if (candidate == isa) return selection().store(isa, std::memory_order_relaxed);
  }
  throw std::runtime_error("force_isa must be given one of " + available_names() + " on this processor; got '" +
                           isa_name(isa) + "'.");
}

}  // namespace torchquant::kernels
