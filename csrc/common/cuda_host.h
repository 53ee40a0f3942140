// What a *_cuda.cpp needs of CUDA: device guard, current stream, launch check, dispatch key. Over
// csrc/simt (FLOWOPS_SIMT, tests alone) the same host code takes CPU tensors and replaces the CPU
// kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#if defined(FLOWOPS_SIMT)
#include "simt/types.h"
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

#if defined(FLOWOPS_SIMT)
#define FLOWOPS_CUDA_KEY CPU
#else
#define FLOWOPS_CUDA_KEY CUDA
#endif

namespace flowops {

#if defined(FLOWOPS_SIMT)

struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor&) {}
};

inline cudaStream_t current_stream() { return nullptr; }

#else

// Makes the tensor's device the current one.
struct DeviceGuard {
  explicit DeviceGuard(const at::Tensor& tensor) : guard(tensor.device()) {}
  c10::cuda::CUDAGuard guard;
};

// The stream of the current device.
inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

#endif

// `op` is the name that the message gives.
inline void check_launch(cudaError_t error, const char* op) {
  TORCH_CHECK(error == cudaSuccess, op, ": CUDA kernel launch failed: ", cudaGetErrorString(error));
}

}  // namespace flowops
