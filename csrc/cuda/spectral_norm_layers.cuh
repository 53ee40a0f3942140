// Layers as the kernels of spectral_norm see them, forward and backward.
#pragma once

#include <algorithm>

#include "common/cuda.cuh"
#include "cuda/spectral_norm_launch.h"

namespace flowops {

constexpr int kSpectralThreads = 256;
constexpr int kSpectralWarps = kSpectralThreads / kWarpThreads;
// Blocks of a multiprocessor that registers must leave room for.
constexpr int kSpectralBlocks = 2;
static_assert(kSpectralChunkColumns == kWarpThreads && kSpectralTileRows <= kWarpThreads);

// As many layers as one launch can take by value. first[i] is the first block of layer i: a block is a tile
// of rows, or in the kernel that adds up columns a chunk of those.
template <typename Entry>
struct SpectralTable {
  static constexpr int kLayers = (kMaxArgumentBytes - 64) / (sizeof(Entry) + 2 * sizeof(int));
  Entry entries[kLayers];
  int first_tile[kLayers], first_chunk[kLayers];
  int count = 0;
};

// The layer of this block and the block's place in it.
struct SpectralPlace {
  int layer = 0, index;

  __device__ SpectralPlace(const int* first, int count) {
    while (layer + 1 < count && int(blockIdx.x) >= first[layer + 1]) ++layer;
    index = blockIdx.x - first[layer];
  }
};

// Whether the rows of a matrix can be met in 16-byte vectors.
template <typename scalar_t>
__device__ __forceinline__ bool rows_take_vectors(const void* matrix, int columns) {
  return columns % Vector<scalar_t>::kSize == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
}

template <int kLanes, typename T, typename scalar_t>
__device__ __forceinline__ void load_values(const scalar_t* source, T (&values)[kLanes]) {
  if constexpr (kLanes == 1) {
    values[0] = static_cast<T>(*source);
  } else {
    const auto vector = load_vector(source);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = static_cast<T>(vector.lanes[i]);
  }
}

template <int kLanes, typename T, typename scalar_t>
__device__ __forceinline__ void store_values(scalar_t* target, const T (&values)[kLanes]) {
  if constexpr (kLanes == 1) {
    *target = static_cast<scalar_t>(values[0]);
  } else {
    Vector<scalar_t> vector;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) vector.lanes[i] = static_cast<scalar_t>(values[i]);
    store_vector(target, vector);
  }
}

// The sum of `count` values in every thread of the block, added in the same order each time.
__device__ __forceinline__ double sum_values(const double* values, int count, int step) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kSpectralThreads) sum += values[i * step];
  return block_sum<kSpectralThreads>(sum);
}

// Calls launch_table(table, tiles, chunks) with as many layers at a time as one launch takes.
template <typename Entry, typename LaunchTable>
cudaError_t for_each_table(const Entry* entries, int64_t count, const LaunchTable& launch_table) {
  using Table = SpectralTable<Entry>;
  for (int64_t begin = 0; begin < count; begin += Table::kLayers) {
    Table table;
    table.count = int(std::min<int64_t>(Table::kLayers, count - begin));
    int tiles = 0, chunks = 0;
    for (int i = 0; i < table.count; ++i) {
      table.entries[i] = entries[begin + i];
      table.first_tile[i] = tiles;
      table.first_chunk[i] = chunks;
      tiles += int(spectral_tiles(table.entries[i].layer.rows));
      chunks += int(spectral_chunks(table.entries[i].layer.columns));
    }
    const cudaError_t error = launch_table(table, tiles, chunks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flowops
