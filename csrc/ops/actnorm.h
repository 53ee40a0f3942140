// actnorm: contract, checks and operands, shared by the backends.
//
// z = (x + bias) exp(log_scale) per channel of x (B, C, *S), logdet (B,) = logdet_in + pixels sum(log_scale);
// inverse: x = z exp(-log_scale) - bias, with minus the log-det. bias and log_scale (C,) have the type of x
// or the accumulation type; logdet is nats in the accumulation type.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/actnorm_params.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> actnorm(const at::Tensor& x, const at::Tensor& bias,
                                           const at::Tensor& log_scale, const OptionalTensor& logdet,
                                           bool inverse);

// `x` is the op's input in the direction evaluated. All three gradients are always computed.
std::tuple<at::Tensor, at::Tensor, at::Tensor> actnorm_backward(const at::Tensor& grad_z,
                                                                const at::Tensor& grad_logdet,
                                                                const at::Tensor& x, const at::Tensor& bias,
                                                                const at::Tensor& log_scale, bool inverse);

// Mean and population standard deviation per channel, in the accumulation type.
std::tuple<at::Tensor, at::Tensor> actnorm_statistics(const at::Tensor& x);

inline constexpr const char* kActnorm = "actnorm";

// A parameter with one value a channel, of the type of x or wider.
inline void check_per_channel(const char* op, const char* name, const at::Tensor& parameter,
                              const at::Tensor& x) {
  FLOWOPS_CHECK(op, parameter.dim() == 1 && parameter.size(0) == x.size(1), name, " must have shape [",
                x.size(1), "] (one value a channel of x), got ", parameter.sizes());
  const auto type = parameter.scalar_type(), wide = accumulation_type(x.scalar_type());
  FLOWOPS_CHECK(op, type == x.scalar_type() || type == wide, name, " must be ", x.scalar_type(),
                " (like x) or ", wide, ", got ", type);
  check_same_device(op, name, parameter, x);
}

inline void check_actnorm_inputs(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& log_scale,
                                 const OptionalTensor& logdet) {
  check_data(kActnorm, "x", x);
  check_per_channel(kActnorm, "bias", bias, x);
  check_per_channel(kActnorm, "log_scale", log_scale, x);
  if (logdet.has_value()) check_logdet(kActnorm, *logdet, x);
}

inline void check_actnorm_backward_inputs(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                          const at::Tensor& x, const at::Tensor& bias,
                                          const at::Tensor& log_scale) {
  check_actnorm_inputs(x, bias, log_scale, grad_logdet);
  check_same_dtype(kActnorm, "grad_z", grad_z, x);
  FLOWOPS_CHECK(kActnorm, grad_z.sizes() == x.sizes(), "grad_z must have shape ", x.sizes(), ", got ",
                grad_z.sizes());
}

inline void check_actnorm_statistics_inputs(const at::Tensor& x) { check_data("actnorm_statistics", "x", x); }

// Tensors that must live until the kernel has run, beside the params that point into them.
struct ActnormCall {
  at::Tensor x, bias, log_scale, logdet_in, z, logdet;
  ActnormParams p;
};

struct ActnormBackwardCall {
  at::Tensor grad_z, x, bias, log_scale, grad_logdet, grad_x, grad_bias, grad_log_scale;
  ActnormBackwardParams p;
};

struct ActnormStatisticsCall {
  at::Tensor x, mean, std;
  ActnormStatisticsParams p;
};

template <typename Params>
bool set_actnorm_geometry(Params& p, const at::Tensor& x) {
  p.batch = x.size(0), p.channels = x.size(1), p.pixels = pixel_count(x);
  return p.inner_channels = channels_inner(x);
}

inline ActnormCall prepare_actnorm(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& log_scale,
                                   const OptionalTensor& logdet, bool inverse) {
  const auto wide = accumulation_type(x.scalar_type());
  ActnormCall call;
  call.x = walkable(x);
  call.bias = bias.to(wide).contiguous();
  call.log_scale = log_scale.to(wide).contiguous();
  call.z = empty_like_layout(call.x);
  call.logdet = x.new_empty({x.size(0)}, wide);
  ActnormParams& p = call.p;
  const bool inner_channels = set_actnorm_geometry(p, call.x);
  p.inverse = inverse;
  p.x = operand(call.x, inner_channels);
  p.z = operand(call.z, inner_channels);
  p.bias = call.bias.const_data_ptr();
  p.log_scale = call.log_scale.const_data_ptr();
  if (logdet) call.logdet_in = logdet->contiguous(), p.logdet_in = call.logdet_in.const_data_ptr();
  p.logdet = call.logdet.data_ptr();
  return call;
}

inline ActnormBackwardCall prepare_actnorm_backward(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                                    const at::Tensor& x, const at::Tensor& bias,
                                                    const at::Tensor& log_scale, bool inverse) {
  const auto wide = accumulation_type(x.scalar_type());
  ActnormBackwardCall call;
  call.grad_z = walkable(grad_z);
  call.x = walkable(x);
  call.bias = bias.to(wide).contiguous();
  call.log_scale = log_scale.to(wide).contiguous();
  call.grad_logdet = grad_logdet.contiguous();
  call.grad_x = empty_like_layout(call.x);
  call.grad_bias = x.new_empty({x.size(1)}, wide);
  call.grad_log_scale = x.new_empty({x.size(1)}, wide);
  ActnormBackwardParams& p = call.p;
  const bool inner_channels = set_actnorm_geometry(p, call.x);
  p.inverse = inverse;
  p.grad_z = operand(call.grad_z, inner_channels);
  p.x = operand(call.x, inner_channels);
  p.grad_x = operand(call.grad_x, inner_channels);
  p.bias = call.bias.const_data_ptr();
  p.log_scale = call.log_scale.const_data_ptr();
  p.grad_logdet = call.grad_logdet.const_data_ptr();
  p.grad_bias = call.grad_bias.data_ptr();
  p.grad_log_scale = call.grad_log_scale.data_ptr();
  return call;
}

inline ActnormStatisticsCall prepare_actnorm_statistics(const at::Tensor& x) {
  ActnormStatisticsCall call;
  call.x = walkable(x);
  const auto type = accumulation_type(x.scalar_type());
  call.mean = x.new_empty({x.size(1)}, type);
  call.std = x.new_empty({x.size(1)}, type);
  ActnormStatisticsParams& p = call.p;
  p.x = operand(call.x, set_actnorm_geometry(p, call.x));
  p.mean = call.mean.data_ptr();
  p.std = call.std.data_ptr();
  return call;
}

}  // namespace flowops
