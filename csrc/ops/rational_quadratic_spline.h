// rational_quadratic_spline: contract, checks and operands, shared by the backends.
//
// x (B, C, *S); params (B, C, *S, P), raw, with any strides: K logits of widths, K of heights, then the raw
// slopes of the knots, K - 1, K or K + 1 of them with linear, circular and no tails. Returns z like x and
// logdet, nats, in the accumulation type: (B,), or like x where `elementwise`.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cmath>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/rational_quadratic_spline_params.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline(const at::Tensor& x, const at::Tensor& params,
                                                             const OptionalTensor& bounds,
                                                             const OptionalTensor& logdet,
                                                             at::ArrayRef<double> form, int64_t tails,
                                                             bool exp_slope, bool elementwise, bool inverse);

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& bounds, at::ArrayRef<double> form, int64_t tails,
    bool exp_slope, bool inverse);

inline constexpr const char* kSpline = "rational_quadratic_spline";

// The plain arguments of the op. `form` is left, right, bottom, top, min_width, min_height, min_slope, beta,
// clip.
struct SplineOptions {
  at::ArrayRef<double> form;
  int64_t tails;
  bool exp_slope, inverse;

  // Parameters of an element beyond 3 K.
  int64_t extra() const { return tails - 1; }
  int64_t bins(const at::Tensor& params) const { return (params.size(-1) - extra()) / 3; }

  SplineForm<double> spline_form(const at::Tensor& params) const {
    // softplus(edge) = 1 - min_slope, so that the fixed slopes are 1.
    const double beta = form[7], edge = exp_slope ? 0 : std::log(std::expm1(beta * (1 - form[6]))) / beta;
    return {static_cast<int>(bins(params)),
            static_cast<SplineTails>(tails),
            exp_slope,
            form[4],
            form[5],
            form[6],
            beta,
            form[8],
            edge};
  }
};

inline void check_spline_inputs(const at::Tensor& x, const at::Tensor& params, const OptionalTensor& bounds,
                                const SplineOptions& options) {
  const char* op = kSpline;
  check_data(op, "x", x);
  FLOWOPS_CHECK(op, options.form.size() == 9, "form must have 9 numbers, got ", options.form.size());
  FLOWOPS_CHECK(op, options.tails >= 0 && options.tails <= 2, "tails must be 0 to 2, got ", options.tails);
  FLOWOPS_CHECK(op, params.dim() == x.dim() + 1 && params.sizes().slice(0, x.dim()) == x.sizes(),
                "params must have the shape of x, ", x.sizes(), ", and one more dimension, got ",
                params.sizes());
  const int64_t count = params.size(-1), bins = options.bins(params);
  FLOWOPS_CHECK(op, bins >= 1 && count == 3 * bins + options.extra() && bins <= 1024, "params must have 3K",
                options.extra() < 0 ? " - 1"
                : options.extra()   ? " + 1"
                                    : "",
                " values an element with these tails, got ", count);
  check_same_dtype(op, "params", params, x);
  check_same_device(op, "params", params, x);
  FLOWOPS_CHECK(op, options.form[4] >= 0 && options.form[4] * double(bins) < 1,
                "min_width must be at least 0 and below 1 / K, got ", options.form[4], " with K = ", bins);
  FLOWOPS_CHECK(op, options.form[5] >= 0 && options.form[5] * double(bins) < 1,
                "min_height must be at least 0 and below 1 / K, got ", options.form[5], " with K = ", bins);
  FLOWOPS_CHECK(op, options.form[6] >= 0 && options.form[6] < 1,
                "min_slope must be at least 0 and below 1, got ", options.form[6]);
  if (!bounds.has_value()) {
    FLOWOPS_CHECK(op, options.form[0] < options.form[1] && options.form[2] < options.form[3],
                  "bounds must have left < right and bottom < top, got ", options.form.slice(0, 4));
    return;
  }
  FLOWOPS_CHECK(op, bounds->dim() == 2 && bounds->size(0) == 4 && bounds->size(1) == x.size(1),
                "bounds must have shape [4, ", x.size(1), "], got ", bounds->sizes());
  FLOWOPS_CHECK(op, bounds->is_floating_point(), "bounds must be floating-point, got ",
                bounds->scalar_type());
  check_same_device(op, "bounds", *bounds, x);
}

inline void check_spline_logdet(const char* name, const at::Tensor& logdet, const at::Tensor& x,
                                bool elementwise) {
  if (!elementwise) return check_logdet(kSpline, logdet, x);
  FLOWOPS_CHECK(kSpline, logdet.sizes() == x.sizes(), name, " must have shape ", x.sizes(), ", got ",
                logdet.sizes());
  FLOWOPS_CHECK(kSpline, logdet.scalar_type() == accumulation_type(x.scalar_type()), name, " must be ",
                accumulation_type(x.scalar_type()), ", got ", logdet.scalar_type());
  check_same_device(kSpline, name, logdet, x);
}

