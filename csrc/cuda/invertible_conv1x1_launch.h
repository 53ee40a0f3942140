// What invertible_conv1x1_cuda.cpp calls of invertible_conv1x1_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/invertible_conv1x1_params.h"

namespace flowops {

// Most channels that the kernels take: beyond, a general matrix product is faster than reading the
// weight from shared memory, which on the smallest GPUs it would not fit either.
inline int64_t most_channels(StorageType type) { return type == StorageType::kDouble ? 32 : 48; }

// How positions, batch times pixels, are dealt out to blocks: the same for any GPU.
struct PixelSplit {
  int64_t positions = 0;
  int64_t blocks = 0;
  int tiles = 1;  // a block takes one after another
};

PixelSplit split_pixels(int64_t batch, int64_t pixels);

cudaError_t launch_invertible_conv1x1(StorageType type, const InvertibleConv1x1Params& p,
                                      cudaStream_t stream);

// `partial` holds channels * (channels + 1) values of the accumulation type for every block of the
// split.
cudaError_t launch_invertible_conv1x1_backward(StorageType type, const InvertibleConv1x1BackwardParams& p,
                                               const PixelSplit& split, void* partial, cudaStream_t stream);

}  // namespace flowops
