#include "ops/dequantize_logit.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

std::tuple<at::Tensor, at::Tensor> dequantize_logit(const at::Tensor& x, const OptionalTensor& key,
                                                    const OptionalTensor& logdet, int64_t levels,
                                                    double alpha, bool inverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::dequantize_logit", "")
                             .typed<decltype(dequantize_logit)>();
  return op.call(x, key, logdet, levels, alpha, inverse);
}

at::Tensor dequantize_logit_backward(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                     const at::Tensor& x, const OptionalTensor& key, int64_t levels,
                                     double alpha, bool inverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::dequantize_logit_backward", "")
                             .typed<decltype(dequantize_logit_backward)>();
  return op.call(grad_z, grad_logdet, x, key, levels, alpha, inverse);
}

at::Tensor uniform_noise(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::uniform_noise", "")
                             .typed<at::Tensor(const at::Tensor&, c10::SymIntArrayRef, at::ScalarType)>();
  return op.call(key, c10::fromIntArrayRefSlow(size), dtype);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def(
      "dequantize_logit(Tensor x, Tensor? key, Tensor? logdet, int levels, float alpha, bool inverse) -> "
      "(Tensor, Tensor)");
  m.def(
      "dequantize_logit_backward(Tensor grad_z, Tensor grad_logdet, Tensor x, Tensor? key, int levels, "
      "float alpha, bool inverse) -> Tensor");
  m.def("uniform_noise(Tensor key, SymInt[] size, ScalarType dtype) -> Tensor");
}

}  // namespace flowops
