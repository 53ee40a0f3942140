// One element of an affine coupling: scale maps, transform and gradient. Torch-free; V is a scalar or a Vec.
//
// Forward, inverse and both orders are one formula,
//   z = (x + shift_in) f + shift_out,   log f = sign log s(raw),
// where the shift t enters first (+-t, before the product) or last, and f is the scale s or its reciprocal:
//   x s + t      : f = s,   shift_out = t        (x + t) s : f = s,   shift_in = t
//   its inverse  : f = 1/s, shift_in = -t        inverse   : f = 1/s, shift_out = -t
// With core = (x + shift_in) f and the upstream gradients g of z and h of sum(log f):
//   dL/dx = g f,   dL/d(shift_in) = g f,   dL/d(shift_out) = g,   dL/d(log s) = sign (g core + h),
// since d core / d(log f) = core. core is z where the shift enters first, else x f: the shift itself is not
// needed, and nothing is recovered by a subtraction that could cancel.
#pragma once

#include "math/scalar.h"

namespace flowops {

// log s = log_sum - log(log_product): a product of factors in [1, 2] costs one log for many elements.
template <typename V>
struct ScaleTerms {
  V value, reciprocal, log_sum, log_product;
  V slope;            // d log s / d raw
  V amplitude_slope;  // d log s / d amplitude
};

// Factors in [1, 2] that a product of the narrowest type, float, holds without overflow.
inline constexpr int kMaxLogFactors = 64;

struct ExpScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(V raw, V) {
    return {exp(raw), exp(-raw), raw, V(1), V(1), V(0)};
  }
};

struct TanhExpScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(V raw, V amplitude) {
    const V t = tanh(raw);
    const V log_scale = amplitude * t;
    return {exp(log_scale), exp(-log_scale), log_scale, V(1), amplitude * (V(1) - t * t), t};
  }
};

// s = sigmoid(u), u = raw + 2. With e = exp(-|u|): log s = min(u, 0) - log(1 + e), which neither overflows
// nor cancels, and 1 - s = s(-u).
struct SigmoidScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(V raw, V) {
    const V u = raw + V(2), zero(0), one(1);
    const V e = exp(negative_abs(u)), sum = one + e;
    const auto positive = u >= zero;
    const V numerator = select(positive, one, e), complement = select(positive, e, one);
    return {
        quotient(numerator, sum), sum / numerator, minimum(u, zero), sum, quotient(complement, sum), zero};
  }
};

// s = 1: only the shift acts.
struct AdditiveScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(V, V) {
    return {V(1), V(1), V(0), V(1), V(0), V(0)};
  }
};

// `shift_first` says where the shift enters: (x + t) f, else x f + t, with t negated in the inverse
// direction.
template <typename V>
FLOWOPS_HOST_DEVICE V affine_coupling_transform(V x, V factor, V shift, bool shift_first, bool inverse) {
  const V t = inverse ? -shift : shift;
  return shift_first ? (x + t) * factor : x * factor + t;
}

template <typename V>
struct AffineCouplingGradient {
  V x, raw, shift, amplitude;
};

// `sign` is -1 for the inverse direction. `saved` is z where the shift enters first, else x.
template <typename V>
FLOWOPS_HOST_DEVICE AffineCouplingGradient<V> affine_coupling_gradient(V grad_z, V grad_logdet, V saved,
                                                                       const ScaleTerms<V>& scale,
                                                                       bool shift_first, bool inverse) {
  const V sign(inverse ? -1 : 1);
  const V factor = inverse ? scale.reciprocal : scale.value;
  const V grad_x = grad_z * factor;
  const V core = shift_first ? saved : saved * factor;
  const V grad_log_scale = sign * (grad_z * core + grad_logdet);
  return {grad_x, grad_log_scale * scale.slope, sign * (shift_first ? grad_x : grad_z),
          grad_log_scale * scale.amplitude_slope};
}

}  // namespace flowops
