// What rational_quadratic_spline_cuda.cpp calls of rational_quadratic_spline_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/rational_quadratic_spline_params.h"

namespace flowops {

inline SampleSplit split_spline(const SplineParams& p) { return split_samples(p.batch, p.elements(), 1); }

// `partial` holds split.chunks doubles a sample; it is not read where chunks is 1 or nothing is summed.
cudaError_t launch_spline(StorageType type, const SplineForwardParams& p, const SampleSplit& split,
                          double* partial, cudaStream_t stream);
cudaError_t launch_spline_backward(StorageType type, const SplineBackwardParams& p, const SampleSplit& split,
                                   cudaStream_t stream);

}  // namespace flowops
