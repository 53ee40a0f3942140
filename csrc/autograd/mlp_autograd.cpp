#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/wants_graph.h"
#include "ops/mlp.h"

namespace flowops {
namespace mlp_rule {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// p_0, ..., p_{n-2} of ops/mlp.h, in differentiable ops.
variable_list hidden_of(const Tensor& x, TensorList weight, TensorList bias, bool residual) {
  variable_list hidden;
  for (size_t i = 0; i + 1 < weight.size(); ++i) {
    hidden.push_back(at::linear(i == 0 ? x : hidden.back().relu(), weight[i], bias[i]));
    if (has_skip(i, residual)) hidden.back() = hidden.back() + hidden[i - 2];
  }
  return hidden;
}

// The gradients composed of differentiable ops, for gradients of gradients. The masks of the activations are
// constant where they have a derivative.
variable_list composed_backward(const Tensor& grad_out, const Tensor& x, TensorList weight, TensorList bias,
                                bool residual) {
  const size_t layers = weight.size();
  const variable_list hidden = hidden_of(x, weight, bias, residual);
  variable_list grads(1 + 2 * layers), grad_hidden(layers);
  grad_hidden.back() = grad_out;
  for (size_t i = layers; i-- > 0;) {
    const Tensor& g = grad_hidden[i];
    grads[1 + i] = g.t().mm(i == 0 ? x : hidden[i - 1].relu());
    grads[1 + layers + i] = g.sum(0);
    const Tensor before = g.mm(weight[i]);
    if (i == 0) {
      grads[0] = before;
    } else {
      grad_hidden[i - 1] = before.masked_fill(hidden[i - 1] <= 0, 0);
      if (has_skip(i + 1, residual) && i + 1 < layers) {
        grad_hidden[i - 1] = grad_hidden[i - 1] + grad_hidden[i + 1];
      }
    }
  }
  return grads;
}

class Mlp : public torch::autograd::Function<Mlp> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, TensorList weight, TensorList bias,
                               bool residual) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, hidden] = mlp(x, weight, bias, residual, /*keep_hidden=*/true);
    variable_list saved{x, hidden};
    saved.insert(saved.end(), weight.begin(), weight.end());
    saved.insert(saved.end(), bias.begin(), bias.end());
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable({hidden});
    ctx->saved_data["residual"] = residual;
    return {out, hidden};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& incoming) {
    const auto saved = ctx->get_saved_variables();
    const bool residual = ctx->saved_data["residual"].toBool();
    const size_t layers = (saved.size() - 2) / 2;
    const Tensor &x = saved[0], &hidden = saved[1];
    const TensorList all(saved), weight = all.slice(2, layers), bias = all.slice(2 + layers, layers);
    variable_list grads;
    if (at::GradMode::is_enabled()) {
      grads = composed_backward(incoming[0], x, weight, bias, residual);
    } else {
      auto [grad_x, grad_weight, grad_bias] = mlp_backward(incoming[0], x, hidden, weight, residual);
      grads.push_back(grad_x);
      grads.insert(grads.end(), grad_weight.begin(), grad_weight.end());
      grads.insert(grads.end(), grad_bias.begin(), grad_bias.end());
    }
    grads.emplace_back();  // `residual` has none
    return grads;
  }
};

}  // namespace mlp_rule

std::tuple<at::Tensor, at::Tensor> mlp_autograd(const at::Tensor& x, at::TensorList weight,
                                                at::TensorList bias, bool residual, bool keep_hidden) {
  if (!wants_graph(x, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return mlp(x, weight, bias, residual, keep_hidden);
  }
  const auto result = mlp_rule::Mlp::apply(x, weight, bias, residual);
  return {result[0], result[1]};
}

}  // namespace flowops
