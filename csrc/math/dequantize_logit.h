// One element of dequantize_logit: map, inverse and gradients. Torch-free; V is a scalar or a Vec.
//
// A value v in {0, ..., n - 1} with noise u in [0, 1) is t = v + u. With c = (1 - 2 alpha) / n,
//   a = alpha + c t     b = 1 - a = alpha + c (n - t)     z = log a - log b,
// so that neither end loses digits, and
//   log dz/dt = log c - log a - log b.
// With the upstream gradients g of z and h of the log-det,
//   dt = c (g + h (a - b)) / (a b).
// The inverse is t = (a - alpha) / c with a = sigmoid(z), b = sigmoid(-z), its log-derivative
// log a + log b - log c, and
//   dz = g a b / c + h (b - a).
//
// v + u is rounded to a grid of spacing up to n eps / 2, so u is kept further than that from 1.
#pragma once

#include "math/special.h"

namespace flowops {

template <typename T>
struct LogitMap {
  T alpha, slope, levels, most;  // alpha, c, n and the greatest u

  FLOWOPS_HOST_DEVICE LogitMap(double alpha, double levels)
      : alpha(static_cast<T>(alpha)),
        slope(static_cast<T>((1 - 2 * alpha) / levels)),
        levels(static_cast<T>(levels)),
        most(static_cast<T>(1 - 2 * levels * (sizeof(T) == 4 ? 0x1p-23 : 0x1p-52))) {}
};

template <typename V>
struct LogitImage {
  V value, log_slope;  // without the constant log c
};

// a and b.
template <typename V>
struct LogitSides {
  V lower, upper;
};

template <typename V, typename T>
FLOWOPS_HOST_DEVICE V dequantized(V value, V noise, const LogitMap<T>& map) {
  return value + minimum(noise, V(map.most));
}

template <typename V, typename T>
FLOWOPS_HOST_DEVICE LogitSides<V> logit_sides(V t, const LogitMap<T>& map) {
  return {V(map.alpha) + V(map.slope) * t, V(map.alpha) + V(map.slope) * (V(map.levels) - t)};
}

template <typename V, typename T>
FLOWOPS_HOST_DEVICE LogitImage<V> logit(V t, const LogitMap<T>& map) {
  const auto sides = logit_sides(t, map);
  const V lower = log_any(sides.lower), upper = log_any(sides.upper);
  return {lower - upper, -(lower + upper)};
}

template <typename V, typename T>
FLOWOPS_HOST_DEVICE V logit_gradient(V g, V h, V t, const LogitMap<T>& map) {
  const auto [lower, upper] = logit_sides(t, map);
  return V(map.slope) * (g + h * (lower - upper)) / (lower * upper);
}

// sigmoid(z) and sigmoid(-z).
template <typename V>
FLOWOPS_HOST_DEVICE LogitSides<V> sigmoid_sides(V z) {
  const V small = exp(negative_abs(z)), large = V(1) / (V(1) + small);
  const auto positive = z > V(0);
  return {select(positive, large, small * large), select(positive, small * large, large)};
}

template <typename V, typename T>
FLOWOPS_HOST_DEVICE LogitImage<V> logit_inverse(V z, const LogitMap<T>& map) {
  const V size = negative_abs(z);
  return {(sigmoid_sides(z).lower - V(map.alpha)) / V(map.slope), size - V(2) * log1p(exp(size))};
}

template <typename V, typename T>
FLOWOPS_HOST_DEVICE V logit_inverse_gradient(V g, V h, V z, const LogitMap<T>& map) {
  const auto [lower, upper] = sigmoid_sides(z);
  return g * (lower * upper) / V(map.slope) + h * (upper - lower);
}

}  // namespace flowops
