#include "common/cuda_split.cuh"
#include "cuda/gaussian_log_prob_launch.h"
#include "math/gaussian_log_prob.h"

namespace flowops {
namespace {

// x, mean and log_scale of one sample, and what becomes of `kLanes` of its elements.
template <int kLanes, typename scalar_t>
struct DensityOperands {
  using T = opmath_type<scalar_t>;
  Rows<const scalar_t> x, mean, log_scale;

  template <typename Params>
  __device__ DensityOperands(const Params& p, int64_t sample)
      : x(p.x, sample), mean(p.mean, sample), log_scale(p.log_scale, sample) {}

  // Distances d, log_scale and its root.
  __device__ __forceinline__ void load(int row, int column, T (&distance)[kLanes], T (&scale)[kLanes],
                                       T (&root)[kLanes]) const {
    T means[kLanes] = {};
    load_lanes(x, row, column, distance);
    if (mean.data) load_lanes(mean, row, column, means);
    if (log_scale.data) load_lanes(log_scale, row, column, scale);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      distance[i] -= means[i];
      if (!log_scale.data) {
        scale[i] = 0;
        root[i] = 1;
        continue;
      }
      root[i] = gaussian_root(scale[i]);
      distance[i] = gaussian_reduced(distance[i], root[i]);
    }
  }
};

template <typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kSplitThreads)
    gaussian_log_prob_kernel(const GaussianLogProbParams p, const SampleSplit split, double* partial) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  const DensityOperands<kLanes, scalar_t> operands(p, share.sample);
  T sum = 0;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T distance[kLanes], scale[kLanes], root[kLanes];
    operands.load(row, column, distance, scale, root);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum -= gaussian_excess(distance[i], scale[i]) + T(kHalfLog2Pi);
  });
  store_sample_sum<T>(split, share, sum, p.log_prob, nullptr, partial);
}

template <typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kSplitThreads)
    gaussian_log_prob_backward_kernel(const GaussianLogProbBackwardParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  if (!share.active) return;
  const DensityOperands<kLanes, scalar_t> operands(p, share.sample);
  const Rows<scalar_t> grad_x(p.grad_x, share.sample), grad_mean(p.grad_mean, share.sample);
  const Rows<scalar_t> grad_log_scale(p.grad_log_scale, share.sample);
  const T upstream = static_cast<const T*>(p.grad)[share.sample];
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T distance[kLanes], scale[kLanes], root[kLanes];
    operands.load(row, column, distance, scale, root);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const auto grad = gaussian_log_prob_gradient(upstream, distance[i], root[i]);
      distance[i] = grad.x;
      scale[i] = grad.log_scale;
      root[i] = -grad.x;
    }
    if (grad_x.data) store_lanes(grad_x, row, column, distance);
    if (grad_mean.data) store_lanes(grad_mean, row, column, root);
    if (grad_log_scale.data) store_lanes(grad_log_scale, row, column, scale);
  });
}

template <typename scalar_t>
cudaError_t launch_forward(const GaussianLogProbParams& p, const VectorSplit& split, double* partial,
                           cudaStream_t stream) {
  const SampleSplit& samples = split.samples;
  const auto kernel = split.vectors ? gaussian_log_prob_kernel<scalar_t, Vector<scalar_t>::kSize>
                                    : gaussian_log_prob_kernel<scalar_t, 1>;
  const cudaError_t error = launch(kernel, samples.blocks(), kSplitThreads, 0, stream, p, samples, partial);
  if (error != cudaSuccess || samples.chunks == 1) return error;
  return launch_chunk_totals<opmath_type<scalar_t>>(p.log_prob, nullptr, samples, partial, stream);
}

template <typename scalar_t>
cudaError_t launch_backward(const GaussianLogProbBackwardParams& p, const VectorSplit& split,
                            cudaStream_t stream) {
  const auto kernel = split.vectors ? gaussian_log_prob_backward_kernel<scalar_t, Vector<scalar_t>::kSize>
                                    : gaussian_log_prob_backward_kernel<scalar_t, 1>;
  return launch(kernel, split.samples.blocks(), kSplitThreads, 0, stream, p, split.samples);
}

}  // namespace

VectorSplit split_gaussian_log_prob(StorageType type, const GaussianLogProbParams& p) {
  return split_vectors(type, p, {&p.x, &p.mean, &p.log_scale});
}

VectorSplit split_gaussian_log_prob(StorageType type, const GaussianLogProbBackwardParams& p) {
  return split_vectors(type, p, {&p.x, &p.mean, &p.log_scale, &p.grad_x, &p.grad_mean, &p.grad_log_scale});
}

cudaError_t launch_gaussian_log_prob(StorageType type, const GaussianLogProbParams& p,
                                     const VectorSplit& split, double* partial, cudaStream_t stream) {
  return dispatch_storage(
      type, [&](auto zero) { return launch_forward<decltype(zero)>(p, split, partial, stream); });
}

cudaError_t launch_gaussian_log_prob_backward(StorageType type, const GaussianLogProbBackwardParams& p,
                                              const VectorSplit& split, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) { return launch_backward<decltype(zero)>(p, split, stream); });
}

}  // namespace flowops
