// What gaussian_log_prob_cuda.cpp calls of gaussian_log_prob_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/gaussian_log_prob_params.h"

namespace flowops {

VectorSplit split_gaussian_log_prob(StorageType type, const GaussianLogProbParams& p);
VectorSplit split_gaussian_log_prob(StorageType type, const GaussianLogProbBackwardParams& p);

// `partial` holds samples.chunks doubles a sample; it is not read where chunks is 1.
cudaError_t launch_gaussian_log_prob(StorageType type, const GaussianLogProbParams& p,
                                     const VectorSplit& split, double* partial, cudaStream_t stream);
cudaError_t launch_gaussian_log_prob_backward(StorageType type, const GaussianLogProbBackwardParams& p,
                                              const VectorSplit& split, cudaStream_t stream);

}  // namespace flowops
