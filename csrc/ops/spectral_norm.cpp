#include "ops/spectral_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

SpectralNormResult spectral_norm(at::TensorList weight, at::TensorList u, at::TensorList v,
                                 int64_t n_power_iterations, double eps, std::optional<double> coefficient) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::spectral_norm", "")
                             .typed<decltype(spectral_norm)>();
  return op.call(weight, u, v, n_power_iterations, eps, coefficient);
}

TensorVector spectral_norm_backward(at::TensorList grad_result, const at::Tensor& grad_sigma,
                                    at::TensorList weight, at::TensorList u, at::TensorList v,
                                    const at::Tensor& sigma, std::optional<double> coefficient) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::spectral_norm_backward", "")
                             .typed<decltype(spectral_norm_backward)>();
  return op.call(grad_result, grad_sigma, weight, u, v, sigma, coefficient);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  // Any strides will do: Inductor keeps the weights of convolutions in channels_last, and would without
  // this tag copy each one back to the order it has in eager mode, before each call.
  const std::vector<at::Tag> tags = {at::Tag::flexible_layout};
  m.def(
      "spectral_norm(Tensor[] weight, Tensor[] u, Tensor[] v, int n_power_iterations, float eps, "
      "float? coefficient) -> (Tensor[], Tensor[], Tensor[], Tensor)",
      tags);
  m.def(
      "spectral_norm_backward(Tensor[] grad_result, Tensor grad_sigma, Tensor[] weight, Tensor[] u, "
      "Tensor[] v, Tensor sigma, float? coefficient) -> Tensor[]",
      tags);
}

}  // namespace flowops
