// What mlp_cuda.cpp calls of mlp_kernels.cu. Torch-free.
#pragma once

#include "common/cuda_stream.h"
#include "common/cuda_types.h"
#include "ops/mlp_params.h"

namespace flowops {

cudaError_t launch_mlp_activation(StorageType type, const MlpActivationParams& p, cudaStream_t stream);
cudaError_t launch_mlp_gradient(StorageType type, const MlpGradientParams& p, cudaStream_t stream);

}  // namespace flowops
