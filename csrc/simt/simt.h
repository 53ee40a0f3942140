// Twin of <cuda_runtime.h> for g++: the part of CUDA C++ that the kernels of csrc/cuda use.
// Tests alone compile it; see scheduler.h for what it checks.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/scheduler.h"
#include "simt/types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// Set by the scheduler before a thread goes on.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

inline int min(int a, int b) { return a < b ? a : b; }

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  flowops::simt::wait_for_block({file, line});
}

inline void __syncwarp(unsigned mask = ~0u, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  flowops::simt::exchange(mask, 0, flowops::simt::lane_index(), {file, line});
}

namespace flowops::simt {

template <typename T>
T shuffle(unsigned mask, T value, unsigned source_lane, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source_lane, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace flowops::simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source_lane, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
  return flowops::simt::shuffle(mask, value, unsigned(source_lane) % 32, {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  return flowops::simt::shuffle(mask, value, flowops::simt::lane_index() ^ unsigned(lanes), {file, line});
}
