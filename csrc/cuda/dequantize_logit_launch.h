// What dequantize_logit_cuda.cpp calls of dequantize_logit_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_split.h"
#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/dequantize_logit_params.h"

namespace flowops {

// `type` is that of z.
VectorSplit split_dequantize_logit(StorageType type, const DequantizeLogitParams& p);
VectorSplit split_dequantize_logit(StorageType type, const DequantizeLogitBackwardParams& p);

// `partial` holds samples.chunks doubles a sample; it is not read where chunks is 1.
cudaError_t launch_dequantize_logit(StorageType type, const DequantizeLogitParams& p,
                                    const VectorSplit& split, double* partial, cudaStream_t stream);
cudaError_t launch_dequantize_logit_backward(StorageType type, const DequantizeLogitBackwardParams& p,
                                             const VectorSplit& split, cudaStream_t stream);

// Of float or double.
cudaError_t launch_uniform_noise(StorageType type, const NoiseParams& p, cudaStream_t stream);

}  // namespace flowops
