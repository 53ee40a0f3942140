#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/optional.h"
#include "autograd/wants_graph.h"
#include "math/gaussian_rsample.h"
#include "ops/gaussian_rsample.h"

namespace flowops {
namespace gaussian_rsample_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Standard deviation of a raw scale with its slope and that of its logarithm, as differentiable tensors.
struct DifferentiableScale {
  Tensor std, slope, log_slope;

  DifferentiableScale(const Tensor& raw, GaussianScaleForm form) {
    switch (form) {
      case GaussianScaleForm::kLogVariance:
        std = (raw * 0.5).exp(), slope = std * 0.5, log_slope = raw.new_full({}, 0.5);
        return;
      case GaussianScaleForm::kLogStd: std = slope = raw.exp(), log_slope = raw.new_ones({}); return;
      case GaussianScaleForm::kStd: std = raw, slope = raw.new_ones({}), log_slope = raw.reciprocal(); return;
      case GaussianScaleForm::kSoftplus:
        std = raw.logaddexp(raw.new_zeros({})), slope = raw.sigmoid();
        // log S = s below, where S may be no normal number.
        log_slope = (slope / std).masked_fill(raw < kSoftplusTail, 1);
        return;
    }
  }
};

struct Gradients {
  Tensor mean, scale, prior_mean, prior_scale, params;
};

// The gradient of csrc/math/gaussian_rsample.h composed of differentiable ops, for gradients of gradients.
Gradients composed_backward(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& mean,
                            const Tensor& scale, const Tensor& key, const Tensor& prior_mean,
                            const Tensor& prior_scale, const Tensor& params, GaussianScaleForm form,
                            bool residual, bool with_kl) {
  if (params.defined()) {
    const int64_t n = params.size(1) / 2;
    const auto of = composed_backward(grad_z, grad_kl, params.narrow(1, 0, n), params.narrow(1, n, n), key,
                                      prior_mean, prior_scale, {}, form, residual, with_kl);
    return {{}, {}, of.prior_mean, of.prior_scale, at::cat({of.mean, of.scale}, 1)};
  }
  const auto type = mean.scalar_type(), wide = accumulation_type(type);
  const Tensor g = grad_z.to(wide), m = mean.to(wide);
  const Tensor noise = gaussian_noise(key, mean.sizes(), wide);
  const DifferentiableScale q(scale.to(wide), form);
  const bool has_prior = prior_mean.defined();
  std::optional<DifferentiableScale> p;
  if (has_prior) p.emplace(prior_scale.to(wide), form);
  Gradients grad{g, g * noise * q.slope, {}, {}, {}};
  if (residual) {
    grad = {g, grad.scale * p->std, g, g * noise * q.std * p->slope, {}};
  }
  if (with_kl) {
    std::vector<int64_t> per_sample(mean.dim(), 1);
    per_sample[0] = mean.size(0);
    const Tensor h = grad_kl.view(per_sample);
    const Tensor distance = !has_prior ? m : (residual ? m : m - prior_mean.to(wide)) / p->std;
    const Tensor ratio = has_prior && !residual ? q.std / p->std : q.std;
    const Tensor variance = ratio * ratio, squared = distance * distance;
    const Tensor toward = has_prior ? h * distance / p->std : h * distance;
    grad.mean = grad.mean + toward;
    grad.scale = grad.scale + h * (variance - 1) * q.log_slope;
    if (has_prior && residual) {
      grad.prior_scale = grad.prior_scale - h * squared * p->log_slope;
    } else if (has_prior) {
      grad.prior_mean = -toward;
      grad.prior_scale = -h * (squared + variance - 1) * p->log_slope;
    }
  }
  for (Tensor* t : {&grad.mean, &grad.scale, &grad.prior_mean, &grad.prior_scale}) {
    if (t->defined()) *t = t->to(type);
  }
  return grad;
}

class GaussianRsample : public torch::autograd::Function<GaussianRsample> {
 public:
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& mean, const OptionalTensor& scale,
                               const Tensor& key, const OptionalTensor& prior_mean,
                               const OptionalTensor& prior_scale, const OptionalTensor& params, int64_t form,
                               bool residual, bool with_kl) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [z, kl] =
        gaussian_rsample(mean, scale, key, prior_mean, prior_scale, params, form, residual, with_kl);
    const bool uses_prior = residual || with_kl;
    ctx->save_for_backward({mean.value_or(Tensor()), scale.value_or(Tensor()), key,
                            uses_prior ? prior_mean.value_or(Tensor()) : Tensor(),
                            uses_prior ? prior_scale.value_or(Tensor()) : Tensor(),
                            params.value_or(Tensor())});
    ctx->saved_data["options"] = std::vector<int64_t>{form, residual, with_kl};
    if (!with_kl) ctx->mark_non_differentiable({kl});
    return {z, kl};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto options = ctx->saved_data["options"].toIntVector();
    const int64_t form = options[0];
    const bool residual = options[1] != 0, with_kl = options[2] != 0;
    const Tensor &mean = saved[0], &scale = saved[1], &key = saved[2], &params = saved[5];
    Gradients grad;
    if (at::GradMode::is_enabled()) {
      grad = composed_backward(grads[0], grads[1], mean, scale, key, saved[3], saved[4], params,
                               static_cast<GaussianScaleForm>(form), residual, with_kl);
    } else {
      std::tie(grad.mean, grad.scale, grad.prior_mean, grad.prior_scale, grad.params) =
          gaussian_rsample_backward(grads[0], grads[1], optional(mean), optional(scale), key,
                                    optional(saved[3]), optional(saved[4]), optional(params), form, residual,
                                    with_kl);
      if (!saved[3].defined()) grad.prior_mean = grad.prior_scale = Tensor();
      if (params.defined()) {
        grad.mean = grad.scale = Tensor();
      } else {
        grad.params = Tensor();
      }
    }
    return {grad.mean,   grad.scale, Tensor(), grad.prior_mean, grad.prior_scale,
            grad.params, Tensor(),   Tensor(), Tensor()};
  }
};

}  // namespace gaussian_rsample_rule

std::tuple<at::Tensor, at::Tensor> gaussian_rsample_autograd(
    const OptionalTensor& mean, const OptionalTensor& scale, const at::Tensor& key,
    const OptionalTensor& prior_mean, const OptionalTensor& prior_scale, const OptionalTensor& params,
    int64_t form, bool residual, bool with_kl) {
  if (!wants_graph(mean, scale, prior_mean, prior_scale, params)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return gaussian_rsample(mean, scale, key, prior_mean, prior_scale, params, form, residual, with_kl);
  }
  const auto result = gaussian_rsample_rule::GaussianRsample::apply(mean, scale, key, prior_mean, prior_scale,
                                                                    params, form, residual, with_kl);
  return {result[0], result[1]};
}

}  // namespace flowops
