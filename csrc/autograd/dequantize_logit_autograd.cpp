#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/optional.h"
#include "autograd/wants_graph.h"
#include "math/dequantize_logit.h"
#include "ops/dequantize_logit.h"

namespace flowops {
namespace dequantize_logit_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The gradient of csrc/math/dequantize_logit.h composed of differentiable ops, for gradients of gradients.
Tensor composed_backward(const Tensor& grad_z, const Tensor& grad_logdet, const Tensor& x, const Tensor& key,
                         int64_t levels, double alpha, bool inverse) {
  const auto type = x.scalar_type(), wide = accumulation_type(type);
  std::vector<int64_t> per_sample(x.dim(), 1);
  per_sample[0] = x.size(0);
  const Tensor g = grad_z.to(wide), h = grad_logdet.view(per_sample);
  const LogitMap<double> map(alpha, static_cast<double>(levels));
  Tensor t = x.to(wide);
  if (inverse) {
    const Tensor lower = t.sigmoid(), upper = (-t).sigmoid();
    return (g * lower * upper / map.slope + h * (upper - lower)).to(type);
  }
  if (key.defined()) {
    const double most =
        wide == at::kFloat ? LogitMap<float>(alpha, static_cast<double>(levels)).most : map.most;
    t = t + uniform_noise(key, x.sizes(), wide).clamp_max(most);
  }
  const Tensor lower = t * map.slope + alpha, upper = (map.levels - t) * map.slope + alpha;
  return (map.slope * (g + h * (lower - upper)) / (lower * upper)).to(type);
}

class DequantizeLogit : public torch::autograd::Function<DequantizeLogit> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& key,
                               const OptionalTensor& logdet, int64_t levels, double alpha, bool inverse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [z, total] = dequantize_logit(x, key, logdet, levels, alpha, inverse);
    ctx->save_for_backward({x, key.value_or(Tensor())});
    ctx->saved_data["levels"] = levels;
    ctx->saved_data["alpha"] = alpha;
    ctx->saved_data["inverse"] = inverse;
    ctx->saved_data["logdet"] = logdet.has_value();
    return {z, total};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &key = saved[1];
    const int64_t levels = ctx->saved_data["levels"].toInt();
    const double alpha = ctx->saved_data["alpha"].toDouble();
    const bool inverse = ctx->saved_data["inverse"].toBool();
    Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_x = at::GradMode::is_enabled()
                   ? composed_backward(grads[0], grads[1], x, key, levels, alpha, inverse)
                   : dequantize_logit_backward(grads[0], grads[1], x, optional(key), levels, alpha, inverse);
    }
    const Tensor grad_logdet = ctx->saved_data["logdet"].toBool() ? grads[1] : Tensor();
    return {grad_x, Tensor(), grad_logdet, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace dequantize_logit_rule

std::tuple<at::Tensor, at::Tensor> dequantize_logit_autograd(const at::Tensor& x, const OptionalTensor& key,
                                                             const OptionalTensor& logdet, int64_t levels,
                                                             double alpha, bool inverse) {
  if (!wants_graph(x, logdet)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return dequantize_logit(x, key, logdet, levels, alpha, inverse);
  }
  const auto result = dequantize_logit_rule::DequantizeLogit::apply(x, key, logdet, levels, alpha, inverse);
  return {result[0], result[1]};
}

}  // namespace flowops
