// What affine_coupling_cuda.cpp calls of affine_coupling_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/affine_coupling_params.h"

namespace flowops {

VectorSplit split_affine_coupling(StorageType type, const AffineCouplingParams& p);
VectorSplit split_affine_coupling(StorageType type, const AffineCouplingBackwardParams& p);

// `partial` holds samples.chunks doubles a sample; it is not read where chunks is 1.
cudaError_t launch_affine_coupling(StorageType type, const AffineCouplingParams& p, const VectorSplit& split,
                                   double* partial, cudaStream_t stream);
cudaError_t launch_affine_coupling_backward(StorageType type, const AffineCouplingBackwardParams& p,
                                            const VectorSplit& split, cudaStream_t stream);

}  // namespace flowops
