// One element of gaussian_rsample: sample, KL divergence and gradient. Torch-free; V is a scalar or a Vec.
//
// The raw parameter s of a scale gives the standard deviation S and its logarithm L:
//   log-variance: S = exp(s / 2), L = s / 2      log-deviation: S = exp(s), L = s
//   deviation:    S = s, L = log s               softplus:      S = log(1 + exp(s)), L = log S
//
// z = m + S e with e standard normal. Against the prior N(mp, Sp^2), with d = (m - mp) / Sp and v = (S /
// Sp)^2,
//   KL = (d^2 + v - 1) / 2 - (L - Lp),
// and the standard prior is mp = 0, Sp = 1. With upstream gradients g of z and h of the KL:
//   dm = g + h d / Sp                    dmp = -h d / Sp
//   dL = g S e + h (v - 1)               dLp = -h (d^2 + v - 1)
//
// The residual form gives the posterior relative to the prior, m = mp + x and S = Sp T with T from the raw
// scale and K = log T: then d = x / Sp, v = T^2, L - Lp = K, so dx = dm, dK = dL, and the prior's gradients
// gain those of m and L: dmp = g, dLp = g S e - h d^2.
//
// A raw scale gets ds = dL dL/ds. The part of e is g e dS/ds, not g S e / S, which is 0 / 0 where S = 0.
#pragma once

#include "math/special.h"

namespace flowops {

// Below this log S = s to rounding in every type, and exp(s) may be no normal number.
inline constexpr double kSoftplusTail = -40;

struct LogVarianceScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V std(V raw) {
    return exp(V(0.5f) * raw);
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_std(V raw, V) {
    return V(0.5f) * raw;
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V slope(V, V std) {  // dS/ds
    return V(0.5f) * std;
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_slope(V, V) {  // dL/ds
    return V(0.5f);
  }
};

struct LogStdScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V std(V raw) {
    return exp(raw);
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_std(V raw, V) {
    return raw;
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V slope(V, V std) {
    return std;
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_slope(V, V) {
    return V(1);
  }
};

struct StdScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V std(V raw) {
    return raw;
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_std(V, V std) {
    return log_any(std);
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V slope(V, V) {
    return V(1);
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_slope(V, V std) {
    return V(1) / std;
  }
};

struct SoftplusScale {
  template <typename V>
  static FLOWOPS_HOST_DEVICE V std(V raw) {
    return select(raw > V(0), raw, V(0)) + log1p(exp(-abs(raw)));
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_std(V raw, V std) {
    return select(raw < V(kSoftplusTail), raw, log_any(std));
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V slope(V raw, V) {
    const V e = exp(-abs(raw));
    return select(raw < V(0), e, V(1)) / (V(1) + e);
  }
  template <typename V>
  static FLOWOPS_HOST_DEVICE V log_slope(V raw, V std) {
    return select(raw < V(kSoftplusTail), V(1), slope(raw, std) / std);
  }
};

// What the KL of an element needs of posterior and prior.
template <typename V>
struct GaussianGap {
  V distance, variance, log_ratio;  // d, v and L - Lp
};

template <typename V>
FLOWOPS_HOST_DEVICE V gaussian_kl(const GaussianGap<V>& gap) {
  return V(0.5f) * (gap.distance * gap.distance + gap.variance - V(1)) - gap.log_ratio;
}

// The prior as it enters: mean and log-deviation 0 and reciprocal deviation 1 for the standard one.
template <typename V>
struct GaussianPrior {
  V mean, std, log_std, reciprocal;
};

template <typename Scale, typename V>
FLOWOPS_HOST_DEVICE GaussianPrior<V> gaussian_prior(V mean, V raw, bool wants_log) {
  const V std = Scale::std(raw);
  return {mean, std, wants_log ? Scale::log_std(raw, std) : V(0), V(1) / std};
}

template <typename V>
FLOWOPS_HOST_DEVICE GaussianPrior<V> standard_prior() {
  return {V(0), V(1), V(0), V(1)};
}

// `mean`, `raw` and `std` are those of the posterior, or its x, raw scale and T in the residual form.
template <typename Scale, typename V>
FLOWOPS_HOST_DEVICE GaussianGap<V> gaussian_gap(V mean, V raw, V std, const GaussianPrior<V>& prior,
                                                bool residual) {
  const V log_std = Scale::log_std(raw, std);
  if (residual) return {mean * prior.reciprocal, std * std, log_std};
  const V ratio = std * prior.reciprocal;
  return {(mean - prior.mean) * prior.reciprocal, ratio * ratio, log_std - prior.log_std};
}

template <typename V>
FLOWOPS_HOST_DEVICE V gaussian_sample(V mean, V std, V noise, const GaussianPrior<V>& prior, bool residual) {
  if (residual) return prior.mean + mean + prior.std * std * noise;
  return mean + std * noise;
}

template <typename V>
struct GaussianGradient {
  V mean, scale, prior_mean, prior_scale;
};

// `g` of z, `h` of the KL (zero where there is none, and then the gap is not evaluated). The gradients of the
// prior mean nothing without one.
template <typename Scale, typename V>
FLOWOPS_HOST_DEVICE GaussianGradient<V> gaussian_gradient(V g, V h, V noise, V mean, V raw, V prior_raw,
                                                          const GaussianPrior<V>& prior, bool has_prior,
                                                          bool residual, bool kl) {
  const V std = Scale::std(raw), slope = Scale::slope(raw, std);
  const V pull = residual ? g * noise * prior.std : g * noise;
  GaussianGradient<V> grad{g, pull * slope, residual ? g : V(0), V(0)};
  if (residual) grad.prior_scale = g * noise * std * Scale::slope(prior_raw, prior.std);
  if (!kl) return grad;
  const auto gap = gaussian_gap<Scale>(mean, raw, std, prior, residual);
  const V toward = h * gap.distance * prior.reciprocal;
  grad.mean = grad.mean + toward;
  grad.scale = grad.scale + h * (gap.variance - V(1)) * Scale::log_slope(raw, std);
  if (!has_prior) return grad;
  const V log_slope = Scale::log_slope(prior_raw, prior.std), squared = gap.distance * gap.distance;
  if (residual) {
    grad.prior_scale = grad.prior_scale - h * squared * log_slope;
  } else {
    grad.prior_mean = -toward;
    grad.prior_scale = -(h * (squared + gap.variance - V(1)) * log_slope);
  }
  return grad;
}

}  // namespace flowops
