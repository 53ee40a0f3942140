// invertible_conv1x1: contract, checks and operands of the product, shared by the backends.
//
// z = W x + b over the channels of x (B, C, *S); weight (C, C), bias (C,) or none, of the type of x or of the
// accumulation type. No log-det: that of a layer is pixels log|det W|, see ops/invertible_conv1x1_prepare.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/invertible_conv1x1_params.h"

namespace flowops {

at::Tensor invertible_conv1x1(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias);

// Gradients that are not wanted come back with no elements. grad_bias has the type of weight.
std::tuple<at::Tensor, at::Tensor, at::Tensor> invertible_conv1x1_backward(const at::Tensor& grad_z,
                                                                           const at::Tensor& x,
                                                                           const at::Tensor& weight,
                                                                           bool wants_x, bool wants_weight,
                                                                           bool wants_bias);

inline constexpr const char* kInvertibleConv1x1 = "invertible_conv1x1";

inline void check_invertible_conv1x1_inputs(const at::Tensor& x, const at::Tensor& weight,
                                            const OptionalTensor& bias) {
  const char* op = kInvertibleConv1x1;
  check_data(op, "x", x);
  const int64_t channels = x.size(1);
  FLOWOPS_CHECK(op, weight.dim() == 2 && weight.size(0) == channels && weight.size(1) == channels,
                "weight must have shape [", channels, ", ", channels, "] (the channels of x), got ",
                weight.sizes());
  const auto type = weight.scalar_type(), wide = accumulation_type(x.scalar_type());
  FLOWOPS_CHECK(op, type == x.scalar_type() || type == wide, "weight must be ", x.scalar_type(),
                " (like x) or ", wide, ", got ", type);
  check_same_device(op, "weight", weight, x);
  if (!bias.has_value()) return;
  FLOWOPS_CHECK(op, bias->dim() == 1 && bias->size(0) == channels, "bias must have shape [", channels,
                "] (one value a channel of x), got ", bias->sizes());
  FLOWOPS_CHECK(op, bias->scalar_type() == type, "bias must be ", type, " (like weight), got ",
                bias->scalar_type());
  check_same_device(op, "bias", *bias, x);
}

inline void check_invertible_conv1x1_backward_inputs(const at::Tensor& grad_z, const at::Tensor& x,
                                                     const at::Tensor& weight) {
  check_invertible_conv1x1_inputs(x, weight, std::nullopt);
  check_same_dtype(kInvertibleConv1x1, "grad_z", grad_z, x);
  FLOWOPS_CHECK(kInvertibleConv1x1, grad_z.sizes() == x.sizes(), "grad_z must have shape ", x.sizes(),
                ", got ", grad_z.sizes());
}

// Tensors that must live until the kernel has run, beside the params that point into them.
struct InvertibleConv1x1Call {
  at::Tensor x, weight, bias, z;
  InvertibleConv1x1Params p;
};

struct InvertibleConv1x1BackwardCall {
  at::Tensor grad_z, x, weight, grad_x, grad_weight, grad_bias;
  InvertibleConv1x1BackwardParams p;
};

inline InvertibleConv1x1Call prepare_invertible_conv1x1(const at::Tensor& x, const at::Tensor& weight,
                                                        const OptionalTensor& bias) {
  const auto wide = accumulation_type(x.scalar_type());
  InvertibleConv1x1Call call;
  call.x = walkable(x);
  call.weight = weight.to(wide).contiguous();
  if (bias) call.bias = bias->to(wide).contiguous();
  call.z = empty_like_layout(call.x);
  InvertibleConv1x1Params& p = call.p;
  p.batch = x.size(0), p.channels = x.size(1), p.pixels = pixel_count(x);
  p.x = operand(call.x, false);
  p.z = operand(call.z, false);
  p.weight = call.weight.const_data_ptr();
  if (bias) p.bias = call.bias.const_data_ptr();
  return call;
}

inline InvertibleConv1x1BackwardCall prepare_invertible_conv1x1_backward(const at::Tensor& grad_z,
                                                                         const at::Tensor& x,
                                                                         const at::Tensor& weight,
                                                                         bool wants_x, bool wants_weight,
                                                                         bool wants_bias) {
  const auto wide = accumulation_type(x.scalar_type());
  const int64_t channels = x.size(1);
  InvertibleConv1x1BackwardCall call;
  call.grad_z = walkable(grad_z);
  call.x = walkable(x);
  call.weight = weight.to(wide).contiguous();
  call.grad_x = wants_x ? empty_like_layout(call.x) : x.new_empty({0});
  call.grad_weight = wants_weight ? x.new_empty({channels, channels}, wide) : x.new_empty({0}, wide);
  call.grad_bias = x.new_empty({wants_bias ? channels : 0}, wide);
  InvertibleConv1x1BackwardParams& p = call.p;
  p.batch = x.size(0), p.channels = channels, p.pixels = pixel_count(x);
  p.grad_z = operand(call.grad_z, false);
  p.x = operand(call.x, false);
  if (wants_x) p.grad_x = operand(call.grad_x, false);
  p.weight = call.weight.const_data_ptr();
  if (wants_weight) p.grad_weight = call.grad_weight.data_ptr();
  if (wants_bias) p.grad_bias = call.grad_bias.data_ptr();
  return call;
}

}  // namespace flowops
