// Products of small matrices by one warp on tensor cores, in TF32: float32 with 10 bits of mantissa. The twin
// on the CPU takes the same bits of the operands, and adds in float.
#pragma once

#include <cstring>

#include "common/cuda.cuh"

namespace flowops {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kHasTf32 = true;
#else
constexpr bool kHasTf32 = false;
#endif

// One lane's part of D (16, 8) += A (16, 8) B (8, 8), where g = lane / 4 and t = lane % 4:
//   A  (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   B  (t, g), (t + 4, g)
//   D  (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// PTX ISA, matrix fragments of mma.m16n8k8 with .tf32.
struct Tf32A {
  uint32_t bits[4];
};
struct Tf32B {
  uint32_t bits[2];
};
struct MmaSum {
  float values[4];
};

// Rounded to nearest, ties away from zero, in all but the last 13 bits, which tensor cores do not read.
__device__ __forceinline__ uint32_t tf32_bits(float x) {
  uint32_t bits;
#if !defined(__CUDACC__)
  std::memcpy(&bits, &x, sizeof(bits));
  const bool finite = x - x == 0;
  bits = finite ? bits + 0x1000 : x != x ? 0x7fffffff : bits;
#elif __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
  bits = 0;
#endif
  return bits;
}

__device__ __forceinline__ float tf32_value(uint32_t bits) {
  bits &= 0xffffe000;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

#if defined(__CUDACC__)
__device__ __forceinline__ void mma(MmaSum& sum, const Tf32A& a, const Tf32B& b) {
#if __CUDA_ARCH__ >= 800
  auto& d = sum.values;
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.bits[0]), "r"(a.bits[1]), "r"(a.bits[2]), "r"(a.bits[3]), "r"(b.bits[0]), "r"(b.bits[1]));
#endif
}
#else
inline void mma(MmaSum& sum, const Tf32A& a, const Tf32B& b, const char* file = __builtin_FILE(),
                int line = __builtin_LINE()) {
  struct Operands {
    Tf32A a;
    Tf32B b;
  };
  const Operands mine{a, b};
  Operands all[kWarpThreads];
  simt::gather(kFullWarp, &mine, sizeof(mine), all, {file, line});
  const int lane = int(simt::lane_index()), group = lane / 4, place = lane % 4;
  for (int part = 0; part < 4; ++part) {
    const int lower = part / 2, column = 2 * place + part % 2;
    for (int k = 0; k < 8; ++k) {
      sum.values[part] += tf32_value(all[4 * group + k % 4].a.bits[lower + k / 4 * 2]) *
                          tf32_value(all[4 * column + k % 4].b.bits[k / 4]);
    }
  }
}
#endif

}  // namespace flowops
