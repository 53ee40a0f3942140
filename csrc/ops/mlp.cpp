#include "ops/mlp.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

std::tuple<at::Tensor, at::Tensor> mlp(const at::Tensor& x, at::TensorList weight, at::TensorList bias,
                                       bool residual, bool keep_hidden) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("flowops::mlp", "").typed<decltype(mlp)>();
  return op.call(x, weight, bias, residual, keep_hidden);
}

std::tuple<at::Tensor, TensorVector, TensorVector> mlp_backward(const at::Tensor& grad_out,
                                                                const at::Tensor& x, const at::Tensor& hidden,
                                                                at::TensorList weight, bool residual) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::mlp_backward", "")
                             .typed<decltype(mlp_backward)>();
  return op.call(grad_out, x, hidden, weight, residual);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def("mlp(Tensor x, Tensor[] weight, Tensor[] bias, bool residual, bool keep_hidden) -> (Tensor, Tensor)");
  m.def(
      "mlp_backward(Tensor grad_out, Tensor x, Tensor hidden, Tensor[] weight, bool residual) "
      "-> (Tensor, Tensor[], Tensor[])");
}

}  // namespace flowops
