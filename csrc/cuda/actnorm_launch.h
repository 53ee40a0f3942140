// What actnorm_cuda.cpp calls of the kernels. Torch-free.
#pragma once

#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/actnorm_params.h"

namespace flowops {

// How the values of every channel, batch times pixels positions, are dealt out to blocks: the same
// for any GPU, so that sums over a channel come out the same.
struct ChannelSplit {
  int64_t positions = 0;
  int channels = 0;
  int width = 1;          // channels a block takes, side by side
  int height = 1;         // positions it takes at a time
  int splits = 0;         // blocks along the positions
  int column_blocks = 0;  // blocks along the channels
};

ChannelSplit split_channels(int64_t batch, int64_t channels, int64_t pixels, bool inner_channels);

cudaError_t launch_actnorm(StorageType type, const ActnormParams& p, cudaStream_t stream);

// `partial` holds two doubles a channel and split.
cudaError_t launch_actnorm_backward(StorageType type, const ActnormBackwardParams& p,
                                    const ChannelSplit& split, double* partial, cudaStream_t stream);

// `partial` holds three doubles a channel and split.
cudaError_t launch_actnorm_statistics(StorageType type, const ActnormStatisticsParams& p,
                                      const ChannelSplit& split, double* partial, cudaStream_t stream);

}  // namespace flowops
