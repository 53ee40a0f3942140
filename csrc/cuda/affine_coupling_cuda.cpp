
#include "common/cuda_host.h"
#include "cuda/affine_coupling_launch.h"
#include "ops/affine_coupling_operands.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> affine_coupling_cuda(
    const at::Tensor& x, const at::Tensor& params, const OptionalTensor& amplitude,
    const OptionalTensor& mask, const OptionalTensor& logdet, int64_t start, int64_t scale, int64_t order,
    int64_t layout, bool inverse, double gain, double limit, double floor) {
  const CouplingOptions options{start, scale, order, layout, inverse, {gain, limit, floor}};
  check_affine_coupling_inputs(x, params, amplitude, mask, logdet, options);
  const DeviceGuard guard(x);
  const auto call = prepare_affine_coupling(x, params, amplitude, mask, logdet, options);
  if (x.size(0) == 0) return {call.z, call.logdet};
  for (const auto& tensor : {call.x, call.params}) check_sample_span(kAffineCoupling, tensor);
  const auto type = storage_type(x.scalar_type());
  const auto split = split_affine_coupling(type, call.p);
  const auto partial =
      x.new_empty({split.samples.chunks > 1 ? x.size(0) * split.samples.chunks : 0}, at::kDouble);
  check_launch(
      launch_affine_coupling(type, call.p, split, partial.mutable_data_ptr<double>(), current_stream()),
      kAffineCoupling);
  return {call.z, call.logdet};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> affine_coupling_backward_cuda(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& amplitude, const OptionalTensor& mask, int64_t start,
    int64_t scale, int64_t order, int64_t layout, bool inverse, double gain, double limit, double floor) {
  const CouplingOptions options{start, scale, order, layout, inverse, {gain, limit, floor}};
  check_affine_coupling_backward_inputs(grad_z, grad_logdet, saved, params, amplitude, mask, options);
  const DeviceGuard guard(saved);
  const auto call =
      prepare_affine_coupling_backward(grad_z, grad_logdet, saved, params, amplitude, mask, options);
  if (saved.numel() > 0) {
    for (const auto& tensor : {call.grad_z, call.saved, call.params}) {
      check_sample_span(kAffineCoupling, tensor);
    }
    const auto type = storage_type(saved.scalar_type());
    const auto split = split_affine_coupling(type, call.p);
    check_launch(launch_affine_coupling_backward(type, call.p, split, current_stream()), kAffineCoupling);
  }
  return {call.grad_x, call.grad_params, reduce_grad_amplitude(call.grad_amplitude, amplitude, saved)};
}

}  // namespace flowops
