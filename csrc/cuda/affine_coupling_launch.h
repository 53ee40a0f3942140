// What affine_coupling_cuda.cpp calls of affine_coupling_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/affine_coupling_params.h"

namespace flowops {

// How a call's elements are dealt out; `vectors` says that every operand takes 16-byte accesses.
struct AffineCouplingSplit {
  SampleSplit samples;
  bool vectors;
};

AffineCouplingSplit split_affine_coupling(StorageType type, const AffineCouplingParams& p);
AffineCouplingSplit split_affine_coupling(StorageType type, const AffineCouplingBackwardParams& p);

// `partial` holds samples.chunks doubles a sample; it is not read where chunks is 1.
cudaError_t launch_affine_coupling(StorageType type, const AffineCouplingParams& p,
                                   const AffineCouplingSplit& split, double* partial, cudaStream_t stream);
cudaError_t launch_affine_coupling_backward(StorageType type, const AffineCouplingBackwardParams& p,
                                            const AffineCouplingSplit& split, cudaStream_t stream);

}  // namespace flowops
