#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/wants_graph.h"
#include "ops/logistic_mixture_log_prob.h"

namespace flowops {
namespace logistic_mixture_log_prob_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The op composed of differentiable ones, (B,), for gradients of gradients.
Tensor composed(const Tensor& x, const Tensor& params, int64_t levels, double min_log_scale) {
  const int64_t batch = x.size(0), colours = x.size(1), pixels = pixel_count(x);
  const int64_t each = mixture_parameters(colours), components = params.size(1) / each;
  const auto wide = accumulation_type(params.scalar_type());
  const double half = 1.0 / double(levels - 1);
  const Tensor x_wide = x.to(wide).reshape({batch, colours, 1, pixels}), value = x_wide * (2 * half) - 1;
  const Tensor raw = params.to(wide).reshape({batch, params.size(1), pixels});
  const Tensor logits = raw.narrow(1, 0, components);
  const Tensor kinds = raw.narrow(1, components, (each - 1) * components)
                           .reshape({batch, colours, (each - 1) / colours, components, pixels});
  Tensor mean = kinds.select(2, 0);
  const Tensor log_scale = kinds.select(2, 1).clamp_min(min_log_scale);
  if (colours == 3) {
    const Tensor c = kinds.select(2, 2).tanh(), first = value.select(1, 0), second = value.select(1, 1);
    const Tensor green = c.select(1, 0) * first, blue = c.select(1, 1) * first + c.select(1, 2) * second;
    mean = mean + at::stack({at::zeros_like(green), green, blue}, 1);
  }
  const Tensor inverse = (-log_scale).exp(), distance = value - mean, zero = at::zeros_like(distance);
  const Tensor has_lower = (x_wide > 0).expand_as(mean), has_upper = (x_wide < levels - 1).expand_as(mean);
  const Tensor upper = at::where(has_upper, at::log_sigmoid(inverse * (distance + half)), zero);
  const Tensor lower = at::where(has_lower, at::log_sigmoid(-inverse * (distance - half)), zero);
  // log(1 - exp(-w)), w = 2 half inverse, which may underflow.
  const Tensor w = (2 * half * inverse).clamp_min(1e-30);
  const Tensor width = std::log(2 * half) - log_scale + (-at::expm1(-w) / w).log();
  const Tensor mass = upper + lower + at::where(has_lower.logical_and(has_upper), width, zero);
  const Tensor joint = at::logsumexp(logits + mass.sum(1), 1), prior = at::logsumexp(logits, 1);
  return (joint - prior).sum(1);
}

class LogisticMixtureLogProb : public torch::autograd::Function<LogisticMixtureLogProb> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& params, int64_t levels,
                        double min_log_scale) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, params});
    ctx->saved_data["levels"] = levels;
    ctx->saved_data["min_log_scale"] = min_log_scale;
    return logistic_mixture_log_prob(x, params, levels, min_log_scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &params = saved[1];
    const int64_t levels = ctx->saved_data["levels"].toInt();
    const double min_log_scale = ctx->saved_data["min_log_scale"].toDouble();
    if (!ctx->needs_input_grad(1)) return {Tensor(), Tensor(), Tensor(), Tensor()};
    if (!at::GradMode::is_enabled()) {
      return {Tensor(), logistic_mixture_log_prob_backward(grads[0], x, params, levels, min_log_scale),
              Tensor(), Tensor()};
    }
    const auto composed_grads =
        torch::autograd::grad({composed(x.detach(), params, levels, min_log_scale)}, {params}, {grads[0]},
                              /*retain_graph=*/true, /*create_graph=*/true);
    return {Tensor(), composed_grads[0], Tensor(), Tensor()};
  }
};

}  // namespace logistic_mixture_log_prob_rule

at::Tensor logistic_mixture_log_prob_autograd(const at::Tensor& x, const at::Tensor& params, int64_t levels,
                                              double min_log_scale) {
  if (!wants_graph(x, params)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return logistic_mixture_log_prob(x, params, levels, min_log_scale);
  }
  return logistic_mixture_log_prob_rule::LogisticMixtureLogProb::apply(x, params, levels, min_log_scale);
}

}  // namespace flowops
