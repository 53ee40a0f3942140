#include "ops/actnorm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

std::tuple<at::Tensor, at::Tensor> actnorm(const at::Tensor& x, const at::Tensor& bias,
                                           const at::Tensor& log_scale, const OptionalTensor& logdet,
                                           bool inverse) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("flowops::actnorm", "").typed<decltype(actnorm)>();
  return op.call(x, bias, log_scale, logdet, inverse);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> actnorm_backward(const at::Tensor& grad_z,
                                                                const at::Tensor& grad_logdet,
                                                                const at::Tensor& x, const at::Tensor& bias,
                                                                const at::Tensor& log_scale, bool inverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::actnorm_backward", "")
                             .typed<decltype(actnorm_backward)>();
  return op.call(grad_z, grad_logdet, x, bias, log_scale, inverse);
}

std::tuple<at::Tensor, at::Tensor> actnorm_statistics(const at::Tensor& x) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::actnorm_statistics", "")
                             .typed<decltype(actnorm_statistics)>();
  return op.call(x);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def("actnorm(Tensor x, Tensor bias, Tensor log_scale, Tensor? logdet, bool inverse) -> (Tensor, Tensor)");
  m.def(
      "actnorm_backward(Tensor grad_z, Tensor grad_logdet, Tensor x, Tensor bias, Tensor log_scale, "
      "bool inverse) -> (Tensor, Tensor, Tensor)");
  m.def("actnorm_statistics(Tensor x) -> (Tensor, Tensor)");
}

}  // namespace flowops
