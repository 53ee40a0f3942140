#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/wants_graph.h"
#include "ops/actnorm.h"

namespace flowops {
namespace actnorm_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A per-channel vector, shaped to meet x.
Tensor along_channels(const Tensor& parameter, const Tensor& x) {
  std::vector<int64_t> shape(x.dim() - 1, 1);
  shape[0] = -1;
  return parameter.to(accumulation_type(x.scalar_type())).view(shape);
}

Tensor per_channel_sum(const Tensor& values) { return values.transpose(0, 1).flatten(1).sum(1); }

// The gradient of csrc/math/actnorm.h composed of differentiable ops, for gradients of gradients.
std::tuple<Tensor, Tensor, Tensor> composed_backward(const Tensor& grad_z, const Tensor& grad_logdet,
                                                     const Tensor& x, const Tensor& bias,
                                                     const Tensor& log_scale, bool inverse) {
  const auto wide = accumulation_type(x.scalar_type());
  const double sign = inverse ? -1 : 1;
  const Tensor g = grad_z.to(wide), factor = (sign * along_channels(log_scale, x)).exp();
  const Tensor grad_x = g * factor;
  const Tensor shifted = inverse ? x.to(wide) : x.to(wide) + along_channels(bias, x);
  const Tensor grad_bias = per_channel_sum(inverse ? -g : grad_x);
  const Tensor grad_log_scale =
      sign * (per_channel_sum(grad_x * shifted) + grad_logdet.sum() * pixel_count(x));
  return {grad_x.to(x.scalar_type()), grad_bias.to(bias.scalar_type()),
          grad_log_scale.to(log_scale.scalar_type())};
}

class Actnorm : public torch::autograd::Function<Actnorm> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& bias,
                               const Tensor& log_scale, const std::optional<Tensor>& logdet, bool inverse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [z, total] = actnorm(x, bias, log_scale, logdet, inverse);
    ctx->save_for_backward({x, bias, log_scale});
    ctx->saved_data["inverse"] = inverse;
    ctx->saved_data["adds"] = logdet.has_value();
    return {z, total};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const bool inverse = ctx->saved_data["inverse"].toBool();
    const auto run = at::GradMode::is_enabled() ? &composed_backward : &actnorm_backward;
    auto [grad_x, grad_bias, grad_log_scale] = run(grads[0], grads[1], saved[0], saved[1], saved[2], inverse);
    return {grad_x, grad_bias, grad_log_scale, ctx->saved_data["adds"].toBool() ? grads[1] : Tensor(),
            Tensor()};
  }
};

// dL/dx = (dL/dmean + dL/dstd (x - mean) / std) / N for the N values of a channel, in differentiable ops.
class ActnormStatistics : public torch::autograd::Function<ActnormStatistics> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [mean, std] = actnorm_statistics(x);
    ctx->save_for_backward({x, mean, std});
    return {mean, std};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const Tensor deviation = x - along_channels(saved[1], x);
    const Tensor slope = along_channels(grads[1] / saved[2], x);
    const double count = double(x.size(0) * pixel_count(x));
    return {((along_channels(grads[0], x) + slope * deviation) / count).to(x.scalar_type())};
  }
};

}  // namespace actnorm_rule

std::tuple<at::Tensor, at::Tensor> actnorm_autograd(const at::Tensor& x, const at::Tensor& bias,
                                                    const at::Tensor& log_scale, const OptionalTensor& logdet,
                                                    bool inverse) {
  if (!wants_graph(x, bias, log_scale, logdet)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return actnorm(x, bias, log_scale, logdet, inverse);
  }
  const auto result = actnorm_rule::Actnorm::apply(x, bias, log_scale, logdet, inverse);
  return {result[0], result[1]};
}

std::tuple<at::Tensor, at::Tensor> actnorm_statistics_autograd(const at::Tensor& x) {
  const auto result = actnorm_rule::ActnormStatistics::apply(x);
  return {result[0], result[1]};
}

}  // namespace flowops
