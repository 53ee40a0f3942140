// One element of actnorm: transform and gradient. Torch-free; V is a scalar or a Vec.
//
// With f = exp(log_scale), forward z = (x + b) f; with f = exp(-log_scale), inverse x = z f - b. The shift is
// added before the product, not folded into one multiply-add x f + b f: where |b| >> 1 / f that would cancel.
//
// Upstream gradients g of the output and h of the log-det, per channel, sums over batch and pixels (N
// pixels):
//   forward:  dL/dx = g f,   dL/db = f sum(g),   dL/dlog_scale =  f sum(g (x + b)) + N sum(h)
//   inverse:  dL/dz = g f,   dL/db =  -sum(g),   dL/dlog_scale = -f sum(g z)       - N sum(h)
// so both directions need the same two sums, of g and of g (input + shift) with shift = b or 0.
#pragma once

#include "math/scalar.h"

namespace flowops {

template <typename V>
FLOWOPS_HOST_DEVICE V actnorm_transform(V x, V bias, V factor, bool inverse) {
  return inverse ? x * factor - bias : (x + bias) * factor;
}

template <typename T>
FLOWOPS_HOST_DEVICE T actnorm_factor(T log_scale, bool inverse) {
  return exp(inverse ? -log_scale : log_scale);
}

// What is added to the input before it meets its gradient in the second sum.
template <typename T>
FLOWOPS_HOST_DEVICE T actnorm_gradient_shift(T bias, bool inverse) {
  return inverse ? T(0) : bias;
}

template <typename T>
struct ActnormParameterGradient {
  T bias, log_scale;
};

// `sum` = sum(g), `moment` = sum(g (input + shift)), `logdet` = N sum(h).
template <typename T>
FLOWOPS_HOST_DEVICE ActnormParameterGradient<T> actnorm_parameter_gradient(T sum, T moment, T logdet,
                                                                           T factor, bool inverse) {
  if (inverse) return {-sum, -(factor * moment) - logdet};
  return {factor * sum, factor * moment + logdet};
}

// Count, mean and sum of squared deviations of a set, and of the union of two sets (Chan, Golub, LeVeque
// 1979).
template <typename T>
struct Moments {
  T count, mean, squares;
};

template <typename T>
FLOWOPS_HOST_DEVICE Moments<T> merge_moments(Moments<T> a, Moments<T> b) {
  const T count = a.count + b.count;
  if (count == T(0)) return a;
  const T share = b.count / count, difference = b.mean - a.mean;
  return {count, a.mean + difference * share,
          a.squares + b.squares + difference * difference * a.count * share};
}

}  // namespace flowops
