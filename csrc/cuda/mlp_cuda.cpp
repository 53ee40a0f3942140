#include "common/cuda_host.h"
#include "cuda/mlp_launch.h"
#include "ops/mlp.h"

namespace flowops {
namespace {

MlpRows rows_of(const at::Tensor& x) { return {x.const_data_ptr(), x.stride(0)}; }

// Writes outputs + skip to `hidden`, where they are given, and returns the activation.
at::Tensor activate(const at::Tensor& outputs, const at::Tensor& skip, const at::Tensor& hidden,
                    const at::Tensor& activations) {
  MlpActivationParams p;
  p.rows = outputs.size(0), p.columns = outputs.size(1);
  p.outputs = rows_of(outputs);
  if (skip.defined()) p.skip = rows_of(skip);
  if (hidden.defined()) p.hidden = hidden.data_ptr(), p.hidden_row = hidden.stride(0);
  p.activations = activations.mutable_data_ptr();
  if (outputs.numel() > 0) {
    check_launch(launch_mlp_activation(storage_type(outputs.scalar_type()), p, current_stream()), kMlp);
  }
  return activations;
}

void relu_gradient(const at::Tensor& gradient, const at::Tensor& hidden, const at::Tensor& skip) {
  MlpGradientParams p;
  p.rows = gradient.size(0), p.columns = gradient.size(1);
  p.hidden = rows_of(hidden);
  if (skip.defined()) p.skip = rows_of(skip);
  p.gradient = gradient.mutable_data_ptr();
  if (gradient.numel() > 0) {
    check_launch(launch_mlp_gradient(storage_type(gradient.scalar_type()), p, current_stream()), kMlp);
  }
}

// The columns of `hidden` that hold each layer's outputs.
TensorVector split_hidden(const at::Tensor& hidden, at::TensorList weight) {
  TensorVector parts;
  int64_t column = 0;
  for (size_t i = 0; i + 1 < weight.size(); ++i) {
    parts.push_back(hidden.narrow(1, column, weight[i].size(0)));
    column += weight[i].size(0);
  }
  return parts;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> mlp_cuda(const at::Tensor& x, at::TensorList weight, at::TensorList bias,
                                            bool residual, bool keep_hidden) {
  check_mlp_inputs(x, weight, bias, residual);
  const DeviceGuard guard(x);
  const auto hidden = x.new_empty({x.size(0), hidden_width(weight)});
  const auto parts = split_hidden(hidden, weight);
  at::Tensor activations = x;
  for (size_t i = 0; i + 1 < weight.size(); ++i) {
    const auto outputs = bias[i].addmm(activations, weight[i].t());
    activations = activate(outputs, has_skip(i, residual) ? parts[i - 2] : at::Tensor(), parts[i], outputs);
  }
  const auto out = bias.back().addmm(activations, weight.back().t());
  return {out, keep_hidden ? hidden : x.new_empty({x.size(0), 0})};
}

std::tuple<at::Tensor, TensorVector, TensorVector> mlp_backward_cuda(const at::Tensor& grad_out,
                                                                     const at::Tensor& x,
                                                                     const at::Tensor& hidden,
                                                                     at::TensorList weight, bool residual) {
  check_mlp_backward_inputs(grad_out, x, hidden, weight, residual);
  const DeviceGuard guard(x);
  const size_t layers = weight.size();
  const auto parts = split_hidden(hidden.contiguous(), weight);
  TensorVector gradient(layers), grad_weight(layers), grad_bias(layers);
  gradient.back() = grad_out;
  at::Tensor grad_x;
  for (size_t i = layers; i-- > 0;) {
    const auto& g = gradient[i];
    const auto inputs =
        i == 0 ? x : activate(parts[i - 1], at::Tensor(), at::Tensor(), x.new_empty(parts[i - 1].sizes()));
    grad_weight[i] = g.t().mm(inputs);
    grad_bias[i] = g.sum(0);
    (i == 0 ? grad_x : gradient[i - 1]) = g.mm(weight[i]);
    if (i > 0) {
      const bool skip = i + 1 < layers && has_skip(i + 1, residual);
      relu_gradient(gradient[i - 1], parts[i - 1], skip ? gradient[i + 1] : at::Tensor());
    }
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace flowops
