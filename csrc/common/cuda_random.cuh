// Numbers of the stream of math/philox.h in CUDA kernels.
#pragma once

#include "common/cuda.cuh"
#include "common/cuda_split.h"
#include "math/philox.h"

namespace flowops {

struct NormalNumbers {
  template <typename T, int kPer>
  static __device__ __forceinline__ void block(const PhiloxStream& stream, uint64_t index,
                                               T (&numbers)[kPer]) {
    normal_block(stream, index, numbers);
  }
};

struct UniformNumbers {
  template <typename T, int kPer>
  static __device__ __forceinline__ void block(const PhiloxStream& stream, uint64_t index,
                                               T (&numbers)[kPer]) {
    uniform_block(stream, index, numbers);
  }
};

// Numbers `first` and following of the stream. Several are whole blocks; for one alone its block is made.
template <typename Numbers, int kLanes, typename T>
__device__ __forceinline__ void load_random(const PhiloxStream& stream, int64_t first, T (&values)[kLanes]) {
  constexpr int kPer = kNumbersPerBlock<T>;
  const uint64_t block = uint64_t(first) / kPer;
  if constexpr (kLanes == 1) {
    T numbers[kPer];
    Numbers::block(stream, block, numbers);
    const int which = int(first % kPer);
    values[0] = numbers[0];
#pragma unroll
    for (int i = 1; i < kPer; ++i) values[0] = which == i ? numbers[i] : values[0];
  } else {
    static_assert(kLanes % kPer == 0);
#pragma unroll
    for (int b = 0; b < kLanes / kPer; ++b) {
      T numbers[kPer];
      Numbers::block(stream, block + b, numbers);
#pragma unroll
      for (int i = 0; i < kPer; ++i) values[b * kPer + i] = numbers[i];
    }
  }
}

// A block of the stream a thread.
template <typename Numbers, typename scalar_t>
__global__ void __launch_bounds__(kSplitThreads)
    random_numbers_kernel(const int64_t* key, int64_t count, scalar_t* out) {
  using T = opmath_type<scalar_t>;
  constexpr int kPer = kNumbersPerBlock<T>;
  const int64_t block = int64_t(blockIdx.x) * kSplitThreads + threadIdx.x;
  if (block * kPer >= count) return;
  T numbers[kPer];
  Numbers::block(stream_of(key), uint64_t(block), numbers);
  out += block * kPer;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (block * kPer + i < count) out[i] = static_cast<scalar_t>(numbers[i]);
  }
}

template <typename Numbers, typename scalar_t>
cudaError_t launch_random(const int64_t* key, int64_t count, void* out, cudaStream_t stream) {
  constexpr int64_t kNumbers = int64_t{kSplitThreads} * kNumbersPerBlock<opmath_type<scalar_t>>;
  return launch(random_numbers_kernel<Numbers, scalar_t>, (count + kNumbers - 1) / kNumbers, kSplitThreads, 0,
                stream, key, count, static_cast<scalar_t*>(out));
}

}  // namespace flowops
