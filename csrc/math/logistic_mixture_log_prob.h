// One pixel of a discretised mixture of logistics: log-probability and gradient. Torch-free; V is a scalar or
// a Vec, and x is given as n = 2 x - (L - 1), which is (L - 1) times the value in [-1, 1].
//
// A value of L levels has the bin u -+ 1 / (L - 1) around u = n / (L - 1). With the logistic's mean m,
// log-scale s and t = exp(-s) / (L - 1), its ends are
//   a = t (n - m (L - 1) + 1)     b = t (n - m (L - 1) - 1)     a - b = 2 t
// in standard units, and its probability is, exactly and without a difference of distribution functions,
//   P = sigmoid(a) sigmoid(-b) (1 - exp(-2 t)),
// of which the lowest value lacks what belongs to b, and the highest what belongs to a, so that the
// probabilities of all values sum to 1. P is kept as exp(exponent) times a factor in [0.15, 1], so that one
// logarithm serves all components and colours. With A = sigmoid(-a) and B = sigmoid(b),
//   dlog P/dm = -t (L - 1) (A - B)     dlog P/ds = b B - a A - 2 t / (exp(2 t) - 1).
//
// The components share their colours: log p = log sum_k pi_k prod_c P_kc, pi = softmax(logits). Of three
// colours, the later ones' means move with the values u of the earlier (Salimans et al. 2017, section 2.2):
//   m_1 + tanh(q_0) u_0     m_2 + tanh(q_1) u_0 + tanh(q_2) u_1.
#pragma once

#include <limits>

#include "math/special.h"

namespace flowops {

template <typename T>
struct MixtureForm {
  int components;
  T top;        // L - 1
  T log_width;  // log(2 / (L - 1))
  T floor;      // of s
};

template <typename T>
FLOWOPS_HOST_DEVICE MixtureForm<T> convert_form(const MixtureForm<double>& form) {
  return {form.components, T(form.top), T(form.log_width), T(form.floor)};
}

// Parameters of one component; they lie behind all logits by colour and kind, components innermost.
template <int kColours>
struct MixtureLayout {
  static constexpr int kKinds = kColours == 3 ? 3 : 2;
  static constexpr int kParameters = 1 + kColours * kKinds;

  FLOWOPS_HOST_DEVICE static int mean(int components, int colour, int k) {
    return (1 + colour * kKinds) * components + k;
  }
  FLOWOPS_HOST_DEVICE static int log_scale(int components, int colour, int k) {
    return mean(components, colour, k) + components;
  }
  // q_i
  FLOWOPS_HOST_DEVICE static int coefficient(int components, int i, int k) {
    return mean(components, i, k) + 2 * components;
  }
};

// sinh(x) / x for |x| up to 1/2.
template <typename T, typename V>
FLOWOPS_HOST_DEVICE V sinh_over(V x) {
  constexpr int kTerms = sizeof(T) == 4 ? 4 : 8;
  const V square = x * x;
  V sum(T(1));
  FLOWOPS_UNROLL
  for (int i = kTerms - 1; i > 0; --i) sum = V(T(1)) + sum * square * V(T(1) / T(2 * i * (2 * i + 1)));
  return sum;
}

// The bin of one value under one logistic.
template <typename V, typename T>
struct LogisticBin {
  using Mask = decltype(V(T(0)) < V(T(0)));
  V upper, lower;            // a, b
  V upper_tail, lower_tail;  // exp(-|a|), exp(-|b|)
  V half, decay, mass;       // t, exp(-t); (1 - exp(-2 t)) / (2 t) where narrow, else without the divisor
  V log_scale, top;
  Mask has_upper, has_lower, narrow;

  LogisticBin() = default;
  FLOWOPS_HOST_DEVICE LogisticBin(V n, V mean, V log_scale, const MixtureForm<T>& form)
      : log_scale(log_scale), top(form.top) {
    half = exp(-log_scale) * V(T(1) / form.top);
    const V distance = n - mean * top;
    upper = half * (distance + V(T(1))), lower = half * (distance - V(T(1)));
    has_upper = n < top;
    has_lower = -n < top;
    upper_tail = exp(negative_abs(upper)), lower_tail = exp(negative_abs(lower));
    decay = exp(-half);
    narrow = half < V(T(0.5));
    mass = select(narrow, decay * sinh_over<T>(half), V(T(1)) - decay * decay);
  }

  FLOWOPS_HOST_DEVICE V exponent(const MixtureForm<T>& form) const {
    const V zero(T(0));
    const V inner = select(has_upper & has_lower & narrow, V(form.log_width) - log_scale, zero);
    return inner + select(has_upper, minimum(upper, zero), zero) +
           select(has_lower, minimum(-lower, zero), zero);
  }

  FLOWOPS_HOST_DEVICE V factor() const {
    const V one(T(1));
    const V upper_part = select(has_upper, one + upper_tail, one);
    const V lower_part = select(has_lower, one + lower_tail, one);
    return quotient(select(has_upper & has_lower, mass, one), upper_part * lower_part);
  }

  // Of log P.
  struct Slope {
    V mean, log_scale;
  };
  FLOWOPS_HOST_DEVICE Slope slope() const {
    const V zero(T(0)), one(T(1));
    const V above = quotient(select(upper > zero, upper_tail, one), one + upper_tail);
    const V below = quotient(select(lower > zero, one, lower_tail), one + lower_tail);
    const V a = select(has_upper, above, zero), b = select(has_lower, below, zero);
    const V width = quotient(decay * decay * select(narrow, one, half + half), mass);
    return {-(top * half) * (a - b), lower * b - upper * a - select(has_upper & has_lower, width, zero)};
  }
};

// log sum_i f_i exp(l_i), term by term.
template <typename V, typename T>
struct LogSum {
  V highest = V(std::numeric_limits<T>::lowest()), sum = V(T(0));

