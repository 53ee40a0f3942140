// logistic_mixture_log_prob: contract, checks and operands, shared by the backends.
//
// x (B, C, *S), uint8 or of the type of params, holds values 0, ..., levels - 1 of one or three colours, and
// params (B, P, *S) the K components of each pixel: P = 3 K for one colour, 10 K for three, laid out as
// MixtureLayout says. The log-probability of math/logistic_mixture_log_prob.h, summed over each sample: (B,),
// nats, in the accumulation type. x has no gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/logistic_mixture_log_prob_params.h"

namespace flowops {

at::Tensor logistic_mixture_log_prob(const at::Tensor& x, const at::Tensor& params, int64_t levels,
                                     double min_log_scale);

// Of params.
at::Tensor logistic_mixture_log_prob_backward(const at::Tensor& grad, const at::Tensor& x,
                                              const at::Tensor& params, int64_t levels, double min_log_scale);

inline constexpr const char* kLogisticMixture = "logistic_mixture_log_prob";
// Numbers that one component has.
inline int64_t mixture_parameters(int64_t colours) {
  return colours == 3 ? MixtureLayout<3>::kParameters : MixtureLayout<1>::kParameters;
}

inline void check_logistic_mixture_inputs(const at::Tensor& x, const at::Tensor& params, int64_t levels) {
  check_data(kLogisticMixture, "params", params);
  FLOWOPS_CHECK(kLogisticMixture, x.dim() >= 2 && (x.size(1) == 1 || x.size(1) == 3),
                "x must have shape (batch, 1 or 3, ...), got ", x.sizes());
  FLOWOPS_CHECK(kLogisticMixture, x.scalar_type() == at::kByte || x.scalar_type() == params.scalar_type(),
                "x must be uint8 or ", params.scalar_type(), " (like params), got ", x.scalar_type());
  check_same_device(kLogisticMixture, "params", params, x);
  const int64_t each = mixture_parameters(x.size(1));
  bool fits = params.dim() == x.dim() && params.size(1) > 0 && params.size(1) % each == 0;
  for (int64_t d = 0; fits && d < x.dim(); ++d) fits = d == 1 || params.size(d) == x.size(d);
  FLOWOPS_CHECK(kLogisticMixture, fits, "params must have ", each,
                " channels a component and the other sizes of x, ", x.sizes(), ", got ", params.sizes());
  // Float32 tells so many levels and the edges of their bins apart.
  FLOWOPS_CHECK(kLogisticMixture, levels >= 2 && levels <= 65536, "levels must be 2 to 65536, got ", levels);
}

inline void check_logistic_mixture_backward_inputs(const at::Tensor& grad, const at::Tensor& x,
                                                   const at::Tensor& params, int64_t levels) {
  check_logistic_mixture_inputs(x, params, levels);
  const auto wide = accumulation_type(params.scalar_type());
  FLOWOPS_CHECK(kLogisticMixture, grad.dim() == 1 && grad.size(0) == x.size(0), "grad must have shape [",
                x.size(0), "] (one value a sample), got ", grad.sizes());
  FLOWOPS_CHECK(kLogisticMixture, grad.scalar_type() == wide, "grad must be ", wide, ", got ",
                grad.scalar_type());
  check_same_device(kLogisticMixture, "grad", grad, x);
}

// Tensors that must live until the kernel has run, beside the params that point into them.
struct LogisticMixtureCall {
  at::Tensor x, params, log_prob;
  LogisticMixtureForwardParams p;
};

struct LogisticMixtureBackwardCall {
  at::Tensor grad, x, params, grad_params;
  LogisticMixtureBackwardParams p;
};

namespace detail {

// The channels of a pixel as the several numbers of an element.
inline ParameterOperand channel_operand(const at::Tensor& x) {
  return {operand(x, /*inner_channels=*/false), x.stride(1)};
}

// What forward and backward have in common.
template <typename Call>
void prepare_mixture(Call& call, const at::Tensor& x, const at::Tensor& params, int64_t levels,
                     double min_log_scale) {
  auto& p = call.p;
  call.x = walkable(x), call.params = walkable(params);
  p.batch = x.size(0);
  p.inner = pixel_count(x);
  p.colours = static_cast<int>(x.size(1));
  const int components = static_cast<int>(params.size(1) / mixture_parameters(x.size(1)));
  const double top = static_cast<double>(levels - 1);
  p.form = {components, top, std::log(2 / top), min_log_scale};
  p.bytes = x.scalar_type() == at::kByte;
  p.x = channel_operand(call.x);
  p.params = channel_operand(call.params);
}

}  // namespace detail

inline LogisticMixtureCall prepare_logistic_mixture(const at::Tensor& x, const at::Tensor& params,
                                                    int64_t levels, double min_log_scale) {
  LogisticMixtureCall call;
  detail::prepare_mixture(call, x, params, levels, min_log_scale);
  call.log_prob =
      params.new_empty({x.size(0)}, params.options().dtype(accumulation_type(params.scalar_type())));
  call.p.log_prob = call.log_prob.data_ptr();
  return call;
}

inline LogisticMixtureBackwardCall prepare_logistic_mixture_backward(const at::Tensor& grad,
                                                                     const at::Tensor& x,
                                                                     const at::Tensor& params, int64_t levels,
                                                                     double min_log_scale) {
  LogisticMixtureBackwardCall call;
  detail::prepare_mixture(call, x, params, levels, min_log_scale);
  call.grad = grad.contiguous();
  call.grad_params = empty_like_layout(call.params);
  call.p.grad = call.grad.const_data_ptr();
  call.p.grad_params = detail::channel_operand(call.grad_params);
  return call;
}

}  // namespace flowops
