
#include "common/cuda_host.h"
#include "cuda/actnorm_launch.h"
#include "ops/actnorm.h"

namespace flowops {
namespace {

template <typename Params>
ChannelSplit split_of(const Params& p) {
  return split_channels(p.batch, p.channels, p.pixels, p.inner_channels);
}

// `values` doubles for every channel and split.
at::Tensor partial_sums(const ChannelSplit& split, int64_t values, const at::Tensor& like) {
  return like.new_empty({int64_t{split.channels} * split.splits * values}, at::kDouble);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> actnorm_cuda(const at::Tensor& x, const at::Tensor& bias,
                                                const at::Tensor& log_scale, const OptionalTensor& logdet,
                                                bool inverse) {
  check_actnorm_inputs(x, bias, log_scale, logdet);
  const DeviceGuard guard(x);
  const auto call = prepare_actnorm(x, bias, log_scale, logdet, inverse);
  if (x.size(0) > 0) {
    check_sample_span(kActnorm, call.x);
    check_launch(launch_actnorm(storage_type(x.scalar_type()), call.p, current_stream()), kActnorm);
  }
  return {call.z, call.logdet};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> actnorm_backward_cuda(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& x, const at::Tensor& bias,
    const at::Tensor& log_scale, bool inverse) {
  check_actnorm_backward_inputs(grad_z, grad_logdet, x, bias, log_scale);
  const DeviceGuard guard(x);
  const auto call = prepare_actnorm_backward(grad_z, grad_logdet, x, bias, log_scale, inverse);
  if (x.size(1) > 0) {
    check_sample_span(kActnorm, call.grad_z);
    check_sample_span(kActnorm, call.x);
    const auto split = split_of(call.p);
    const auto partial = partial_sums(split, 2, x);
    check_launch(launch_actnorm_backward(storage_type(x.scalar_type()), call.p, split,
                                         partial.mutable_data_ptr<double>(), current_stream()),
                 kActnorm);
  }
  return {call.grad_x, call.grad_bias.to(bias.scalar_type()),
          call.grad_log_scale.to(log_scale.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor> actnorm_statistics_cuda(const at::Tensor& x) {
  check_actnorm_statistics_inputs(x);
  const DeviceGuard guard(x);
  const auto call = prepare_actnorm_statistics(x);
  if (x.size(1) > 0) {
    check_sample_span("actnorm_statistics", call.x);
    const auto split = split_of(call.p);
    const auto partial = partial_sums(split, 3, x);
    check_launch(launch_actnorm_statistics(storage_type(x.scalar_type()), call.p, split,
                                           partial.mutable_data_ptr<double>(), current_stream()),
                 "actnorm_statistics");
  }
  return {call.mean, call.std};
}

}  // namespace flowops
