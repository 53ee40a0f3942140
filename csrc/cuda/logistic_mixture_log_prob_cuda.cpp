#include "common/cuda_host.h"
#include "cuda/logistic_mixture_log_prob_launch.h"
#include "ops/logistic_mixture_log_prob.h"

namespace flowops {

at::Tensor logistic_mixture_log_prob_cuda(const at::Tensor& x, const at::Tensor& params, int64_t levels,
                                          double min_log_scale) {
  check_logistic_mixture_inputs(x, params, levels);
  const DeviceGuard guard(x);
  const auto call = prepare_logistic_mixture(x, params, levels, min_log_scale);
  if (x.size(0) == 0) return call.log_prob;
  for (const auto& tensor : {call.x, call.params}) check_sample_span(kLogisticMixture, tensor);
  const auto split = split_logistic_mixture(call.p);
  const auto partial = params.new_empty({split.chunks > 1 ? x.size(0) * split.chunks : 0},
                                        params.options().dtype(at::kDouble));
  check_launch(launch_logistic_mixture(storage_type(params.scalar_type()), call.p, split,
                                       partial.mutable_data_ptr<double>(), current_stream()),
               kLogisticMixture);
  return call.log_prob;
}

at::Tensor logistic_mixture_log_prob_backward_cuda(const at::Tensor& grad, const at::Tensor& x,
                                                   const at::Tensor& params, int64_t levels,
                                                   double min_log_scale) {
  check_logistic_mixture_backward_inputs(grad, x, params, levels);
  const DeviceGuard guard(x);
  const auto call = prepare_logistic_mixture_backward(grad, x, params, levels, min_log_scale);
  if (x.numel() > 0) {
    for (const auto& tensor : {call.x, call.params}) check_sample_span(kLogisticMixture, tensor);
    check_launch(launch_logistic_mixture_backward(storage_type(params.scalar_type()), call.p,
                                                  split_logistic_mixture(call.p), current_stream()),
                 kLogisticMixture);
  }
  return call.grad_params;
}

}  // namespace flowops
