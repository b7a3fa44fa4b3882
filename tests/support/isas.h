// The instruction sets that a kernel test has to cover. Used by C++ tests of kernels.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/isa.h"

namespace torchquant::test {

// What this machine runs by the operating system's word (/proc/cpuinfo), independently of isa.cpp. A test that compares
// it with available_isas() fails if a set that the machine has would go untested.
inline std::vector<std::string> isas_of_this_machine() {
  std::vector<std::string> names = {"reference"};
#if defined(__x86_64__)
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line) && line.rfind("flags", 0) != 0) {
  }
  std::istringstream words(line);
  std::vector<std::string> flags;
  for (std::string word; words >> word;) flags.push_back(word);
  const auto has_all = [&](std::initializer_list<const char*> wanted) {
    for (const char* flag : wanted) {
      bool found = false;
      for (const std::string& have : flags) found = found || have == flag;
      if (!found) return false;
    }
    return true;
  };
  const bool avx2 = has_all({"avx2", "fma", "f16c"});
  if (avx2) names.push_back("avx2");
  if (avx2 && has_all({"avx_vnni"})) names.push_back("avx_vnni");
  const bool avx512 = avx2 && has_all({"avx512f", "avx512bw", "avx512dq", "avx512vl"});
  if (avx512) names.push_back("avx512");
  if (avx512 && has_all({"avx512_vnni"})) names.push_back("avx512_vnni");
#endif
  return names;
}

inline std::string isa_test_name(const ::testing::TestParamInfo<kernels::Isa>& info) {
  return kernels::isa_name(info.param);
}

}  // namespace torchquant::test