inline void check_spline_backward_inputs(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                         const at::Tensor& saved, const at::Tensor& params,
                                         const OptionalTensor& bounds, const SplineOptions& options) {
  check_spline_inputs(saved, params, bounds, options);
  check_same_dtype(kSpline, "grad_z", grad_z, saved);
  FLOWOPS_CHECK(kSpline, grad_z.sizes() == saved.sizes(), "grad_z must have shape ", saved.sizes(), ", got ",
                grad_z.sizes());
  check_spline_logdet("grad_logdet", grad_logdet, saved, grad_logdet.dim() != 1);
}

// Tensors that must live until the kernel has run, beside the params that point into them.
struct SplineCall {
  at::Tensor x, params, bounds, z, logdet, logdet_in;
  SplineForwardParams p;
};

struct SplineBackwardCall {
  at::Tensor grad_z, grad_logdet, x, params, bounds, grad_x, grad_params;
  SplineBackwardParams p;
};

namespace detail {

inline ParameterOperand spline_operand(const at::Tensor& params, bool inner_channels) {
  return {operand(params.select(-1, 0), inner_channels), params.stride(-1)};
}

// The parameters as they are, unless their pixels cannot be walked with one stride.
inline at::Tensor walkable_params(const at::Tensor& params) {
  return params.size(-1) > 0 && pixel_stride(params.select(-1, 0)) < 0 ? params.contiguous() : params;
}

// Returns whether channels are the inner axis.
inline bool set_spline(SplineParams& p, const at::Tensor& x, const at::Tensor& params,
                       const OptionalTensor& bounds, at::Tensor& held_bounds, const SplineOptions& options) {
  const bool inner_channels = channels_inner(x);
  p.batch = x.size(0);
  p.outer = inner_channels ? pixel_count(x) : x.size(1);
  p.inner = inner_channels ? x.size(1) : pixel_count(x);
  p.parameters = static_cast<int>(params.size(-1));
  p.inverse = options.inverse;
  p.form = options.spline_form(params);
  for (int i = 0; i < 4; ++i) p.domain[i] = options.form[i];
  if (bounds) {
    held_bounds = bounds->to(accumulation_type(x.scalar_type())).contiguous();
    p.bounds = {held_bounds.data_ptr(), 0, inner_channels ? 0 : 1, inner_channels ? 1 : 0};
    p.bounds_step = held_bounds.stride(0);
  }
  p.x = operand(x, inner_channels);
  p.params = spline_operand(params, inner_channels);
  return inner_channels;
}

}  // namespace detail

inline SplineCall prepare_spline(const at::Tensor& x, const at::Tensor& params, const OptionalTensor& bounds,
                                 const OptionalTensor& logdet, const SplineOptions& options,
                                 bool elementwise) {
  const auto wide = accumulation_type(x.scalar_type());
  SplineCall call;
  call.x = walkable(x);
  call.params = detail::walkable_params(params);
  call.z = empty_like_layout(call.x);
  const bool inner_channels = detail::set_spline(call.p, call.x, call.params, bounds, call.bounds, options);
  call.p.z = operand(call.z, inner_channels);
  call.p.summed = !elementwise;
  if (logdet) call.logdet_in = elementwise ? *logdet : logdet->contiguous();
  if (elementwise) {
    call.logdet = x.new_empty(x.sizes(), wide);
    call.p.logdet = operand(call.logdet, inner_channels);
  } else {
    call.logdet = x.new_empty({x.size(0)}, wide);
    call.p.logdet = {call.logdet.data_ptr(), 1, 0, 0};
    if (logdet) call.p.logdet_in = call.logdet_in.const_data_ptr();
  }
  return call;
}

// The log-det that the op returns: an element-wise one is added here.
inline at::Tensor finish_spline_logdet(const SplineCall& call) {
  return call.p.summed || !call.logdet_in.defined() ? call.logdet : call.logdet.add(call.logdet_in);
}

inline SplineBackwardCall prepare_spline_backward(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                                  const at::Tensor& saved, const at::Tensor& params,
                                                  const OptionalTensor& bounds,
                                                  const SplineOptions& options) {
  SplineBackwardCall call;
  call.x = walkable(saved);
  call.grad_z = walkable(grad_z);
  call.params = detail::walkable_params(params);
  const bool inner_channels = detail::set_spline(call.p, call.x, call.params, bounds, call.bounds, options);
  call.grad_x = empty_like_layout(call.x);
  call.grad_params = call.params.is_non_overlapping_and_dense()
                         ? call.params.new_empty_strided(call.params.sizes(), call.params.strides())
                         : call.params.new_empty(call.params.sizes());
  SplineBackwardParams& p = call.p;
  p.grad_z = operand(call.grad_z, inner_channels);
  p.grad_x = operand(call.grad_x, inner_channels);
  p.grad_params = detail::spline_operand(call.grad_params, inner_channels);
  call.grad_logdet = grad_logdet.dim() == 1 ? grad_logdet : walkable(grad_logdet);
  auto* grad = const_cast<void*>(call.grad_logdet.const_data_ptr());
  p.grad_logdet = grad_logdet.dim() == 1 ? Operand{grad, grad_logdet.stride(0), 0, 0}
                                         : operand(call.grad_logdet, inner_channels);
  return call;
}

}  // namespace flowops
