// One element of a monotonic rational-quadratic spline: bins from raw logits, transform, inverse and
// gradient. Torch-free; V is a scalar or a Vec.
//
// In the unit square, bin k starts at (x, y), is w wide and h high, and has slopes d0 and d1 at its ends.
// With t = (position - x) / w, u = 1 - t and s = h H / (w W) on the domain W by H (Durkan et al. 2019,
// equations 4, 5):
//   f = y + h N / Q,   N = s t^2 + d0 t u,   Q = s + (d0 + d1 - 2 s) t u
//   f' = s^2 M / Q^2,  M = d1 t^2 + 2 s t u + d0 u^2
// The inverse solves a t^2 + b t - r s = 0 with r = (position - y) / h, b = d0 - r (d0 + d1 - 2 s) and
// a = s - b. Of the two forms of its root, 2 r s / (b + q) and (q - b) / (2 a) with q^2 = b^2 + 4 a r s, the
// one that adds equal signs is taken: a > s > 0 wherever b < 0.
//
// The gradient of L = a f + c log f' is taken at x for both directions. The inverse has x = f^-1(z) and the
// log-det -log f'; with c = -(upstream of it) and g = (upstream of x) + c d(log f')/dx the gradient of z is g
// / f', and that of the parameters is the one of L with a = -g / f'.
#pragma once

#include "math/special.h"

namespace flowops {

enum class SplineTails : int { kLinear = 0, kCircular = 1, kNone = 2 };

// How raw parameters become bins and slopes; see ops/rational_quadratic_spline.h.
template <typename T>
struct SplineForm {
  int bins;
  SplineTails tails;
  bool exp_slope;
  T min_width, min_height, min_slope, beta, clip, edge;

  FLOWOPS_HOST_DEVICE bool extends_identity() const { return tails != SplineTails::kNone; }

  // Where the raw slope of knot i lies among the parameters, or -1: a fixed slope of 1.
  FLOWOPS_HOST_DEVICE int slope_parameter(int i) const {
    if (tails == SplineTails::kNone) return 2 * bins + i;
    if (tails == SplineTails::kCircular) return 2 * bins + (i == bins ? 0 : i);
    return i == 0 || i == bins ? -1 : 2 * bins + i - 1;
  }
};

template <typename T>
FLOWOPS_HOST_DEVICE SplineForm<T> convert_form(const SplineForm<double>& form) {
  return {form.bins,         form.tails,   form.exp_slope, T(form.min_width), T(form.min_height),
          T(form.min_slope), T(form.beta), T(form.clip),   T(form.edge)};
}

template <typename V>
struct SplineDomain {
  V left, right, bottom, top, width, height, over_width, over_height;

  FLOWOPS_HOST_DEVICE SplineDomain(V left, V right, V bottom, V top)
      : left(left),
        right(right),
        bottom(bottom),
        top(top),
        width(right - left),
        height(top - bottom),
        over_width(V(1) / width),
        over_height(V(1) / height) {}

