#include "ops/logistic_mixture_log_prob.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

at::Tensor logistic_mixture_log_prob(const at::Tensor& x, const at::Tensor& params, int64_t levels,
                                     double min_log_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::logistic_mixture_log_prob", "")
                             .typed<decltype(logistic_mixture_log_prob)>();
  return op.call(x, params, levels, min_log_scale);
}

at::Tensor logistic_mixture_log_prob_backward(const at::Tensor& grad, const at::Tensor& x,
                                              const at::Tensor& params, int64_t levels,
                                              double min_log_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::logistic_mixture_log_prob_backward", "")
                             .typed<decltype(logistic_mixture_log_prob_backward)>();
  return op.call(grad, x, params, levels, min_log_scale);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def("logistic_mixture_log_prob(Tensor x, Tensor params, int levels, float min_log_scale) -> Tensor");
  m.def(
      "logistic_mixture_log_prob_backward(Tensor grad, Tensor x, Tensor params, int levels, "
      "float min_log_scale) -> Tensor");
}

}  // namespace flowops
