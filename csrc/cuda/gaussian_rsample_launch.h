// What gaussian_rsample_cuda.cpp calls of gaussian_rsample_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/gaussian_rsample_params.h"

namespace flowops {

VectorSplit split_gaussian_rsample(StorageType type, const GaussianRsampleParams& p);
VectorSplit split_gaussian_rsample(StorageType type, const GaussianRsampleBackwardParams& p);

// `partial` holds samples.chunks doubles a sample; it is not read where chunks is 1.
cudaError_t launch_gaussian_rsample(StorageType type, const GaussianRsampleParams& p,
                                    const VectorSplit& split, double* partial, cudaStream_t stream);
cudaError_t launch_gaussian_rsample_backward(StorageType type, const GaussianRsampleBackwardParams& p,
                                             const VectorSplit& split, cudaStream_t stream);

cudaError_t launch_gaussian_noise(StorageType type, const NoiseParams& p, cudaStream_t stream);

}  // namespace flowops
