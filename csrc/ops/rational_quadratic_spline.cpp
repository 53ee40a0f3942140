#include "ops/rational_quadratic_spline.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline(const at::Tensor& x, const at::Tensor& params,
                                                             const OptionalTensor& bounds,
                                                             const OptionalTensor& logdet,
                                                             at::ArrayRef<double> form, int64_t tails,
                                                             bool exp_slope, bool elementwise, bool inverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::rational_quadratic_spline", "")
                             .typed<decltype(rational_quadratic_spline)>();
  return op.call(x, params, bounds, logdet, form, tails, exp_slope, elementwise, inverse);
}

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& bounds, at::ArrayRef<double> form, int64_t tails,
    bool exp_slope, bool inverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::rational_quadratic_spline_backward", "")
                             .typed<decltype(rational_quadratic_spline_backward)>();
  return op.call(grad_z, grad_logdet, saved, params, bounds, form, tails, exp_slope, inverse);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def(
      "rational_quadratic_spline(Tensor x, Tensor params, Tensor? bounds, Tensor? logdet, float[] form, int "
      "tails, "
      "bool exp_slope, bool elementwise, bool inverse) -> (Tensor, Tensor)");
  m.def(
      "rational_quadratic_spline_backward(Tensor grad_z, Tensor grad_logdet, Tensor saved, Tensor params, "
      "Tensor? bounds, float[] form, int tails, bool exp_slope, bool inverse) -> (Tensor, Tensor)");
}

}  // namespace flowops