  // The same domain in all lanes.
  template <typename T>
  FLOWOPS_HOST_DEVICE explicit SplineDomain(const SplineDomain<T>& domain)
      : left(domain.left),
        right(domain.right),
        bottom(domain.bottom),
        top(domain.top),
        width(domain.width),
        height(domain.height),
        over_width(domain.over_width),
        over_height(domain.over_height) {}
};

// The bin that holds an element, in the unit square; `left` and `right` are raw slopes.
template <typename V>
struct SplineBin {
  V index, x, width, y, height, left, right;
};

template <typename V>
struct SplineSlope {
  V value, derivative;  // of the slope with respect to its clipped raw parameter
};

// Keeps a logit within 1 / scale, smoothly; no bound where scale is 0.
template <typename V>
FLOWOPS_HOST_DEVICE V soft_clip(V raw, V scale) {
  return raw / (V(1) + abs(raw * scale));
}

template <typename V>
FLOWOPS_HOST_DEVICE V soft_clip_slope(V raw, V scale) {
  const V root = V(1) + abs(raw * scale);
  return V(1) / (root * root);
}

template <typename V, typename T>
FLOWOPS_HOST_DEVICE SplineSlope<V> spline_slope(V raw, const SplineForm<T>& form) {
  if (form.exp_slope) {
    const V slope = exp(raw);
    return {slope, slope};
  }
  const V u = raw * V(form.beta), e = exp(-abs(u)), sum = V(1) + e;
  const auto positive = u >= V(0);
  return {V(form.min_slope) + (select(positive, u, V(0)) + log1p(e)) * V(T(1) / form.beta),
          quotient(select(positive, V(1), e), sum)};
}

// Gives `shares` the largest of `bins` logits, then the exponential of each less that one, and returns their
// sum.
template <typename V, typename T, typename Logit, typename Shares>
FLOWOPS_HOST_DEVICE V sum_of_shares(const Logit& logit, Shares& shares, int first, const SplineForm<T>& form,
                                    int bins) {
  const V clip = V(form.clip) + V(form.clip);
  V highest = logit(first);
  FLOWOPS_UNROLL
  for (int i = 1; i < bins; ++i) {
    const V u = logit(first + i);
    highest = select(u > highest, u, highest);
  }
  const bool clips = form.clip > T(0);
  if (clips) highest = soft_clip(highest, clip);
  shares.start(first, highest);
  V sum(0);
  FLOWOPS_UNROLL
  for (int i = 0; i < bins; ++i) {
    const V u = logit(first + i);
    const V e = exp((clips ? soft_clip(u, clip) : u) - highest);
    shares.set(first + i, e);
    sum += e;
  }
  return sum;
}

// Reciprocals of the sums of exponentials of widths and heights.
template <typename V>
struct SplineNorms {
  V width, height;
};

template <typename V, typename T, typename Logit, typename Shares>
FLOWOPS_HOST_DEVICE SplineNorms<V> spline_norms(const Logit& logit, Shares& shares, const SplineForm<T>& form,
                                                int bins) {
  const V widths = sum_of_shares<V>(logit, shares, 0, form, bins);
  const V heights = sum_of_shares<V>(logit, shares, bins, form, bins);
  const V over_both = quotient(V(1), widths * heights);
  return {over_both * heights, over_both * widths};
}

template <typename V, typename T, typename Logit>
FLOWOPS_HOST_DEVICE V raw_slope(const Logit& logit, const SplineForm<T>& form, int knot) {
  const int at = form.slope_parameter(knot);
  if (at < 0) return V(form.edge);
  return form.clip > T(0) ? soft_clip(logit(at), V(form.clip)) : logit(at);
}

// `position` in the unit interval: along x, or along y where `by_height`.
template <typename V, typename T, typename Logit, typename Shares>
FLOWOPS_HOST_DEVICE SplineBin<V> find_spline_bin(const Logit& logit, const Shares& shares,
                                                 const SplineNorms<V>& norms, const SplineForm<T>& form,
                                                 int bins, V position, bool by_height) {
  const V wide = norms.width * V(T(1) - T(bins) * form.min_width);
  const V high = norms.height * V(T(1) - T(bins) * form.min_height);
  V x(0), y(0), next = raw_slope<V>(logit, form, 0);
  SplineBin<V> bin{V(0), x, V(1), y, V(1), next, next};
  FLOWOPS_UNROLL
  for (int i = 0; i < bins; ++i) {
    const V width = V(form.min_width) + wide * shares.get(i);
    const V height = V(form.min_height) + high * shares.get(bins + i);
    const V left = next;
    next = raw_slope<V>(logit, form, i + 1);
    const auto reached = position >= (i == 0 ? position : by_height ? y : x);
    bin.index = select(reached, V(T(i)), bin.index);
    bin.x = select(reached, x, bin.x);
    bin.width = select(reached, width, bin.width);
    bin.y = select(reached, y, bin.y);
    bin.height = select(reached, height, bin.height);
    bin.left = select(reached, left, bin.left);
    bin.right = select(reached, next, bin.right);
    x += width;
    y += height;
  }
  return bin;
}

// A NaN stays one.
template <typename V>
FLOWOPS_HOST_DEVICE V within(V value, V low, V high) {
  value = select(value < low, low, value);
  return select(value > high, high, value);
}

// t in [0, 1]: exactly 1 at the end of the domain, whose slope goes on beyond it.
template <typename V>
FLOWOPS_HOST_DEVICE V place_in_bin(V input, V end, V t) {
  return select(input >= end, V(1), within(t, V(0), V(1)));
}

// The terms of a bin at t.
template <typename V>
struct SplineTerms {
  V t, s, curvature, numerator, over_denominator, slope_numerator, derivative;

