// What spectral_norm_cuda.cpp calls of the kernels. Torch-free.
#pragma once

#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "common/macros.h"
#include "ops/spectral_norm_params.h"

namespace flowops {

// Rows of a matrix that one block reads, and columns whose sums over all rows one block adds up.
constexpr int kSpectralTileRows = 16;
constexpr int kSpectralChunkColumns = 32;

FLOWOPS_HOST_DEVICE int64_t spectral_tiles(int64_t rows) {
  return (rows + kSpectralTileRows - 1) / kSpectralTileRows;
}
FLOWOPS_HOST_DEVICE int64_t spectral_chunks(int64_t columns) {
  return (columns + kSpectralChunkColumns - 1) / kSpectralChunkColumns;
}

// Doubles of scratch memory for one layer: a sum for every tile, two for every chunk, then, in the
// accumulation type, W v, W^T u, and the part of W^T u of every tile.
inline int64_t spectral_scratch(int64_t rows, int64_t columns) {
  const int64_t tiles = spectral_tiles(rows);
  return tiles + 2 * spectral_chunks(columns) + rows + columns + tiles * columns;
}

inline int64_t spectral_backward_scratch(int64_t rows) { return spectral_tiles(rows); }

struct SpectralNormEntry {
  SpectralNormLayer layer;
  double* scratch = nullptr;
};

struct SpectralNormBackwardEntry {
  SpectralNormLayerBackward layer;
  double* scratch = nullptr;
};

cudaError_t launch_spectral_norm(StorageType type, const SpectralNormEntry* entries, int64_t count,
                                 const SpectralNormSettings& settings, cudaStream_t stream);
cudaError_t launch_spectral_norm_backward(StorageType type, const SpectralNormBackwardEntry* entries,
                                          int64_t count, const SpectralNormSettings& settings,
                                          cudaStream_t stream);

}  // namespace flowops
