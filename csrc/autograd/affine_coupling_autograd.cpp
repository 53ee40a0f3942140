#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/optional.h"
#include "autograd/wants_graph.h"
#include "ops/affine_coupling.h"

namespace flowops {
namespace affine_coupling_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Gradients {
  Tensor x, params, amplitude;
};

// log s, its slope and its derivative with respect to the amplitude, as differentiable tensors.
struct DifferentiableScale {
  Tensor log_scale, slope, amplitude_slope;

  // `amplitude` may be undefined.
  DifferentiableScale(const Tensor& raw, const Tensor& amplitude, const CouplingOptions& options) {
    const auto& [gain, limit, floor] = options.constants;
    const ScaleMap map = options.scale_map();
    if (options.bounded()) {
      bound(gain * raw, amplitude, options);
    } else if (map == ScaleMap::kExp) {
      log_scale = raw;
      slope = at::ones_like(raw);
    } else if (map == ScaleMap::kSoftplus) {
      const Tensor whole = floor - at::log_sigmoid(-raw);
      log_scale = whole.clamp_max(limit).log();
      slope = at::where(whole > limit, at::zeros_like(raw), raw.sigmoid() / whole);
    } else if (map == ScaleMap::kFlooredSigmoid) {
      const Tensor sigmoid = (raw + 2).sigmoid();
      log_scale = (sigmoid + floor).log();
      slope = sigmoid * (-(raw + 2)).sigmoid() / (sigmoid + floor);
    } else {
      const double sign = map == ScaleMap::kReciprocalSigmoid ? -1 : 1;
      log_scale = sign * at::log_sigmoid(raw + 2);
      slope = sign * (-(raw + 2)).sigmoid();
    }
  }

