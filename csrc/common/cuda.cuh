// What every .cu file includes, and all it includes of CUDA: free of torch, so that a pass of nvcc
// takes a second, and compiled by g++ over csrc/simt in the tests.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "simt/simt.h"
#endif

#include "common/cuda_types.h"

// Declares `name`, an array in the block's static shared memory.
#if defined(__CUDACC__)
#define FLOWOPS_SHARED(type, name, count) __shared__ type name[count]
#else
#define FLOWOPS_SHARED(type, name, count) \
  static char name##_key = 0;             \
  type* const name = static_cast<type*>(flowops::simt::shared_array(&name##_key, sizeof(type) * (count)))
#endif

namespace flowops {

constexpr int kWarpThreads = 32;
constexpr unsigned kFullWarp = ~0u;
// Kernel arguments beyond this need a newer driver than the toolkit's oldest.
constexpr size_t kMaxArgumentBytes = 4096;

// The block's dynamic shared memory, aligned for 16-byte accesses.
template <typename T>
__device__ T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char flowops_dynamic_shared[];
  return reinterpret_cast<T*>(flowops_dynamic_shared);
#else
  return static_cast<T*>(simt::dynamic_shared_memory());
#endif
}

// Launches `kernel`, raising its limit on dynamic shared memory where the default is too low.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   [[maybe_unused]] cudaStream_t stream, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kMaxArgumentBytes);
#if defined(__CUDACC__)
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
#else
  return simt::run_grid(grid, block, shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
#endif
}

// Calls `body` with a value of the storage type: the one list of what kernels are instantiated for.
template <typename Body>
cudaError_t dispatch_storage(StorageType type, const Body& body) {
  switch (type) {
    case StorageType::kFloat: return body(float{});
    case StorageType::kDouble: return body(double{});
    case StorageType::kHalf: return body(__half{});
    case StorageType::kBFloat16: return body(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

// The type of all arithmetic on a storage type.
template <typename scalar_t>
struct OpMath {
  using type = float;
};
template <>
struct OpMath<double> {
  using type = double;
};
template <typename scalar_t>
using opmath_type = typename OpMath<scalar_t>::type;

// 16 bytes at a time.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T lanes[kSize];
};

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* source) {
#if !defined(__CUDACC__)
  if (reinterpret_cast<uintptr_t>(source) % 16) simt::fail("misaligned 16-byte load");
#endif
  return *reinterpret_cast<const Vector<T>*>(source);
}

template <typename T>
__device__ __forceinline__ void store_vector(T* target, const Vector<T>& value) {
#if !defined(__CUDACC__)
  if (reinterpret_cast<uintptr_t>(target) % 16) simt::fail("misaligned 16-byte store");
#endif
  *reinterpret_cast<Vector<T>*>(target) = value;
}

// The sum over the warp, in every lane, added in the same order each time.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, lanes);
  }
  return value;
}

// The sum over a block of kThreads, in every thread, added in the same order each time.
template <int kThreads, typename T>
__device__ T block_sum(T value) {
  static_assert(kThreads % kWarpThreads == 0 && kThreads <= kWarpThreads * kWarpThreads);
  constexpr int kWarps = kThreads / kWarpThreads;
  FLOWOPS_SHARED(T, partial, kWarps);
  const int lane = threadIdx.x % kWarpThreads;
  value = warp_sum(value);
  if (lane == 0) partial[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  value = warp_sum(lane < kWarps ? partial[lane] : T(0));
  // The next call overwrites the partial sums.
  __syncthreads();
  return value;
}

}  // namespace flowops
