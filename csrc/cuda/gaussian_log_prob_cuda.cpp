#include "common/cuda_host.h"
#include "cuda/gaussian_log_prob_launch.h"
#include "ops/gaussian_log_prob.h"

namespace flowops {

at::Tensor gaussian_log_prob_cuda(const at::Tensor& x, const OptionalTensor& mean,
                                  const OptionalTensor& log_scale, const OptionalTensor& params) {
  check_gaussian_log_prob_inputs(x, mean, log_scale, params);
  const DeviceGuard guard(x);
  const auto call = prepare_gaussian_log_prob(x, mean, log_scale, params);
  if (x.size(0) == 0) return call.log_prob;
  for (const auto& tensor : {call.x, call.mean, call.log_scale, call.params}) {
    if (tensor.defined()) check_sample_span(kGaussianLogProb, tensor);
  }
  const auto type = storage_type(x.scalar_type());
  const auto split = split_gaussian_log_prob(type, call.p);
  const auto partial = x.new_empty({split.samples.chunks > 1 ? x.size(0) * split.samples.chunks : 0},
                                   x.options().dtype(at::kDouble));
  check_launch(
      launch_gaussian_log_prob(type, call.p, split, partial.mutable_data_ptr<double>(), current_stream()),
      kGaussianLogProb);
  return call.log_prob;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_log_prob_backward_cuda(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
    const OptionalTensor& params, bool wants_x, bool wants_mean, bool wants_log_scale, bool wants_params) {
  check_gaussian_log_prob_backward_inputs(grad, x, mean, log_scale, params);
  const DeviceGuard guard(x);
  const auto call = prepare_gaussian_log_prob_backward(grad, x, mean, log_scale, params, wants_x, wants_mean,
                                                       wants_log_scale, wants_params);
  if (x.numel() > 0) {
    for (const auto& tensor : {call.x, call.mean, call.log_scale, call.params}) {
      if (tensor.defined()) check_sample_span(kGaussianLogProb, tensor);
    }
    const auto type = storage_type(x.scalar_type());
    const auto split = split_gaussian_log_prob(type, call.p);
    check_launch(launch_gaussian_log_prob_backward(type, call.p, split, current_stream()), kGaussianLogProb);
  }
  return {call.grad_x, call.grad_mean, call.grad_log_scale, call.grad_params};
}

}  // namespace flowops
