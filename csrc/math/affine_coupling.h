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

#include "math/special.h"

namespace flowops {

// What a scale is made of: the conditioner's raw value, and what the maps below know as a, c and m.
template <typename V>
struct ScaleInput {
  V raw;
  V limit;  // a
  V gain;   // c
  V floor;  // m
};

// log s = log_sum - log(log_product): a product of factors in [1/2, 2] costs one log for many elements.
template <typename V>
struct ScaleTerms {
  V value, reciprocal, log_sum, log_product;
  V slope;        // d log s / d raw
  V limit_slope;  // d log s / d a, where a is learned
};

// Factors in [1/2, 2] that a product of the narrowest type, float, holds.
inline constexpr int kMaxLogFactors = 64;

struct ExpScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>& in) {
    return {exp(in.raw), exp(-in.raw), in.raw, V(1), V(1), V(0)};
  }
};

// log s = a f(c raw): f and its derivative.
template <typename Bounded>
struct BoundedExpScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>& in) {
    V slope;
    const V f = Bounded::evaluate(in.gain * in.raw, slope), log_scale = in.limit * f;
    return {exp(log_scale), exp(-log_scale), log_scale, V(1), in.limit * in.gain * slope, f};
  }
};

struct Tanh {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V evaluate(V u, V& slope) {
    const V t = tanh(u);
    slope = V(1) - t * t;
    return t;
  }
};

struct Atan {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V evaluate(V u, V& slope) {
    slope = V(1) / (V(1) + u * u);  // the square may be infinite
    return atan(u);
  }
};

// u / (1 + |u|)
struct Softsign {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V evaluate(V u, V& slope) {
    const V weight = quotient(V(1), V(1) + abs(u));
    slope = weight * weight;
    return u * weight;
  }
};

using TanhExpScale = BoundedExpScale<Tanh>;
using AtanExpScale = BoundedExpScale<Atan>;
using SoftsignExpScale = BoundedExpScale<Softsign>;

// With e = exp(-|u|) neither sigmoid(u) = numerator / sum nor 1 - sigmoid(u) = complement / sum overflows or
// cancels.
template <typename V>
struct Sigmoid {
  V e, sum, numerator, complement;

  explicit FLOWOPS_HOST_DEVICE Sigmoid(V u) : e(exp(negative_abs(u))), sum(V(1) + e) {
    const auto positive = u >= V(0);
    numerator = select(positive, V(1), e), complement = select(positive, e, V(1));
  }
};

// s = sigmoid(u), u = raw + 2: log s = min(u, 0) - log(1 + e).
struct SigmoidScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>& in) {
    const V u = in.raw + V(2);
    const Sigmoid<V> g(u);
    return {quotient(g.numerator, g.sum),
            g.sum / g.numerator,
            minimum(u, V(0)),
            g.sum,
            quotient(g.complement, g.sum),
            V(0)};
  }
};

// s = 1 / sigmoid(raw + 2), for code that divides by its scale.
struct ReciprocalSigmoidScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>& in) {
    const V u = in.raw + V(2);
    const Sigmoid<V> g(u);
    return {g.sum / g.numerator,   quotient(g.numerator, g.sum),   -minimum(u, V(0)),
            quotient(V(1), g.sum), -quotient(g.complement, g.sum), V(0)};
  }
};

// s = sigmoid(raw + 2) + m.
struct FlooredSigmoidScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>& in) {
    const Sigmoid<V> g(in.raw + V(2));
    const V sigmoid = quotient(g.numerator, g.sum), value = sigmoid + in.floor, reciprocal = V(1) / value;
    return {value, reciprocal, log(value), V(1), sigmoid * quotient(g.complement, g.sum) * reciprocal, V(0)};
  }
};

// s = min(softplus(raw) + m, a), softplus(raw) = max(raw, 0) + log(1 + e). Its slope is 0 where it is cut.
struct SoftplusScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>& in) {
    const Sigmoid<V> g(in.raw);
    const V whole = select(in.raw > V(0), in.raw, V(0)) + log1p(g.e) + in.floor;
    const V value = minimum(whole, in.limit), reciprocal = V(1) / value;
    const V slope = quotient(g.numerator, g.sum) * reciprocal;
    return {value, reciprocal, log(value), V(1), select(whole > in.limit, V(0), slope), V(0)};
  }
};

// s = 1: only the shift acts.
struct AdditiveScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE ScaleTerms<V> evaluate(const ScaleInput<V>&) {
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
  V x, raw, shift, limit;
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
          grad_log_scale * scale.limit_slope};
}

}  // namespace flowops
