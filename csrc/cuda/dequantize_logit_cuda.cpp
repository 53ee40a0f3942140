#include "common/cuda_host.h"
#include "cuda/dequantize_logit_launch.h"
#include "ops/dequantize_logit.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> dequantize_logit_cuda(const at::Tensor& x, const OptionalTensor& key,
                                                         const OptionalTensor& logdet, int64_t levels,
                                                         double alpha, bool inverse) {
  check_dequantize_logit_inputs(x, key, logdet, levels, alpha, inverse);
  const DeviceGuard guard(x);
  const auto call = prepare_dequantize_logit(x, key, logdet, levels, alpha, inverse);
  if (x.size(0) == 0) return {call.z, call.logdet};
  check_sample_span(kDequantizeLogit, call.x);
  const auto type = storage_type(logit_type(x));
  const auto split = split_dequantize_logit(type, call.p);
  const auto partial = x.new_empty({split.samples.chunks > 1 ? x.size(0) * split.samples.chunks : 0},
                                   x.options().dtype(at::kDouble));
  check_launch(
      launch_dequantize_logit(type, call.p, split, partial.mutable_data_ptr<double>(), current_stream()),
      kDequantizeLogit);
  return {call.z, call.logdet};
}

at::Tensor dequantize_logit_backward_cuda(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                          const at::Tensor& x, const OptionalTensor& key, int64_t levels,
                                          double alpha, bool inverse) {
  check_dequantize_logit_backward_inputs(grad_z, grad_logdet, x, key, levels, alpha, inverse);
  const DeviceGuard guard(x);
  const auto call = prepare_dequantize_logit_backward(grad_z, grad_logdet, x, key, levels, alpha, inverse);
  if (x.numel() > 0) {
    check_sample_span(kDequantizeLogit, call.x);
    check_sample_span(kDequantizeLogit, call.grad_z);
    const auto type = storage_type(x.scalar_type());
    const auto split = split_dequantize_logit(type, call.p);
    check_launch(launch_dequantize_logit_backward(type, call.p, split, current_stream()), kDequantizeLogit);
  }
  return call.grad_x;
}

at::Tensor uniform_noise_cuda(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  check_uniform_noise_inputs(key, dtype);
  const DeviceGuard guard(key);
  const auto words = key.contiguous();
  auto out = key.new_empty(size, key.options().dtype(dtype));
  if (out.numel() > 0) {
    const NoiseParams p{out.numel(), words.const_data_ptr<int64_t>(), out.mutable_data_ptr()};
    check_launch(launch_uniform_noise(storage_type(dtype), p, current_stream()), "rand");
  }
  return out;
}

}  // namespace flowops
