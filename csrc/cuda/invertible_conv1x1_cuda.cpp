#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>

#include "common/cuda_host.h"
#include "cuda/invertible_conv1x1_launch.h"
#include "ops/invertible_conv1x1.h"

namespace flowops {
namespace {

using at::Tensor;

bool fits_kernels(const Tensor& x) { return x.size(1) <= most_channels(storage_type(x.scalar_type())); }

// (positions, channels); a view where channels lie next to each other.
Tensor position_rows(const Tensor& x) { return x.movedim(1, -1).reshape({-1, x.size(1)}); }

// The product as a matrix product of the type of x, in the memory order of x.
Tensor multiply(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const auto type = x.scalar_type();
  const Tensor w = weight.to(type);
  if (channels_inner(x)) {
    const auto b = bias ? std::optional<Tensor>(bias->to(type)) : std::nullopt;
    return at::linear(x.movedim(1, -1), w, b).movedim(-1, 1);
  }
  Tensor z = at::matmul(w, x.flatten(2));
  if (bias) z.add_(bias->to(type).unsqueeze(1));
  return z.view(x.sizes());
}

std::tuple<Tensor, Tensor, Tensor> multiply_backward(const Tensor& grad_z, const Tensor& x,
                                                     const Tensor& weight, bool wants_x, bool wants_weight,
                                                     bool wants_bias) {
  const auto wide = accumulation_type(x.scalar_type());
  const auto none = weight.new_empty({0});
  Tensor grad_x = wants_x ? multiply(grad_z, weight.t(), std::nullopt) : x.new_empty({0});
  Tensor grad_weight = none, grad_bias = none;
  // A sum over all positions would not fit the 16-bit types.
  const Tensor rows = wants_weight || wants_bias ? position_rows(grad_z).to(wide) : none;
  if (wants_weight) grad_weight = at::matmul(rows.t(), position_rows(x).to(wide));
  if (wants_bias) grad_bias = rows.sum(0);
  return {grad_x, grad_weight.to(weight.scalar_type()), grad_bias.to(weight.scalar_type())};
}

}  // namespace

Tensor invertible_conv1x1_cuda(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_invertible_conv1x1_inputs(x, weight, bias);
  const DeviceGuard guard(x);
  if (!fits_kernels(x)) return multiply(x, weight, bias);
  const auto call = prepare_invertible_conv1x1(x, weight, bias);
  if (x.numel() > 0) {
    check_sample_span(kInvertibleConv1x1, call.x);
    check_launch(launch_invertible_conv1x1(storage_type(x.scalar_type()), call.p, current_stream()),
                 kInvertibleConv1x1);
  }
  return call.z;
}

std::tuple<Tensor, Tensor, Tensor> invertible_conv1x1_backward_cuda(const Tensor& grad_z, const Tensor& x,
                                                                    const Tensor& weight, bool wants_x,
                                                                    bool wants_weight, bool wants_bias) {
  check_invertible_conv1x1_backward_inputs(grad_z, x, weight);
  const DeviceGuard guard(x);
  if (!fits_kernels(x)) {
    return multiply_backward(grad_z, x, weight, wants_x, wants_weight, wants_bias);
  }
  const auto call = prepare_invertible_conv1x1_backward(grad_z, x, weight, wants_x, wants_weight, wants_bias);
  if (x.size(1) > 0) {
    check_sample_span(kInvertibleConv1x1, call.grad_z);
    check_sample_span(kInvertibleConv1x1, call.x);
    const auto split = split_pixels(call.p.batch, call.p.pixels);
    const bool wants_sums = wants_weight || wants_bias;
    const auto partial = call.weight.new_empty({wants_sums ? split.blocks * x.size(1) * (x.size(1) + 1) : 0});
    check_launch(launch_invertible_conv1x1_backward(storage_type(x.scalar_type()), call.p, split,
                                                    partial.data_ptr(), current_stream()),
                 kInvertibleConv1x1);
  }
  const auto type = weight.scalar_type();
  return {call.grad_x, call.grad_weight.to(type), call.grad_bias.to(type)};
}

}  // namespace flowops
