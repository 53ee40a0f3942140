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

constexpr int kAttentionThreads = 128;
// The most columns of q, k and v, so that the smallest tiles of float64 fit the shared memory of any GPU.
constexpr int64_t kMaxAttentionColumns = 320;
constexpr size_t kAttentionSharedBytes = 96 * 1024;
// Below this many blocks, two on each multiprocessor of an H100, narrower slices keep more of them busy.
constexpr int64_t kEnoughAttentionBlocks = 264;

FLOWOPS_HOST_DEVICE constexpr int ceil_div(int size, int divisor) { return (size + divisor - 1) / divisor; }
FLOWOPS_HOST_DEVICE constexpr int round_up(int size, int multiple) {
  return ceil_div(size, multiple) * multiple;
}

// Rows, columns and depth of a product of one instruction of the tensor cores.
constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 8;

// Lengths of rows of whole tiles and 16-byte vectors, such that the lanes of a warp that read a tile read
// from different banks: tiles of `a` as they lie (4 columns, 8 rows), tiles of `b` (8 columns, 4 rows).
FLOWOPS_HOST_DEVICE constexpr int a_stride(int columns) { return round_up(columns, kMmaRows) + 4; }
FLOWOPS_HOST_DEVICE constexpr int b_stride(int columns) {
  return round_up(columns - kMmaColumns, 16) + kMmaColumns;
}

constexpr size_t attention_shared_values(int chunk, int rows, int slice) {
  const int state_rows = round_up(rows, kMmaRows), wide = b_stride(slice + 1);
  return size_t(2 * chunk * a_stride(rows) + (2 * chunk + state_rows) * wide + chunk * a_stride(chunk) +
                2 * chunk + 1);
}

// Whole tiles of tensor cores for float32, however many columns.
static_assert(attention_shared_values(kMmaRows, kMaxAttentionColumns + 1, 16) * sizeof(float) <=
              kAttentionSharedBytes);
static_assert(attention_shared_values(4, kMaxAttentionColumns + 1, 16) * sizeof(double) <=
              kAttentionSharedBytes);

// The largest tiles that fit, but for slices so wide that there are few blocks.
inline AttentionTiling attention_tiling(const AttentionScan& scan, size_t bytes_per_value) {
  constexpr int kTiles[][2] = {{32, 64}, {32, 32}, {32, 16}, {16, 32}, {16, 16}, {4, 16}};
  const int rows = int(scan.key.columns) + scan.key.tail, columns = int(scan.value.columns);
  AttentionTiling tiling;
  for (const auto& [chunk, slice] : kTiles) {
    tiling.chunk = chunk, tiling.slice = std::min(slice, columns);
    tiling.slices = ceil_div(columns, tiling.slice);
    tiling.shared_values = attention_shared_values(chunk, rows, tiling.slice);
    const bool enough = scan.sequences * scan.heads * tiling.slices >= kEnoughAttentionBlocks || slice == 16;
    if (enough && tiling.shared_values * bytes_per_value <= kAttentionSharedBytes) break;
  }
  return tiling;
}

cudaError_t launch_linear_attention_scan(StorageType type, const AttentionScan& scan, cudaStream_t stream);

}  // namespace flowops
