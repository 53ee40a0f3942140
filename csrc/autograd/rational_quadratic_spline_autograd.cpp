#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/optional.h"
#include "autograd/wants_graph.h"
#include "ops/rational_quadratic_spline.h"

namespace flowops {
namespace rational_quadratic_spline_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor soft_clipped(const Tensor& raw, double scale) {
  return scale > 0 ? raw / (1 + (raw * scale).abs()) : raw;
}

// Starts of the bins and their sizes, in the unit interval.
std::tuple<Tensor, Tensor> unit_bins(const Tensor& raw, double least, double clip) {
  const int64_t bins = raw.size(-1);
  const Tensor sizes = least + (1 - least * double(bins)) * soft_clipped(raw, 2 * clip).softmax(-1);
  return {sizes.cumsum(-1) - sizes, sizes};
}

Tensor slopes_of(const Tensor& params, const SplineForm<double>& form) {
  const int64_t bins = form.bins;
  Tensor raw = soft_clipped(params.narrow(-1, 2 * bins, params.size(-1) - 2 * bins), form.clip);
  if (form.exp_slope) {
    raw = raw.exp();
  } else {
    const Tensor u = raw * form.beta;
    raw = form.min_slope + (u.clamp_min(0) + (-u.abs()).exp().log1p()) / form.beta;
  }
  if (form.tails == SplineTails::kNone) return raw;
  if (form.tails == SplineTails::kCircular)
    return raw.index_select(-1, [&] {
      Tensor order = raw.new_empty({bins + 1}, at::kLong).fill_(1).cumsum(0) - 1;
      return order.remainder(bins);
    }());
  return at::constant_pad_nd(raw, {1, 1}, 1);
}

// The op composed of differentiable ones, for gradients of gradients.
std::tuple<Tensor, Tensor> composed_spline(const Tensor& input, const Tensor& params,
                                           const OptionalTensor& bounds, const SplineOptions& options) {
  const auto form = options.spline_form(params);
  const Tensor x = input;
  const auto bound = [&](int i) {
    std::vector<int64_t> shape(x.dim() - 1, 1);
    shape[0] = -1;
    return bounds ? bounds->to(x.scalar_type()).select(0, i).view(shape)
                  : x.new_empty({1}).fill_(options.form[i]);
  };
  const Tensor left = bound(0), width = bound(1) - left, bottom = bound(2), height = bound(3) - bottom;
  const auto [x_start, x_size] = unit_bins(params.narrow(-1, 0, form.bins), form.min_width, form.clip);
  const auto [y_start, y_size] =
      unit_bins(params.narrow(-1, form.bins, form.bins), form.min_height, form.clip);
  const Tensor slopes = slopes_of(params, form);
  const Tensor low = options.inverse ? bottom : left, span = options.inverse ? height : width;
  // Not at::minimum, which halves the gradient at the edge itself.
  const Tensor high = options.inverse ? bound(3) : bound(1);
  const Tensor inside = at::where(x < low, low, at::where(x > high, high, x));
  const Tensor position = (inside - low) / span;
  const Tensor starts = options.inverse ? y_start : x_start;
  const Tensor index =
      ((position.unsqueeze(-1) >= starts).sum(-1, /*keepdim=*/true) - 1).clamp_min(0).detach();
  const auto pick = [&](const Tensor& values, int64_t shift = 0) {
    return values.gather(-1, index + shift).squeeze(-1);
  };
  const Tensor x0 = pick(x_start), w = pick(x_size), y0 = pick(y_start), h = pick(y_size);
  const Tensor d0 = pick(slopes), d1 = pick(slopes, 1), s = h * height / (w * width);
  Tensor t;
  if (options.inverse) {
    const Tensor r = (position - y0) / h, b = d0 - r * (d0 + d1 - 2 * s), a = s - b;
    const Tensor q = b.abs() + (b * b + 4 * a * r * s).clamp_min(0).sqrt();
    const Tensor plus = b >= 0;
    t = at::where(plus, 2 * r * s, q) / at::where(plus, q, 2 * a);
  } else {
    t = (position - x0) / w;
  }
  // Exactly 1 at the end of the domain, as in csrc/math, with the gradient of t.
  t = at::where(position >= 1, t + (1 - t).detach(), t);
  const Tensor u = 1 - t, tu = t * u, over = s + (d0 + d1 - 2 * s) * tu;
  const Tensor ratio = s / over;
  const Tensor slope = ratio * ratio * (d1 * t * t + 2 * s * tu + d0 * u * u);
  const Tensor beyond = inside != x;
  Tensor z = options.inverse ? left + width * (x0 + w * t)
                             : bottom + height * (y0 + h * (s * t * t + d0 * tu) / over);
  Tensor logdet = options.inverse ? -slope.log() : slope.log();
  if (form.tails != SplineTails::kNone) {
    return {at::where(beyond, x, z), logdet.masked_fill(beyond, 0)};
  }
  const Tensor further = x - inside;
  z = at::where(beyond, z + (options.inverse ? further / slope : further * slope), z);
  return {z, logdet};
}

// Gradients of x and params, as differentiable tensors.
std::tuple<Tensor, Tensor> composed_backward(const Tensor& grad_z, const Tensor& grad_logdet,
                                             const Tensor& input, const Tensor& params,
                                             const OptionalTensor& bounds, const SplineOptions& options) {
  const auto leaf = [](const Tensor& t) { return t.requires_grad() ? t : t.detach().requires_grad_(); };
  const Tensor x = leaf(input), p = leaf(params);
  const auto wide = accumulation_type(x.scalar_type());
  const auto [z, logdet] = composed_spline(x.to(wide), p.to(wide), bounds, options);
  Tensor upstream = grad_logdet;
  if (grad_logdet.dim() == 1) {
    std::vector<int64_t> shape(x.dim(), 1);
    shape[0] = -1;
    upstream = grad_logdet.view(shape).expand(x.sizes());
  }
  const auto grads = torch::autograd::grad({z, logdet}, {x, p}, {grad_z.to(wide), upstream},
                                           /*retain_graph=*/true, /*create_graph=*/true);
  return {grads[0], grads[1]};
}

class Spline : public torch::autograd::Function<Spline> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& params,
                               const OptionalTensor& bounds, const OptionalTensor& logdet,
                               const std::vector<double>& form, int64_t tails, bool exp_slope,
                               bool elementwise, bool inverse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [z, total] =
        rational_quadratic_spline(x, params, bounds, logdet, form, tails, exp_slope, elementwise, inverse);
    ctx->save_for_backward({x, params, bounds.value_or(Tensor())});
    ctx->saved_data["form"] = form;
    ctx->saved_data["options"] = std::vector<int64_t>{tails, exp_slope, inverse, logdet.has_value()};
    return {z, total};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto form = ctx->saved_data["form"].toDoubleVector();
    const auto o = ctx->saved_data["options"].toIntVector();
    const SplineOptions options{form, o[0], o[1] != 0, o[2] != 0};
    const OptionalTensor bounds = optional(saved[2]);
    const auto [grad_x, grad_params] =
        at::GradMode::is_enabled()
            ? composed_backward(grads[0], grads[1], saved[0], saved[1], bounds, options)
            : rational_quadratic_spline_backward(grads[0], grads[1], saved[0], saved[1], bounds, form, o[0],
                                                 o[1] != 0, o[2] != 0);
    return {grad_x,   grad_params, Tensor(), o[3] != 0 ? grads[1] : Tensor(), Tensor(), Tensor(),
            Tensor(), Tensor(),    Tensor()};
  }
};

}  // namespace rational_quadratic_spline_rule

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_autograd(
    const at::Tensor& x, const at::Tensor& params, const OptionalTensor& bounds, const OptionalTensor& logdet,
    at::ArrayRef<double> form, int64_t tails, bool exp_slope, bool elementwise, bool inverse) {
  if (!wants_graph(x, params, bounds, logdet)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rational_quadratic_spline(x, params, bounds, logdet, form, tails, exp_slope, elementwise, inverse);
  }
  const auto result = rational_quadratic_spline_rule::Spline::apply(x, params, bounds, logdet, form.vec(),
                                                                    tails, exp_slope, elementwise, inverse);
  return {result[0], result[1]};
}

}  // namespace flowops
