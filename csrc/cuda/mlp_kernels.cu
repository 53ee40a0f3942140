// The one pass over memory after each product of mlp, which cuBLAS computes: bound by memory, a thread takes
// 16 bytes at a time where rows and addresses allow.
#include <algorithm>

#include "common/cuda.cuh"
#include "cuda/mlp_launch.h"
#include "math/mlp.h"

namespace flowops {
namespace {

constexpr int kMlpThreads = 256;
// Enough to fill any GPU; threads go on from there in steps of the grid.
constexpr int64_t kMaxBlocks = 8192;

template <typename scalar_t, int kLanes>
struct alignas(kLanes * sizeof(scalar_t)) Lanes {
  scalar_t values[kLanes];
};

template <int kLanes, typename scalar_t, typename T>
__device__ __forceinline__ void load(const scalar_t* source, T (&values)[kLanes]) {
  const auto lanes = *reinterpret_cast<const Lanes<scalar_t, kLanes>*>(source);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) values[i] = static_cast<T>(lanes.values[i]);
}

template <int kLanes, typename scalar_t, typename T>
__device__ __forceinline__ void store(scalar_t* target, const T (&values)[kLanes]) {
  Lanes<scalar_t, kLanes> lanes;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) lanes.values[i] = static_cast<scalar_t>(values[i]);
  *reinterpret_cast<Lanes<scalar_t, kLanes>*>(target) = lanes;
}

// Calls body(row, column) for every kLanes elements of the matrix that are this thread's.
template <int kLanes, typename Body>
__device__ __forceinline__ void for_each_lanes(int64_t rows, int64_t columns, const Body& body) {
  const int64_t groups = columns / kLanes, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * groups; i += step) {
    body(i / groups, i % groups * kLanes);
  }
}

template <typename scalar_t>
__device__ __forceinline__ const scalar_t* at(const MlpRows& rows, int64_t row, int64_t column) {
  return static_cast<const scalar_t*>(rows.data) + row * rows.row + column;
}

template <typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kMlpThreads) mlp_activation_kernel(const MlpActivationParams p) {
  using T = opmath_type<scalar_t>;
  for_each_lanes<kLanes>(p.rows, p.columns, [&](int64_t row, int64_t column) {
    T values[kLanes], skip[kLanes] = {};
    load(at<scalar_t>(p.outputs, row, column), values);
    if (p.skip.data != nullptr) load(at<scalar_t>(p.skip, row, column), skip);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] += skip[i];
    if (p.hidden != nullptr) {
      store(static_cast<scalar_t*>(p.hidden) + row * p.hidden_row + column, values);
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = relu(values[i]);
    store(static_cast<scalar_t*>(p.activations) + row * p.columns + column, values);
  });
}

template <typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kMlpThreads) mlp_gradient_kernel(const MlpGradientParams p) {
  using T = opmath_type<scalar_t>;
  for_each_lanes<kLanes>(p.rows, p.columns, [&](int64_t row, int64_t column) {
    auto* const gradient = static_cast<scalar_t*>(p.gradient) + row * p.columns + column;
    T values[kLanes], hidden[kLanes], skip[kLanes] = {};
    load(static_cast<const scalar_t*>(gradient), values);
    load(at<scalar_t>(p.hidden, row, column), hidden);
    if (p.skip.data != nullptr) load(at<scalar_t>(p.skip, row, column), skip);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = relu_gradient(values[i], hidden[i]) + skip[i];
    store(gradient, values);
  });
}

bool takes_vectors(int bytes, int64_t row, const void* data) {
  return row * bytes % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <typename Params>
cudaError_t launch_elements(void (*kernel)(Params), const Params& p, int lanes, cudaStream_t stream) {
  const int64_t groups = p.rows * (p.columns / lanes);
  const int64_t blocks = std::min(kMaxBlocks, (groups + kMlpThreads - 1) / kMlpThreads);
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kMlpThreads), 0, stream, p);
}

}  // namespace

cudaError_t launch_mlp_activation(StorageType type, const MlpActivationParams& p, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    constexpr int kBytes = sizeof(scalar_t), kLanes = 16 / kBytes;
    const bool vectors = takes_vectors(kBytes, p.columns, p.activations) &&
                         takes_vectors(kBytes, p.outputs.row, p.outputs.data) &&
                         takes_vectors(kBytes, p.skip.row, p.skip.data) &&
                         takes_vectors(kBytes, p.hidden_row, p.hidden);
    return vectors ? launch_elements(mlp_activation_kernel<scalar_t, kLanes>, p, kLanes, stream)
                   : launch_elements(mlp_activation_kernel<scalar_t, 1>, p, 1, stream);
  });
}

cudaError_t launch_mlp_gradient(StorageType type, const MlpGradientParams& p, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    constexpr int kBytes = sizeof(scalar_t), kLanes = 16 / kBytes;
    const bool vectors = takes_vectors(kBytes, p.columns, p.gradient) &&
                         takes_vectors(kBytes, p.hidden.row, p.hidden.data) &&
                         takes_vectors(kBytes, p.skip.row, p.skip.data);
    return vectors ? launch_elements(mlp_gradient_kernel<scalar_t, kLanes>, p, kLanes, stream)
                   : launch_elements(mlp_gradient_kernel<scalar_t, 1>, p, 1, stream);
  });
}

}  // namespace flowops
