// A thread's part of a SampleSplit, and the operands as it sees them.
#pragma once

#include "common/cuda.cuh"
#include "common/cuda_split.h"

namespace flowops {

struct ThreadShare {
  int64_t sample;
  int lane, chunk;
  bool active;  // false where the last block has more places than samples

  __device__ explicit ThreadShare(const SampleSplit& split)
      : sample(int64_t(blockIdx.x / split.chunks) * (kSplitThreads / split.lanes) +
               threadIdx.x / split.lanes),
        lane(threadIdx.x % split.lanes),
        chunk(blockIdx.x % split.chunks),
        active(sample < split.batch) {}
};

// The part of one sample that starts at a pointer, with 32-bit strides.
template <typename T>
struct Rows {
  T* data;
  int outer, inner;

  __device__ Rows(const Operand& a, int64_t sample)
      : data(a.data == nullptr ? nullptr : static_cast<T*>(a.data) + sample * a.batch),
        outer(int(a.outer)),
        inner(int(a.inner)) {}

  __device__ T* at(int row, int column) const { return data + row * outer + column * inner; }
};

// `kLanes` elements of a row as arithmetic values, one by one.
template <int kLanes, typename scalar_t, typename T>
__device__ __forceinline__ void load_each(const Rows<scalar_t>& rows, int row, int column,
                                          T (&values)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) values[i] = static_cast<T>(*rows.at(row, column + i));
}

template <int kLanes, typename scalar_t, typename T>
__device__ __forceinline__ void store_each(const Rows<scalar_t>& rows, int row, int column,
                                           const T (&values)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) *rows.at(row, column + i) = static_cast<scalar_t>(values[i]);
}

// The same in one 16-byte access, for rows that take_vectors has passed; one element needs no such
// pass.
template <int kLanes, typename scalar_t, typename T>
__device__ __forceinline__ void load_lanes(const Rows<scalar_t>& rows, int row, int column,
                                           T (&values)[kLanes]) {
  if constexpr (kLanes == 1) {
    load_each(rows, row, column, values);
  } else {
    const auto vector = load_vector(rows.at(row, column));
    static_assert(decltype(vector)::kSize == kLanes);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = static_cast<T>(vector.lanes[i]);
  }
}

template <int kLanes, typename scalar_t, typename T>
__device__ __forceinline__ void store_lanes(const Rows<scalar_t>& rows, int row, int column,
                                            const T (&values)[kLanes]) {
  if constexpr (kLanes == 1) {
    store_each(rows, row, column, values);
  } else {
    Vector<scalar_t> vector;
    static_assert(Vector<scalar_t>::kSize == kLanes);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) vector.lanes[i] = static_cast<scalar_t>(values[i]);
    store_vector(rows.at(row, column), vector);
  }
}

// Calls body(row, column) for every `kLanes`-th element that this thread takes of outer rows of
// `inner`.
template <int kLanes, typename Body>
__device__ __forceinline__ void for_each_element(const SampleSplit& split, const ThreadShare& share,
                                                 unsigned outer, unsigned inner, const Body& body) {
  if (!share.active) return;
  const unsigned begin = share.chunk * kSplitChunk;
  const unsigned total = outer * inner, limit = begin + kSplitChunk;
  const unsigned end = total < limit ? total : limit;
  for (unsigned element = begin + share.lane * kLanes; element < end; element += split.lanes * kLanes) {
    const unsigned row = element / inner;
    body(int(row), int(element - row * inner));
  }
}

// The sum over the threads that share a sample, in all of them; every thread of the block must call
// it.
template <typename T>
__device__ __forceinline__ T share_sum(const SampleSplit& split, T value) {
  if (split.lanes == kSplitThreads) return block_sum<kSplitThreads>(value);
  for (int lanes = split.lanes / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, lanes);
  }
  return value;
}

// Adds `value` over the threads that share a sample to what was there `before` (which may be null); where a
// sample has several chunks, launch_chunk_totals does so with the partial sums. Every thread must call it.
template <typename T>
__device__ __forceinline__ void store_sample_sum(const SampleSplit& split, const ThreadShare& share,
                                                 double value, void* total, const void* before,
                                                 double* partial) {
  value = share_sum(split, value);
  if (share.lane != 0 || !share.active) return;
  if (split.chunks > 1) {
    partial[share.sample * split.chunks + share.chunk] = value;
  } else {
    if (before) value += static_cast<const T*>(before)[share.sample];
    static_cast<T*>(total)[share.sample] = static_cast<T>(value);
  }
}

// Adds the chunks of a sample, and what was there before, in a fixed order: a warp a sample.
template <typename T>
__global__ void __launch_bounds__(kSplitThreads)
    chunk_total_kernel(T* total, const T* before, const SampleSplit split, const double* partial) {
  const int64_t warp = int64_t(blockIdx.x) * (kSplitThreads / kWarpThreads);
  const int64_t sample = warp + threadIdx.x / kWarpThreads;
  if (sample >= split.batch) return;
  const int lane = threadIdx.x % kWarpThreads;
  double sum = 0;
  for (int chunk = lane; chunk < split.chunks; chunk += kWarpThreads) {
    sum += partial[sample * split.chunks + chunk];
  }
  sum = warp_sum(sum);
  if (lane == 0) total[sample] = static_cast<T>((before ? double(before[sample]) : 0.0) + sum);
}

// `before`, one value a sample, may be null.
template <typename T>
cudaError_t launch_chunk_totals(void* total, const void* before, const SampleSplit& split,
                                const double* partial, cudaStream_t stream) {
  constexpr int64_t kSamples = kSplitThreads / kWarpThreads;
  return launch(chunk_total_kernel<T>, (split.batch + kSamples - 1) / kSamples, kSplitThreads, 0, stream,
                static_cast<T*>(total), static_cast<const T*>(before), split, partial);
}

}  // namespace flowops
