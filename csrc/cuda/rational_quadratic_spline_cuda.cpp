#include "common/cuda_host.h"
#include "cuda/rational_quadratic_spline_launch.h"
#include "ops/rational_quadratic_spline.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_cuda(
    const at::Tensor& x, const at::Tensor& params, const OptionalTensor& bounds, const OptionalTensor& logdet,
    at::ArrayRef<double> form, int64_t tails, bool exp_slope, bool elementwise, bool inverse) {
  const SplineOptions options{form, tails, exp_slope, inverse};
  check_spline_inputs(x, params, bounds, options);
  if (logdet) check_spline_logdet("logdet", *logdet, x, elementwise);
  const DeviceGuard guard(x);
  const auto call = prepare_spline(x, params, bounds, logdet, options, elementwise);
  if (x.size(0) > 0) {
    for (const auto& tensor : {call.x, call.params}) check_sample_span(kSpline, tensor);
    const auto split = split_spline(call.p);
    const bool joins = split.chunks > 1 && !elementwise;
    const auto partial = x.new_empty({joins ? x.size(0) * split.chunks : 0}, at::kDouble);
    check_launch(launch_spline(storage_type(x.scalar_type()), call.p, split,
                               partial.mutable_data_ptr<double>(), current_stream()),
                 kSpline);
  }
  return {call.z, finish_spline_logdet(call)};
}

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_backward_cuda(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& bounds, at::ArrayRef<double> form, int64_t tails,
    bool exp_slope, bool inverse) {
  const SplineOptions options{form, tails, exp_slope, inverse};
  check_spline_backward_inputs(grad_z, grad_logdet, saved, params, bounds, options);
  const DeviceGuard guard(saved);
  const auto call = prepare_spline_backward(grad_z, grad_logdet, saved, params, bounds, options);
  if (saved.numel() > 0) {
    for (const auto& tensor : {call.grad_z, call.x, call.params}) check_sample_span(kSpline, tensor);
    check_launch(launch_spline_backward(storage_type(saved.scalar_type()), call.p, split_spline(call.p),
                                        current_stream()),
                 kSpline);
  }
  return {call.grad_x, call.grad_params};
}

}  // namespace flowops
