// What linear_attention_cuda.cpp calls of the kernels. Torch-free.
#pragma once

#include <algorithm>
#include <cstddef>

#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "common/macros.h"
#include "ops/linear_attention_params.h"

namespace flowops {

// How a scan is cut into blocks, each a head of a sequence and a slice of the columns of the value factor.
struct AttentionTiling {
  int chunk = 0;  // rows multiplied with each other
  int slice = 0;  // columns of the value factor
  int slices = 0;
  size_t shared_values = 0;
};

// The most columns of q, k and v, so that the smallest tiles of float64 fit the shared memory of any GPU.
constexpr int64_t kMaxAttentionColumns = 320;
constexpr size_t kAttentionSharedBytes = 96 * 1024;

// Rows of an odd length, so that threads that read a column read from different banks.
FLOWOPS_HOST_DEVICE constexpr int odd(int size) { return size | 1; }

inline size_t attention_shared_values(int chunk, int rows, int slice) {
  return size_t(2 * chunk * odd(rows) + (2 * chunk + rows) * odd(slice + 1) + chunk * odd(chunk) + 2 * chunk);
}

// The largest tiles that fit.
inline AttentionTiling attention_tiling(const AttentionScan& scan, size_t bytes_per_value) {
  constexpr int kTiles[][2] = {{32, 64}, {32, 32}, {16, 32}, {16, 16}, {8, 16}};
  const int rows = int(scan.key.columns) + scan.key.tail, columns = int(scan.value.columns);
  AttentionTiling tiling;
  for (const auto& [chunk, slice] : kTiles) {
    tiling.chunk = chunk, tiling.slice = std::min(slice, columns);
    tiling.shared_values = attention_shared_values(chunk, rows, tiling.slice);
    if (tiling.shared_values * bytes_per_value <= kAttentionSharedBytes) break;
  }
  tiling.slices = (columns + tiling.slice - 1) / tiling.slice;
  return tiling;
}

cudaError_t launch_linear_attention_scan(StorageType type, const AttentionScan& scan, cudaStream_t stream);

}  // namespace flowops
