#include "common/cuda_random.cuh"
#include "common/cuda_split.cuh"
#include "cuda/gaussian_rsample_launch.h"
#include "math/gaussian_rsample.h"

namespace flowops {
namespace {

// The prior of the elements from (row, column) on; the standard one where the operands are absent.
template <int kLanes, typename scalar_t>
struct PriorOperands {
  using T = opmath_type<scalar_t>;
  Rows<const scalar_t> mean, scale;

  template <typename Params>
  __device__ PriorOperands(const Params& p, int64_t sample)
      : mean(p.prior_mean, sample), scale(p.prior_scale, sample) {}

  __device__ void load(int row, int column, T (&means)[kLanes], T (&raw)[kLanes]) const {
    if (mean.data == nullptr) return;
    load_lanes(mean, row, column, means);
    load_lanes(scale, row, column, raw);
  }

  template <typename Scale>
  __device__ GaussianPrior<T> evaluate(T prior_mean, T raw, bool wants_log) const {
    if (mean.data == nullptr) return standard_prior<T>();
    return gaussian_prior<Scale>(prior_mean, raw, wants_log);
  }
};

template <typename scalar_t, int kLanes, typename Scale>
__global__ void __launch_bounds__(kSplitThreads)
    gaussian_rsample_kernel(const GaussianRsampleParams p, const SampleSplit split, double* partial) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  const PhiloxStream stream = stream_of(p.key);
  const Rows<const scalar_t> mean(p.mean, share.sample), scale(p.scale, share.sample);
  const Rows<scalar_t> z(p.z, share.sample);
  const PriorOperands<kLanes, scalar_t> prior(p, share.sample);
  const int64_t first = share.sample * p.outer * p.inner;
  T sum = 0;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T means[kLanes], raw[kLanes], prior_means[kLanes] = {}, prior_raw[kLanes] = {}, noise[kLanes];
    load_lanes(mean, row, column, means);
    load_lanes(scale, row, column, raw);
    prior.load(row, column, prior_means, prior_raw);
    load_random<NormalNumbers>(stream, first + int64_t(row) * p.inner + column, noise);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const auto against = prior.template evaluate<Scale>(prior_means[i], prior_raw[i], p.with_kl);
      const T std = Scale::std(raw[i]);
      if (p.with_kl) sum += gaussian_kl(gaussian_gap<Scale>(means[i], raw[i], std, against, p.residual));
      means[i] = gaussian_sample(means[i], std, noise[i], against, p.residual);
    }
    store_lanes(z, row, column, means);
  });
  store_sample_sum<T>(split, share, sum, p.kl, nullptr, partial);
}

template <typename scalar_t, int kLanes, typename Scale>
__global__ void __launch_bounds__(kSplitThreads)
    gaussian_rsample_backward_kernel(const GaussianRsampleBackwardParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  if (!share.active) return;
  const PhiloxStream stream = stream_of(p.key);
  const Rows<const scalar_t> grad_z(p.grad_z, share.sample), mean(p.mean, share.sample);
  const Rows<const scalar_t> scale(p.scale, share.sample);
  const Rows<scalar_t> grad_mean(p.grad_mean, share.sample), grad_scale(p.grad_scale, share.sample);
  const Rows<scalar_t> grad_prior_mean(p.grad_prior_mean, share.sample);
  const Rows<scalar_t> grad_prior_scale(p.grad_prior_scale, share.sample);
  const PriorOperands<kLanes, scalar_t> prior(p, share.sample);
  const bool has_prior = prior.mean.data != nullptr;
  const T upstream = static_cast<const T*>(p.grad_kl)[share.sample];
  const int64_t first = share.sample * p.outer * p.inner;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T grads[kLanes], means[kLanes], raw[kLanes], prior_means[kLanes] = {}, prior_raw[kLanes] = {};
    T noise[kLanes];
    load_lanes(grad_z, row, column, grads);
    load_lanes(mean, row, column, means);
    load_lanes(scale, row, column, raw);
    prior.load(row, column, prior_means, prior_raw);
    load_random<NormalNumbers>(stream, first + int64_t(row) * p.inner + column, noise);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const auto against = prior.template evaluate<Scale>(prior_means[i], prior_raw[i], p.with_kl);
      const auto grad = gaussian_gradient<Scale>(grads[i], upstream, noise[i], means[i], raw[i], prior_raw[i],
                                                 against, has_prior, p.residual, p.with_kl);
      means[i] = grad.mean;
      raw[i] = grad.scale;
      prior_means[i] = grad.prior_mean;
      prior_raw[i] = grad.prior_scale;
    }
    store_lanes(grad_mean, row, column, means);
    store_lanes(grad_scale, row, column, raw);
    if (!has_prior) return;
    store_lanes(grad_prior_mean, row, column, prior_means);
    store_lanes(grad_prior_scale, row, column, prior_raw);
  });
}

