// What invertible_conv1x1_prepare_cuda.cpp calls of the kernels. Torch-free.
#pragma once

#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/invertible_conv1x1_params.h"

namespace flowops {

// Most channels of a matrix that a block factors, in double precision in the shared memory that
// every GPU has.
constexpr int64_t kMaxFactoredChannels = 96;

// A layer with a full weight. Above kMaxFactoredChannels its inverse (where needed) and log|det|
// are given.
struct FullLayer {
  PreparedLayer layer;
  const void* inverse = nullptr;
  const void* log_abs_det = nullptr;
};

// `scratch` holds two (channels, channels) matrices; `inverse` is as above.
struct LayerBackward {
  PreparedLayerBackward layer;
  void* scratch = nullptr;
  const void* inverse = nullptr;
};

// `type` is kFloat or kDouble; one block a layer, as few launches as the kernels' arguments allow.
cudaError_t launch_prepare_lu(StorageType type, const PreparedLayer* layers, int64_t count, bool inverse,
                              cudaStream_t stream);
cudaError_t launch_prepare_full(StorageType type, const FullLayer* layers, int64_t count, bool inverse,
                                cudaStream_t stream);
cudaError_t launch_prepare_lu_backward(StorageType type, const LayerBackward* layers, int64_t count,
                                       bool inverse, cudaStream_t stream);
cudaError_t launch_prepare_full_backward(StorageType type, const LayerBackward* layers, int64_t count,
                                         bool inverse, cudaStream_t stream);

}  // namespace flowops