  FLOWOPS_HOST_DEVICE SplineTerms(V t, V s, V d0, V d1) : t(t), s(s) {
    const V u = V(1) - t, tu = t * u;
    curvature = d0 + d1 - s - s;
    numerator = s * t * t + d0 * tu;
    over_denominator = V(1) / (s + curvature * tu);
    slope_numerator = d1 * t * t + (s + s) * tu + d0 * u * u;
    const V ratio = s * over_denominator;
    derivative = ratio * ratio * slope_numerator;
  }
};

template <typename V>
struct SplineResult {
  V value, logdet;
};

template <typename V, typename T, typename Logit, typename Shares>
FLOWOPS_HOST_DEVICE SplineResult<V> spline_transform(V x, const SplineDomain<V>& domain, const Logit& logit,
                                                     Shares& shares, const SplineForm<T>& form, int bins) {
  const auto norms = spline_norms<V>(logit, shares, form, bins);
  const V inside = within(x, domain.left, domain.right);
  const V position = (inside - domain.left) * domain.over_width;
  const auto bin = find_spline_bin(logit, shares, norms, form, bins, position, false);
  const V over_w = V(1) / bin.width;
  const V t = place_in_bin(inside, domain.right, (position - bin.x) * over_w);
  const V s = bin.height * domain.height * (over_w * domain.over_width);
  const SplineTerms<V> terms(t, s, spline_slope(bin.left, form).value, spline_slope(bin.right, form).value);
  V value = domain.bottom + domain.height * (bin.y + bin.height * terms.numerator * terms.over_denominator);
  V logdet = log(terms.derivative);
  const auto beyond = inside != x;
  if (form.extends_identity()) return {select(beyond, x, value), select(beyond, V(0), logdet)};
  return {select(beyond, value + terms.derivative * (x - inside), value), logdet};
}

template <typename V, typename T, typename Logit, typename Shares>
FLOWOPS_HOST_DEVICE SplineResult<V> spline_inverse(V z, const SplineDomain<V>& domain, const Logit& logit,
                                                   const Shares& shares, const SplineNorms<V>& norms,
                                                   const SplineForm<T>& form, int bins) {
  const V inside = within(z, domain.bottom, domain.top);
  const V position = (inside - domain.bottom) * domain.over_height;
  const auto bin = find_spline_bin(logit, shares, norms, form, bins, position, true);
  const V r = within((position - bin.y) / bin.height, V(0), V(1));
  const V s = bin.height * domain.height / (bin.width * domain.width);
  const V d0 = spline_slope(bin.left, form).value, d1 = spline_slope(bin.right, form).value;
  const V b = d0 - r * (d0 + d1 - s - s), a = s - b;
  const V square = b * b + V(4) * a * r * s;
  const V sum = abs(b) + sqrt(select(square > V(0), square, V(0)));
  const auto plus = b >= V(0);
  const V root = select(plus, V(2) * r * s, sum) / select(plus, sum, V(2) * a);
  const V t = place_in_bin(inside, domain.top, root);
  const SplineTerms<V> terms(t, s, d0, d1);
  V value = domain.left + domain.width * (bin.x + bin.width * t);
  const V logdet = -log(terms.derivative);
  const auto beyond = inside != z;
  if (form.extends_identity()) return {select(beyond, z, value), select(beyond, V(0), logdet)};
  return {select(beyond, value + (z - inside) / terms.derivative, value), logdet};
}

template <typename V, typename T, typename Logit, typename Shares>
FLOWOPS_HOST_DEVICE SplineResult<V> spline_inverse(V z, const SplineDomain<V>& domain, const Logit& logit,
                                                   Shares& shares, const SplineForm<T>& form, int bins) {
  return spline_inverse(z, domain, logit, shares, spline_norms<V>(logit, shares, form, bins), form, bins);
}

// Softmax and clip, backwards: writes the gradient of the logits of the widths (or heights), given that of
// the bins before the element's (`before`) and of its own (`own`). The latter starts at `start` and is `size`
// wide, in the unit interval: what it and those before have above `least` are their shares of the mean.
template <typename V, typename T, typename Logit, typename Shares, typename Write>
FLOWOPS_HOST_DEVICE void write_share_gradients(const Logit& logit, const Shares& shares, V norm, int first,
                                               const SplineForm<T>& form, int bins, T least, V index, V start,
                                               V size, V before, V own, const Write& write) {
  const V free(T(1) - T(bins) * least), clip = V(form.clip) + V(form.clip);
  const V mean = before * (start - index * V(least)) + own * (size - V(least));
  const V at_before = norm * (free * before - mean), at_own = norm * (free * own - mean),
          after = norm * -mean;
  const bool clips = form.clip > T(0);
  FLOWOPS_UNROLL
  for (int i = 0; i < bins; ++i) {
    const V factor = select(index > V(T(i)), at_before, select(index != V(T(i)), after, at_own));
    V result = factor * shares.get(first + i);
    if (clips) result *= soft_clip_slope(logit(first + i), clip);
    write(first + i, result);
  }
}

template <typename V, typename T, typename Logit, typename Write>
FLOWOPS_HOST_DEVICE void write_slope_gradients(const Logit& logit, const SplineForm<T>& form, int bins,
                                               V index, V left, V right, const Write& write) {
  const bool clips = form.clip > T(0), circular = form.tails == SplineTails::kCircular;
  const auto at_knot = [&](int i) {
    return select(index != V(T(i)), select(index != V(T(i - 1)), V(0), right), left);
  };
  for (int i = 0; i <= bins; ++i) {
    const int at = form.slope_parameter(i);
    if (at < 0 || (i == bins && circular)) continue;
    V result = at_knot(i);
    if (i == 0 && circular) result += at_knot(bins);
    if (clips) result *= soft_clip_slope(logit(at), V(form.clip));
    write(at, result);
  }
}

// The gradient of the input; `write(i, gradient)` gets that of parameter i.
template <typename V, typename T, typename Logit, typename Shares, typename Write>
FLOWOPS_HOST_DEVICE V spline_gradient(V grad, V grad_logdet, V input, const SplineDomain<V>& domain,
                                      const Logit& logit, Shares& shares, const SplineForm<T>& form, int bins,
                                      bool inverse, const Write& write) {
  // Not the saved output: rounded to a half it may lie in another bin.
  const auto norms = spline_norms<V>(logit, shares, form, bins);
  const V x = inverse ? spline_inverse(input, domain, logit, shares, norms, form, bins).value : input;
  const V zero(0), one(1), two(2);
  const V inside = within(x, domain.left, domain.right);
  const V position = (inside - domain.left) * domain.over_width;
  const auto bin = find_spline_bin(logit, shares, norms, form, bins, position, false);
  const V over_w = one / bin.width;
  const V t = place_in_bin(inside, domain.right, (position - bin.x) * over_w);
  const V u = one - t, tu = t * u, turn = u - t;
  const V s = bin.height * domain.height * (over_w * domain.over_width);
  const auto d0 = spline_slope(bin.left, form), d1 = spline_slope(bin.right, form);
  const SplineTerms<V> f(t, s, d0.value, d1.value);
  const V over_q = f.over_denominator, over_m = one / f.slope_numerator;
  // Of the inverse the input tells it: an x computed at the edge may round to either side.
  const V limit = inverse ? within(input, domain.bottom, domain.top) : inside;
  const auto beyond = limit != input;
  const V m_t = two * (d1.value * t + s * turn - d0.value * u), q_t = f.curvature * turn;
  const V log_slope_t = m_t * over_m - two * q_t * over_q;
  V a = grad, c = grad_logdet, derivative = f.derivative;
  if (form.extends_identity()) derivative = select(beyond, one, derivative);
  if (inverse) {
    c = -c;
    const V by_x = grad + select(beyond, zero, c * log_slope_t * (over_w * domain.over_width));
    a = -by_x / derivative;
  }
  const V grad_beyond = inverse ? -a : a * derivative;
  // Beyond the domain only the slope at its end counts, or nothing does.
  const V a_in = select(beyond, zero, a);
  c = select(beyond, form.extends_identity() ? zero : c + a * (x - inside) * derivative, c);
  const V lift = a_in * domain.height, part = f.numerator * over_q;
  const V g_n = lift * bin.height * over_q, g_q = -(g_n * part + two * c * over_q), g_m = c * over_m;
  const V g_s = g_n * t * t + two * g_m * tu + g_q * (one - two * tu) + two * c / s;
  const V g_t = g_n * (two * s * t + d0.value * turn) + g_m * m_t + g_q * q_t;
  const V s_part = g_s * s, by_t = -g_t * over_w;
  write_share_gradients(logit, shares, norms.width, 0, form, bins, form.min_width, bin.index, bin.x,
                        bin.width, by_t, by_t * t - s_part * over_w, write);
  write_share_gradients(logit, shares, norms.height, bins, form, bins, form.min_height, bin.index, bin.y,
                        bin.height, lift, lift * part + s_part / bin.height, write);
  write_slope_gradients(logit, form, bins, bin.index, (g_n * tu + g_m * u * u + g_q * tu) * d0.derivative,
                        (g_m * t * t + g_q * tu) * d1.derivative, write);
  return select(beyond, grad_beyond, inverse ? -a : g_t * over_w * domain.over_width);
}

}  // namespace flowops