// Calls body(scale) with the value of a type of math/gaussian_rsample.h.
template <typename Body>
cudaError_t dispatch_form(GaussianScaleForm form, const Body& body) {
  switch (form) {
    case GaussianScaleForm::kLogVariance: return body(LogVarianceScale{});
    case GaussianScaleForm::kLogStd: return body(LogStdScale{});
    case GaussianScaleForm::kStd: return body(StdScale{});
    case GaussianScaleForm::kSoftplus: return body(SoftplusScale{});
  }
  return cudaErrorInvalidValue;
}

template <typename scalar_t>
cudaError_t launch_forward(const GaussianRsampleParams& p, const VectorSplit& split, double* partial,
                           cudaStream_t stream) {
  const SampleSplit& samples = split.samples;
  const cudaError_t error = dispatch_form(p.form, [&](auto scale) {
    using Scale = decltype(scale);
    const auto kernel = split.vectors ? gaussian_rsample_kernel<scalar_t, Vector<scalar_t>::kSize, Scale>
                                      : gaussian_rsample_kernel<scalar_t, 1, Scale>;
    return launch(kernel, samples.blocks(), kSplitThreads, 0, stream, p, samples, partial);
  });
  if (error != cudaSuccess || samples.chunks == 1) return error;
  return launch_chunk_totals<opmath_type<scalar_t>>(p.kl, nullptr, samples, partial, stream);
}

template <typename scalar_t>
cudaError_t launch_backward(const GaussianRsampleBackwardParams& p, const VectorSplit& split,
                            cudaStream_t stream) {
  return dispatch_form(p.form, [&](auto scale) {
    using Scale = decltype(scale);
    const auto kernel = split.vectors
                            ? gaussian_rsample_backward_kernel<scalar_t, Vector<scalar_t>::kSize, Scale>
                            : gaussian_rsample_backward_kernel<scalar_t, 1, Scale>;
    return launch(kernel, split.samples.blocks(), kSplitThreads, 0, stream, p, split.samples);
  });
}

}  // namespace

VectorSplit split_gaussian_rsample(StorageType type, const GaussianRsampleParams& p) {
  return split_vectors(type, p, {&p.mean, &p.scale, &p.prior_mean, &p.prior_scale, &p.z});
}

VectorSplit split_gaussian_rsample(StorageType type, const GaussianRsampleBackwardParams& p) {
  return split_vectors(type, p,
                       {&p.grad_z, &p.mean, &p.scale, &p.prior_mean, &p.prior_scale, &p.grad_mean,
                        &p.grad_scale, &p.grad_prior_mean, &p.grad_prior_scale});
}

cudaError_t launch_gaussian_rsample(StorageType type, const GaussianRsampleParams& p,
                                    const VectorSplit& split, double* partial, cudaStream_t stream) {
  return dispatch_storage(
      type, [&](auto zero) { return launch_forward<decltype(zero)>(p, split, partial, stream); });
}

cudaError_t launch_gaussian_rsample_backward(StorageType type, const GaussianRsampleBackwardParams& p,
                                             const VectorSplit& split, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) { return launch_backward<decltype(zero)>(p, split, stream); });
}

cudaError_t launch_gaussian_noise(StorageType type, const NoiseParams& p, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    return launch_random<NormalNumbers, decltype(zero)>(p.key, p.count, p.out, stream);
  });
}

}  // namespace flowops
