// One element of gaussian_log_prob: log-density and gradient. Torch-free; V is a scalar or a Vec.
//
// With S = exp(s) and d = (x - m) / S,
//   log p = -(d^2 / 2 + s) - log(2 pi) / 2,
// and with the upstream gradient h of a sample's sum,
//   dx = -h d / S     dm = -dx     ds = h (d^2 - 1).
//
// 1 / S enters as two factors exp(-s / 2): only what is itself out of range overflows. At x = m nothing does,
// however small S is.
#pragma once

#include "math/scalar.h"

namespace flowops {

inline constexpr double kHalfLog2Pi = 0.918938533204672741780;

// exp(-s / 2), the factor of which 1 / S is the square.
template <typename V>
FLOWOPS_HOST_DEVICE V gaussian_root(V log_scale) {
  return exp(V(-0.5f) * log_scale);
}

// value / S, and 0 for 0 where the root is infinite.
template <typename V>
FLOWOPS_HOST_DEVICE V gaussian_reduced(V value, V root) {
  return select(value != V(0), value * root * root, V(0));
}

// d^2 / 2 + s: what the log-density lacks from -log(2 pi) / 2, and 0 at x = m, s = 0.
template <typename V>
FLOWOPS_HOST_DEVICE V gaussian_excess(V distance, V log_scale) {
  return V(0.5f) * (distance * distance) + log_scale;
}

template <typename V>
struct GaussianLogProbGradient {
  V x, log_scale;  // that of the mean is -x
};

// `distance` is d, and `root` that of s.
template <typename V>
FLOWOPS_HOST_DEVICE GaussianLogProbGradient<V> gaussian_log_prob_gradient(V h, V distance, V root) {
  return {-(h * gaussian_reduced(distance, root)), h * (distance * distance - V(1))};
}

}  // namespace flowops
