#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/wants_graph.h"
#include "ops/spectral_norm.h"

namespace flowops {
namespace spectral_norm_rule {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One layer's gradient as math/spectral_norm.h derives it, in differentiable ops: the weight and sigma are
// functions of the parameter, u and v are held fixed.
Tensor composed_backward(const Tensor& grad_result, const Tensor& grad_sigma, const Tensor& weight,
                         const Tensor& u, const Tensor& v, const Tensor& sigma,
                         std::optional<double> coefficient) {
  const auto wide = sigma.scalar_type();
  const Tensor grad = grad_result.to(wide), direction = at::outer(u.to(wide), v.to(wide)).view_as(weight);
  const Tensor product = (grad * weight.to(wide)).sum();
  const Tensor factor = coefficient.value_or(1) / sigma;
  const Tensor normalized = factor * grad + (grad_sigma - product * factor / sigma) * direction;
  if (!coefficient) return normalized.to(weight.scalar_type());
  const Tensor as_it_is = grad + grad_sigma * direction;
  return at::where(sigma <= *coefficient, as_it_is, normalized).to(weight.scalar_type());
}

class SpectralNorm : public torch::autograd::Function<SpectralNorm> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList weight, TensorList u, TensorList v,
                               int64_t n_power_iterations, double eps, std::optional<double> coefficient) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [result, new_u, new_v, sigma] =
        spectral_norm(weight, u, v, n_power_iterations, eps, coefficient);
    variable_list vectors = new_u, saved(weight.begin(), weight.end()), flat = result;
    vectors.insert(vectors.end(), new_v.begin(), new_v.end());
    for (variable_list* list : {&saved, &flat}) {
      list->insert(list->end(), vectors.begin(), vectors.end());
      list->push_back(sigma);
    }
    ctx->mark_non_differentiable(vectors);
    ctx->save_for_backward(saved);
    ctx->saved_data["coefficient"] = coefficient;
    ctx->set_materialize_grads(false);
    return flat;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto coefficient = ctx->saved_data["coefficient"].toOptional<double>();
    const size_t layers = saved.size() / 3;
    const Tensor& sigma = saved.back();
    const TensorList all(saved), weight = all.slice(0, layers), u = all.slice(layers, layers),
                                 v = all.slice(2 * layers, layers);
    TensorVector grad_result(grads.begin(), grads.begin() + layers);
    for (size_t i = 0; i < layers; ++i) {
      if (!grad_result[i].defined()) grad_result[i] = at::zeros_like(weight[i]);
    }
    const Tensor grad_sigma = grads.back().defined() ? grads.back() : at::zeros_like(sigma);
    variable_list result;
    if (at::GradMode::is_enabled()) {
      for (size_t i = 0; i < layers; ++i) {
        result.push_back(
            composed_backward(grad_result[i], grad_sigma[i], weight[i], u[i], v[i], sigma[i], coefficient));
      }
    } else {
      result = spectral_norm_backward(grad_result, grad_sigma, weight, u, v, sigma, coefficient);
    }
    result.resize(3 * layers + 3);  // u, v and the settings have none
    return result;
  }
};

}  // namespace spectral_norm_rule

SpectralNormResult spectral_norm_autograd(at::TensorList weight, at::TensorList u, at::TensorList v,
                                          int64_t n_power_iterations, double eps,
                                          std::optional<double> coefficient) {
  if (!wants_graph(weight)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return spectral_norm(weight, u, v, n_power_iterations, eps, coefficient);
  }
  const auto flat =
      spectral_norm_rule::SpectralNorm::apply(weight, u, v, n_power_iterations, eps, coefficient);
  const size_t layers = weight.size();
  const auto list = [&](size_t i) {
    return TensorVector(flat.begin() + i * layers, flat.begin() + (i + 1) * layers);
  };
  return {list(0), list(1), list(2), flat.back()};
}

}  // namespace flowops
