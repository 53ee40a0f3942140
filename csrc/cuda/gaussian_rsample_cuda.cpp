#include "common/cuda_host.h"
#include "cuda/gaussian_rsample_launch.h"
#include "ops/gaussian_rsample.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> gaussian_rsample_cuda(const OptionalTensor& mean,
                                                         const OptionalTensor& scale, const at::Tensor& key,
                                                         const OptionalTensor& prior_mean,
                                                         const OptionalTensor& prior_scale,
                                                         const OptionalTensor& params, int64_t form,
                                                         bool residual, bool with_kl) {
  const auto q = posterior_of(mean, scale, params);
  check_gaussian_rsample_inputs(q, key, prior_mean, prior_scale, form, residual);
  const DeviceGuard guard(q.mean);
  const auto call = prepare_gaussian_rsample(q, key, prior_mean, prior_scale, form, residual, with_kl);
  if (q.mean.size(0) == 0) return {call.z, call.kl};
  for (const auto& tensor : {call.mean, call.scale, call.prior_mean, call.prior_scale}) {
    if (tensor.defined()) check_sample_span(kGaussianRsample, tensor);
  }
  const auto type = storage_type(q.mean.scalar_type());
  const auto split = split_gaussian_rsample(type, call.p);
  const auto partial =
      q.mean.new_empty({split.samples.chunks > 1 ? q.mean.size(0) * split.samples.chunks : 0},
                       q.mean.options().dtype(at::kDouble));
  check_launch(
      launch_gaussian_rsample(type, call.p, split, partial.mutable_data_ptr<double>(), current_stream()),
      kGaussianRsample);
  return {call.z, call.kl};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_rsample_backward_cuda(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const OptionalTensor& mean,
    const OptionalTensor& scale, const at::Tensor& key, const OptionalTensor& prior_mean,
    const OptionalTensor& prior_scale, const OptionalTensor& params, int64_t form, bool residual,
    bool with_kl) {
  const auto q = posterior_of(mean, scale, params);
  check_gaussian_rsample_backward_inputs(grad_z, grad_kl, q, key, prior_mean, prior_scale, form, residual);
  const DeviceGuard guard(q.mean);
  const auto call = prepare_gaussian_rsample_backward(grad_z, grad_kl, q, key, prior_mean, prior_scale, form,
                                                      residual, with_kl);
  if (q.mean.numel() > 0) {
    for (const auto& tensor : {call.grad_z, call.mean, call.scale, call.prior_mean, call.prior_scale}) {
      if (tensor.defined()) check_sample_span(kGaussianRsample, tensor);
    }
    const auto type = storage_type(q.mean.scalar_type());
    const auto split = split_gaussian_rsample(type, call.p);
    check_launch(launch_gaussian_rsample_backward(type, call.p, split, current_stream()), kGaussianRsample);
  }
  return {call.grad_mean, call.grad_scale, call.grad_prior_mean, call.grad_prior_scale, call.grad_params};
}

at::Tensor gaussian_noise_cuda(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  check_gaussian_noise_inputs(key, dtype);
  const DeviceGuard guard(key);
  const auto words = key.contiguous();
  auto out = key.new_empty(size, key.options().dtype(dtype));
  if (out.numel() > 0) {
    const NoiseParams p{out.numel(), words.const_data_ptr<int64_t>(), out.mutable_data_ptr()};
    check_launch(launch_gaussian_noise(storage_type(dtype), p, current_stream()), "randn");
  }
  return out;
}

}  // namespace flowops
