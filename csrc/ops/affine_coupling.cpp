#include "ops/affine_coupling.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

std::tuple<at::Tensor, at::Tensor> affine_coupling(const at::Tensor& x, const at::Tensor& params,
                                                   const OptionalTensor& amplitude,
                                                   const OptionalTensor& mask, const OptionalTensor& logdet,
                                                   int64_t start, int64_t scale, int64_t order,
                                                   int64_t layout, bool inverse, double gain, double limit,
                                                   double floor) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::affine_coupling", "")
                             .typed<decltype(affine_coupling)>();
  return op.call(x, params, amplitude, mask, logdet, start, scale, order, layout, inverse, gain, limit,
                 floor);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> affine_coupling_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& amplitude, const OptionalTensor& mask, int64_t start,
    int64_t scale, int64_t order, int64_t layout, bool inverse, double gain, double limit, double floor) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::affine_coupling_backward", "")
                             .typed<decltype(affine_coupling_backward)>();
  return op.call(grad_z, grad_logdet, saved, params, amplitude, mask, start, scale, order, layout, inverse,
                 gain, limit, floor);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def(
      "affine_coupling(Tensor x, Tensor params, Tensor? amplitude, Tensor? mask, Tensor? logdet, int start, "
      "int scale, int order, int layout, bool inverse, float gain=1, float limit=1, float floor=0) "
      "-> (Tensor, Tensor)");
  m.def(
      "affine_coupling_backward(Tensor grad_z, Tensor grad_logdet, Tensor saved, Tensor params, "
      "Tensor? amplitude, Tensor? mask, int start, int scale, int order, int layout, bool inverse, "
      "float gain=1, float limit=1, float floor=0) "
      "-> (Tensor, Tensor, Tensor)");
}

}  // namespace flowops