  FLOWOPS_HOST_DEVICE void add(V exponent, V factor) {
    const V above = exponent - highest, ratio = exp(negative_abs(above));
    const auto higher = above > V(T(0));
    sum = select(higher, sum * ratio + factor, sum + factor * ratio);
    highest = select(higher, exponent, highest);
  }
  FLOWOPS_HOST_DEVICE V value() const { return highest + log_any(sum); }
  FLOWOPS_HOST_DEVICE V share(V exponent, V factor) const {
    return quotient(factor * exp(exponent - highest), sum);
  }
};

// Component k at the pixel n: its bins, and its exponent and factor with the logit. `params(i)` is parameter
// i.
template <int kColours, typename V, typename T>
struct MixtureComponent {
  using Layout = MixtureLayout<kColours>;
  LogisticBin<V, T> bins[kColours];
  V exponent, factor;
  V coefficients[3];  // tanh(q), of three colours

  template <typename Params>
  FLOWOPS_HOST_DEVICE MixtureComponent(const V (&n)[kColours], const Params& params, int k,
                                       const MixtureForm<T>& form)
      : exponent(params(k)), factor(T(1)) {
    V means[kColours];
    FLOWOPS_UNROLL
    for (int c = 0; c < kColours; ++c) means[c] = params(Layout::mean(form.components, c, k));
    if constexpr (kColours == 3) {
      FLOWOPS_UNROLL
      for (int i = 0; i < 3; ++i) coefficients[i] = tanh(params(Layout::coefficient(form.components, i, k)));
      const V first = n[0] * V(T(1) / form.top), second = n[1] * V(T(1) / form.top);
      means[1] = means[1] + coefficients[0] * first;
      means[2] = means[2] + coefficients[1] * first + coefficients[2] * second;
    }
    FLOWOPS_UNROLL
    for (int c = 0; c < kColours; ++c) {
      const V raw = params(Layout::log_scale(form.components, c, k)), floor(form.floor);
      bins[c] = LogisticBin<V, T>(n[c], means[c], select(raw < floor, floor, raw), form);
      exponent = exponent + bins[c].exponent(form);
      factor = factor * bins[c].factor();
    }
  }
};

// The sums over components of pi's numerator, and of that times P.
template <typename V, typename T>
struct MixtureSums {
  LogSum<V, T> prior, joint;
};

template <int kColours, typename V, typename T, typename Params>
FLOWOPS_HOST_DEVICE MixtureSums<V, T> mixture_sums(const V (&n)[kColours], const Params& params,
                                                   const MixtureForm<T>& form) {
  MixtureSums<V, T> sums;
  for (int k = 0; k < form.components; ++k) {
    const MixtureComponent<kColours, V, T> component(n, params, k, form);
    sums.prior.add(params(k), V(T(1)));
    sums.joint.add(component.exponent, component.factor);
  }
  return sums;
}

template <int kColours, typename V, typename T, typename Params>
FLOWOPS_HOST_DEVICE V mixture_log_prob(const V (&n)[kColours], const Params& params,
                                       const MixtureForm<T>& form) {
  const auto sums = mixture_sums(n, params, form);
  return sums.joint.value() - sums.prior.value();
}

// The gradients of component k, weighted with h; `share` is its posterior probability times h. `write(i,
// value)` takes that of parameter i.
template <int kColours, typename V, typename T, typename Params, typename Write>
FLOWOPS_HOST_DEVICE void mixture_component_gradient(const MixtureComponent<kColours, V, T>& component,
                                                    const V (&n)[kColours], const Params& params, int k,
                                                    const MixtureForm<T>& form, V share, const Write& write) {
  using Layout = MixtureLayout<kColours>;
  V means[kColours];
  FLOWOPS_UNROLL
  for (int colour = 0; colour < kColours; ++colour) {
    const auto slope = component.bins[colour].slope();
    const int scale_index = Layout::log_scale(form.components, colour, k);
    const auto floored = params(scale_index) < V(form.floor);
    means[colour] = share * slope.mean;
    write(Layout::mean(form.components, colour, k), means[colour]);
    write(scale_index, select(floored, V(T(0)), share * slope.log_scale));
  }
  if constexpr (kColours == 3) {
    const V over_top(T(1) / form.top);
    const V moved[] = {means[1] * n[0], means[2] * n[0], means[2] * n[1]};
    FLOWOPS_UNROLL
    for (int i = 0; i < 3; ++i) {
      const V c = component.coefficients[i];
      write(Layout::coefficient(form.components, i, k), moved[i] * over_top * (V(T(1)) - c * c));
    }
  }
}

// With the upstream gradient h of the log-probability.
template <int kColours, typename V, typename T, typename Params, typename Write>
FLOWOPS_HOST_DEVICE void mixture_gradient(V h, const V (&n)[kColours], const Params& params,
                                          const MixtureForm<T>& form, const Write& write) {
  const auto sums = mixture_sums(n, params, form);
  for (int k = 0; k < form.components; ++k) {
    const MixtureComponent<kColours, V, T> component(n, params, k, form);
    const V share = h * sums.joint.share(component.exponent, component.factor);
    write(k, share - h * sums.prior.share(params(k), V(T(1))));
    mixture_component_gradient(component, n, params, k, form, share, write);
  }
}

}  // namespace flowops
