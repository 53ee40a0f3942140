// Whether this machine runs the instruction set that a test is compiled for.
#pragma once

namespace flowops::testing {

inline constexpr int kSkipped = 77;

inline bool machine_runs_this() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

}  // namespace flowops::testing