 private:
  void bound(const Tensor& u, const Tensor& amplitude, const CouplingOptions& options) {
    const auto& [gain, limit, floor] = options.constants;
    Tensor derivative;
    switch (options.scale_map()) {
      case ScaleMap::kAtanExp:
        amplitude_slope = u.atan();
        derivative = 1 / (1 + u * u);
        break;
      case ScaleMap::kSoftsignExp: {
        const Tensor weight = 1 / (1 + u.abs());
        amplitude_slope = u * weight;
        derivative = weight * weight;
        break;
      }
      default: amplitude_slope = u.tanh(); derivative = 1 - amplitude_slope * amplitude_slope;
    }
    log_scale = amplitude.defined() ? amplitude * amplitude_slope : limit * amplitude_slope;
    slope = gain * (amplitude.defined() ? amplitude * derivative : limit * derivative);
  }
};

// The raw scales (or the shifts) inside params, as a view.
Tensor part(const Tensor& params, bool of_scale, const CouplingOptions& options) {
  const int64_t n = options.moved(params), step = options.channel_step();
  const int64_t first = options.first_channel(of_scale, n);
  return params.slice(1, first, first + (n - 1) * step + 1, step);
}

Tensor join_params(const Tensor& grad_raw, const Tensor& grad_shift, const CouplingOptions& options) {
  if (!grad_raw.defined()) return grad_shift;
  const Tensor& first = options.scale_leads() ? grad_raw : grad_shift;
  const Tensor& second = options.scale_leads() ? grad_shift : grad_raw;
  if (options.interleaved()) return at::stack({first, second}, 2).flatten(1, 2);
  return at::cat({first, second}, 1);
}

// The gradient of csrc/math/affine_coupling.h composed of differentiable ops, for gradients of gradients.
Gradients composed_backward(const Tensor& grad_z, const Tensor& grad_logdet, const Tensor& saved,
                            const Tensor& params, const Tensor& amplitude, const Tensor& mask,
                            const CouplingOptions& options) {
  const auto wide = accumulation_type(saved.scalar_type());
  const int64_t n = options.moved(params), end = options.start + n;
  const double sign = options.inverse ? -1 : 1;
  const Tensor g = grad_z.narrow(1, options.start, n).to(wide);
  const Tensor shift = part(params, false, options);
  Tensor grad_x = g, grad_raw, grad_shift = sign * g, grad_amplitude;
  if (!options.additive()) {
    const Tensor raw = part(params, true, options).to(wide);
    Tensor a = amplitude.defined() ? amplitude.to(wide) : amplitude;
    if (a.defined() && a.dim() == 1) {
      std::vector<int64_t> shape(raw.dim() - 1, 1);
      shape[0] = n;
      a = a.view(shape);
    }
    const DifferentiableScale scale(raw, a, options);
    const Tensor factor = (sign * scale.log_scale).exp();
    const Tensor held = saved.narrow(1, options.start, n).to(wide);
    std::vector<int64_t> per_sample(raw.dim(), 1);
    per_sample[0] = raw.size(0);
    grad_x = g * factor;
    const Tensor core = options.shift_first() ? held : held * factor;
    Tensor grad_log_scale = sign * (g * core + grad_logdet.view(per_sample));
    if (mask.defined()) grad_log_scale = at::where(mask, at::zeros_like(g), grad_log_scale);
    grad_raw = (grad_log_scale * scale.slope).to(params.scalar_type());
    if (options.shift_first()) grad_shift = sign * grad_x;
    if (a.defined()) {
      grad_amplitude = (grad_log_scale * scale.amplitude_slope)
                           .sum_to_size(a.sizes())
                           .view(amplitude.sizes())
                           .to(amplitude.scalar_type());
    }
  }
  if (mask.defined()) {
    grad_x = at::where(mask, g, grad_x);
    grad_shift = at::where(mask, at::zeros_like(g), grad_shift);
  }
  grad_x = grad_x.to(saved.scalar_type());
  if (n != grad_z.size(1)) {
    grad_x =
        at::cat({grad_z.narrow(1, 0, options.start), grad_x, grad_z.narrow(1, end, grad_z.size(1) - end)}, 1);
  }
  return {grad_x, join_params(grad_raw, grad_shift.to(params.scalar_type()), options), grad_amplitude};
}

class AffineCoupling : public torch::autograd::Function<AffineCoupling> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& params,
                               const OptionalTensor& amplitude, const OptionalTensor& mask,
                               const OptionalTensor& logdet, int64_t start, int64_t scale, int64_t order,
                               int64_t layout, bool inverse, double gain, double limit, double floor) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [z, total] = affine_coupling(x, params, amplitude, mask, logdet, start, scale, order, layout,
                                      inverse, gain, limit, floor);
    const CouplingOptions options{start, scale, order, layout, inverse, {gain, limit, floor}};
    ctx->save_for_backward(
        {options.shift_first() ? z : x, params, amplitude.value_or(Tensor()), mask.value_or(Tensor())});
    ctx->saved_data["options"] = std::vector<int64_t>{start, scale, order, layout, inverse};
    ctx->saved_data["constants"] = std::vector<double>{gain, limit, floor};
    ctx->saved_data["adds"] = logdet.has_value();
    return {z, total};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto o = ctx->saved_data["options"].toIntVector();
    const auto c = ctx->saved_data["constants"].toDoubleVector();
    const CouplingOptions options{o[0], o[1], o[2], o[3], o[4] != 0, {c[0], c[1], c[2]}};
    const Tensor &held = saved[0], &params = saved[1], &amplitude = saved[2], &mask = saved[3];
    Gradients result;
    if (at::GradMode::is_enabled() || options.additive()) {
      result = composed_backward(grads[0], grads[1], held, params, amplitude, mask, options);
    } else {
      std::tie(result.x, result.params, result.amplitude) =
          affine_coupling_backward(grads[0], grads[1], held, params, optional(amplitude), optional(mask),
                                   o[0], o[1], o[2], o[3], o[4], c[0], c[1], c[2]);
      if (!amplitude.defined()) result.amplitude = Tensor();
    }
    const Tensor grad_logdet = ctx->saved_data["adds"].toBool() ? grads[1] : Tensor();
    return {result.x, result.params, result.amplitude, Tensor(), grad_logdet, Tensor(), Tensor(),
            Tensor(), Tensor(),      Tensor(),         Tensor(), Tensor(),    Tensor()};
  }
};

}  // namespace affine_coupling_rule

std::tuple<at::Tensor, at::Tensor> affine_coupling_autograd(
    const at::Tensor& x, const at::Tensor& params, const OptionalTensor& amplitude,
    const OptionalTensor& mask, const OptionalTensor& logdet, int64_t start, int64_t scale, int64_t order,
    int64_t layout, bool inverse, double gain, double limit, double floor) {
  if (!wants_graph(x, params, amplitude, logdet)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return affine_coupling(x, params, amplitude, mask, logdet, start, scale, order, layout, inverse, gain,
                           limit, floor);
  }
  const auto result = affine_coupling_rule::AffineCoupling::apply(
      x, params, amplitude, mask, logdet, start, scale, order, layout, inverse, gain, limit, floor);
  return {result[0], result[1]};
}

}  // namespace flowops
