#include "ops/invertible_conv1x1.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/invertible_conv1x1_prepare.h"

namespace flowops {
namespace {

template <typename Function>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

at::Tensor invertible_conv1x1(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  static const auto op = find<decltype(invertible_conv1x1)>("flowops::invertible_conv1x1");
  return op.call(x, weight, bias);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> invertible_conv1x1_backward(const at::Tensor& grad_z,
                                                                           const at::Tensor& x,
                                                                           const at::Tensor& weight,
                                                                           bool wants_x, bool wants_weight,
                                                                           bool wants_bias) {
  static const auto op = find<decltype(invertible_conv1x1_backward)>("flowops::invertible_conv1x1_backward");
  return op.call(grad_z, x, weight, wants_x, wants_weight, wants_bias);
}

PreparedWeights invertible_conv1x1_lu(at::TensorList lower, at::TensorList upper, at::TensorList log_s,
                                      at::TensorList sign, at::TensorList permutation,
                                      at::TensorList actnorm_bias, at::TensorList actnorm_log_scale,
                                      bool inverse) {
  static const auto op = find<decltype(invertible_conv1x1_lu)>("flowops::invertible_conv1x1_lu");
  return op.call(lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale, inverse);
}

PreparedWeights invertible_conv1x1_full(at::TensorList weight, at::TensorList actnorm_bias,
                                        at::TensorList actnorm_log_scale, bool inverse) {
  static const auto op = find<decltype(invertible_conv1x1_full)>("flowops::invertible_conv1x1_full");
  return op.call(weight, actnorm_bias, actnorm_log_scale, inverse);
}

std::tuple<TensorVector, TensorVector, TensorVector, TensorVector, TensorVector>
invertible_conv1x1_lu_backward(at::TensorList grad_weight, at::TensorList grad_bias,
                               const at::Tensor& grad_logdet, at::TensorList result, at::TensorList lower,
                               at::TensorList upper, at::TensorList log_s, at::TensorList sign,
                               at::TensorList permutation, at::TensorList actnorm_bias,
                               at::TensorList actnorm_log_scale, bool inverse) {
  static const auto op =
      find<decltype(invertible_conv1x1_lu_backward)>("flowops::invertible_conv1x1_lu_backward");
  return op.call(grad_weight, grad_bias, grad_logdet, result, lower, upper, log_s, sign, permutation,
                 actnorm_bias, actnorm_log_scale, inverse);
}

std::tuple<TensorVector, TensorVector, TensorVector> invertible_conv1x1_full_backward(
    at::TensorList grad_weight, at::TensorList grad_bias, const at::Tensor& grad_logdet,
    at::TensorList result, at::TensorList weight, at::TensorList actnorm_bias,
    at::TensorList actnorm_log_scale, bool inverse) {
  static const auto op =
      find<decltype(invertible_conv1x1_full_backward)>("flowops::invertible_conv1x1_full_backward");
  return op.call(grad_weight, grad_bias, grad_logdet, result, weight, actnorm_bias, actnorm_log_scale,
                 inverse);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def("invertible_conv1x1(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "invertible_conv1x1_backward(Tensor grad_z, Tensor x, Tensor weight, bool wants_x, bool wants_weight, "
      "bool wants_bias) -> (Tensor, Tensor, Tensor)");
  m.def(
      "invertible_conv1x1_lu(Tensor[] lower, Tensor[] upper, Tensor[] log_s, Tensor[] sign, "
      "Tensor[] permutation, Tensor[] actnorm_bias, Tensor[] actnorm_log_scale, bool inverse) "
      "-> (Tensor[], Tensor[], Tensor)");
  m.def(
      "invertible_conv1x1_full(Tensor[] weight, Tensor[] actnorm_bias, Tensor[] actnorm_log_scale, "
      "bool inverse) -> (Tensor[], Tensor[], Tensor)");
  m.def(
      "invertible_conv1x1_lu_backward(Tensor[] grad_weight, Tensor[] grad_bias, Tensor grad_logdet, "
      "Tensor[] result, Tensor[] lower, Tensor[] upper, Tensor[] log_s, Tensor[] sign, Tensor[] permutation, "
      "Tensor[] actnorm_bias, Tensor[] actnorm_log_scale, bool inverse) "
      "-> (Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])");
  m.def(
      "invertible_conv1x1_full_backward(Tensor[] grad_weight, Tensor[] grad_bias, Tensor grad_logdet, "
      "Tensor[] result, Tensor[] weight, Tensor[] actnorm_bias, Tensor[] actnorm_log_scale, bool inverse) "
      "-> (Tensor[], Tensor[], Tensor[])");
}

}  // namespace flowops
