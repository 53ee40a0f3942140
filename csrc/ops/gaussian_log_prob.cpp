#include "ops/gaussian_log_prob.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

at::Tensor gaussian_log_prob(const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
                             const OptionalTensor& params) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::gaussian_log_prob", "")
                             .typed<decltype(gaussian_log_prob)>();
  return op.call(x, mean, log_scale, params);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_log_prob_backward(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
    const OptionalTensor& params, bool wants_x, bool wants_mean, bool wants_log_scale, bool wants_params) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::gaussian_log_prob_backward", "")
                             .typed<decltype(gaussian_log_prob_backward)>();
  return op.call(grad, x, mean, log_scale, params, wants_x, wants_mean, wants_log_scale, wants_params);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def("gaussian_log_prob(Tensor x, Tensor? mean, Tensor? log_scale, Tensor? params) -> Tensor");
  m.def(
      "gaussian_log_prob_backward(Tensor grad, Tensor x, Tensor? mean, Tensor? log_scale, Tensor? params, "
      "bool wants_x, bool wants_mean, bool wants_log_scale, bool wants_params) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace flowops
