// What a *_cuda.cpp needs of CUDA: device guard, current stream, launch check, dispatch key. Over
// csrc/simt (FLOWOPS_SIMT, tests alone) the same host code takes CPU tensors and replaces the CPU
// kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "common/cuda_stream.h"
#include "common/cuda_types.h"

#if !defined(FLOWOPS_SIMT)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
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

inline StorageType storage_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return StorageType::kDouble;
    case at::kHalf: return StorageType::kHalf;
    case at::kBFloat16: return StorageType::kBFloat16;
    default: return StorageType::kFloat;
  }
}

// Kernels address the elements of one sample with 32 bits.
inline void check_sample_span(const char* op, const at::Tensor& x) {
  int64_t span = 1;
  for (int64_t d = 1; d < x.dim(); ++d) span += std::max<int64_t>(x.size(d) - 1, 0) * x.stride(d);
  TORCH_CHECK_VALUE(span <= (int64_t{1} << 30), op,
                    ": a sample must span at most 2^30 elements of memory on CUDA, got ", span);
}

// `op` is the name that the message gives.
inline void check_launch(cudaError_t error, const char* op) {
  TORCH_CHECK(error == cudaSuccess, op, ": CUDA kernel launch failed: ", cudaGetErrorString(error));
}

}  // namespace flowops
