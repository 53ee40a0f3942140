#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/optional.h"
#include "autograd/wants_graph.h"
#include "ops/gaussian_log_prob.h"

namespace flowops {
namespace gaussian_log_prob_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The gradient of csrc/math/gaussian_log_prob.h composed of differentiable ops, for gradients of gradients.
variable_list composed_backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                const Tensor& log_scale, const Tensor& params) {
  if (params.defined()) {
    const int64_t n = x.size(1);
    const auto of = composed_backward(grad, x, params.narrow(1, 0, n), params.narrow(1, n, n), Tensor());
    return {of[0], Tensor(), Tensor(), at::cat({of[1], of[2]}, 1)};
  }
  const auto type = x.scalar_type(), wide = accumulation_type(type);
  std::vector<int64_t> per_sample(x.dim(), 1);
  per_sample[0] = x.size(0);
  const Tensor h = grad.view(per_sample);
  Tensor distance = mean.defined() ? x.to(wide) - mean.to(wide) : x.to(wide);
  Tensor root;
  if (log_scale.defined()) {
    root = (log_scale.to(wide) * -0.5).exp();
    distance = distance * root * root;
  }
  Tensor pull = -h * distance;
  if (root.defined()) pull = pull * root * root;
  return {pull.to(type), mean.defined() ? (-pull).to(type) : Tensor(),
          root.defined() ? (h * (distance * distance - 1)).to(type) : Tensor(), Tensor()};
}

class GaussianLogProb : public torch::autograd::Function<GaussianLogProb> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& mean,
                        const OptionalTensor& log_scale, const OptionalTensor& params) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward(
        {x, mean.value_or(Tensor()), log_scale.value_or(Tensor()), params.value_or(Tensor())});
    return gaussian_log_prob(x, mean, log_scale, params);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &mean = saved[1], &log_scale = saved[2], &params = saved[3];
    if (at::GradMode::is_enabled()) return composed_backward(grads[0], x, mean, log_scale, params);
    size_t edge = 0;  // absent arguments have none
    const auto wants = [&](const Tensor& t) { return t.defined() && ctx->needs_input_grad(edge++); };
    const bool wants_x = wants(x), wants_mean = wants(mean), wants_log_scale = wants(log_scale);
    const bool wants_params = wants(params);
    auto [grad_x, grad_mean, grad_log_scale, grad_params] =
        gaussian_log_prob_backward(grads[0], x, optional(mean), optional(log_scale), optional(params),
                                   wants_x, wants_mean, wants_log_scale, wants_params);
    return {wants_x ? grad_x : Tensor(), wants_mean ? grad_mean : Tensor(),
            wants_log_scale ? grad_log_scale : Tensor(), wants_params ? grad_params : Tensor()};
  }
};

}  // namespace gaussian_log_prob_rule

at::Tensor gaussian_log_prob_autograd(const at::Tensor& x, const OptionalTensor& mean,
                                      const OptionalTensor& log_scale, const OptionalTensor& params) {
  if (!wants_graph(x, mean, log_scale, params)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return gaussian_log_prob(x, mean, log_scale, params);
  }
  return gaussian_log_prob_rule::GaussianLogProb::apply(x, mean, log_scale, params);
}

}  // namespace flowops
