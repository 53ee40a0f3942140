// What logistic_mixture_log_prob_cuda.cpp calls of logistic_mixture_log_prob_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/logistic_mixture_log_prob_params.h"

namespace flowops {

// A pixel to a thread.
inline SampleSplit split_logistic_mixture(const LogisticMixtureParams& p) {
  return split_samples(p.batch, p.inner, 1);
}

// `type` is that of the parameters; `partial` holds split.chunks doubles a sample, and is not read where
// chunks is 1.
cudaError_t launch_logistic_mixture(StorageType type, const LogisticMixtureForwardParams& p,
                                    const SampleSplit& split, double* partial, cudaStream_t stream);
cudaError_t launch_logistic_mixture_backward(StorageType type, const LogisticMixtureBackwardParams& p,
                                             const SampleSplit& split, cudaStream_t stream);

}  // namespace flowops
