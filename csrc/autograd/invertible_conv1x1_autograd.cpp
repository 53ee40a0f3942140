#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/wants_graph.h"
#include "ops/invertible_conv1x1.h"

namespace flowops {
namespace invertible_conv1x1_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// (channels, batch * pixels) in the accumulation type.
Tensor channel_rows(const Tensor& x) {
  return x.to(accumulation_type(x.scalar_type())).transpose(0, 1).flatten(1);
}

class InvertibleConv1x1 : public torch::autograd::Function<InvertibleConv1x1> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const std::optional<Tensor>& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bias"] = bias.has_value();
    return invertible_conv1x1(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &g = grads[0], &x = saved[0], &weight = saved[1];
    const bool wants_x = ctx->needs_input_grad(0), wants_weight = ctx->needs_input_grad(1);
    const bool wants_bias = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    Tensor grad_x, grad_weight, grad_bias;
    if (at::GradMode::is_enabled()) {
      const auto type = weight.scalar_type();
      const Tensor rows = wants_weight || wants_bias ? channel_rows(g) : Tensor();
      if (wants_x) grad_x = invertible_conv1x1(g, weight.t(), std::nullopt);
      if (wants_weight) grad_weight = at::matmul(rows, channel_rows(x).t()).to(type);
      if (wants_bias) grad_bias = rows.sum(1).to(type);
    } else {
      std::tie(grad_x, grad_weight, grad_bias) =
          invertible_conv1x1_backward(g, x, weight, wants_x, wants_weight, wants_bias);
    }
    return {wants_x ? grad_x : Tensor(), wants_weight ? grad_weight : Tensor(),
            wants_bias ? grad_bias : Tensor()};
  }
};

}  // namespace invertible_conv1x1_rule

at::Tensor invertible_conv1x1_autograd(const at::Tensor& x, const at::Tensor& weight,
                                       const OptionalTensor& bias) {
  if (!wants_graph(x, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return invertible_conv1x1(x, weight, bias);
  }
  return invertible_conv1x1_rule::InvertibleConv1x1::apply(x, weight, bias);
}

}  // namespace flowops
