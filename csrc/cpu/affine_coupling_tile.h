// The arithmetic of affine_coupling over contiguous tiles, for every scale map and direction.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/vec_special.h"
#include "cpu/lanes.h"
#include "cpu/row.h"
#include "math/affine_coupling.h"
#include "ops/affine_coupling_params.h"

namespace flowops {

// Elements of type S, arithmetic in T.
template <typename S, typename T>
struct ForwardTile {
  const S *x, *raw, *shift;
  const T *amplitude, *mask;  // may be null
  S* z;
  int64_t size;
  bool shift_first;
  ScaleConstants constants;
};

// Elements from one sample to the next.
struct ForwardStep {
  int64_t x, raw, shift, z;
};

// sum(log f) is sum - log(product), up to the sign of the direction, lane by lane.
template <typename T>
struct LogTerms {
  Vec<T> sum, product;
};

// Elements whose factors one product may hold, in every lane.
template <typename T>
inline constexpr int64_t kMaxSpan = (kMaxLogFactors - 1) * Vec<T>::kLanes;

// Takes a copy of the tile, which the stores cannot alias.
template <typename S, typename T, typename Map, bool kInverse>
FLOWOPS_INLINE LogTerms<T> forward_span(const ForwardTile<S, T> t, int64_t begin, int64_t end) {
  using V = Vec<T>;
  const V zero(0), one(1), limit(T(t.constants.limit));
  const V gain(T(t.constants.gain)), floor(T(t.constants.floor));
  LogTerms<T> log{zero, one};
  const auto step = [&](int64_t i, auto load, auto keep_lanes, auto store) {
    const V x = load(t.x + i), shift = load(t.shift + i);
    const V raw = t.raw ? load(t.raw + i) : zero;
    const auto terms =
        Map::template evaluate<V>({raw, t.amplitude ? load(t.amplitude + i) : limit, gain, floor});
    const V factor = kInverse ? terms.reciprocal : terms.value;
    V z = affine_coupling_transform(x, factor, shift, t.shift_first, kInverse);
    V log_sum = keep_lanes(terms.log_sum, zero), log_product = keep_lanes(terms.log_product, one);
    if (t.mask) {
      const auto kept = load(t.mask + i) != zero;
      z = select(kept, x, z);
      log_sum = select(kept, zero, log_sum);
      log_product = select(kept, one, log_product);
    }
    store(t.z + i, z);
    log.sum += log_sum;
    log.product *= log_product;
  };
  int64_t i = begin;
  for (; i + V::kLanes <= end; i += V::kLanes) {
    for (const S* p : {t.x, t.raw, t.shift}) __builtin_prefetch(p + i + kPrefetch);
    __builtin_prefetch(t.z + i + kPrefetch, 1);
    step(
        i, [](const auto* p) { return load_lanes<T>(p); }, [](V v, V) { return v; },
        [](S* p, V v) { store_lanes(p, v); });
  }
  if (const int64_t rest = end - i; rest > 0) {
    const auto valid = V::first(rest);
    step(
        i, [rest](const auto* p) { return load_lanes<T>(p, rest); },
        [&valid](V v, V neutral) { return select(valid, v, neutral); },
        [rest](S* p, V v) { store_lanes(p, v, rest); });
  }
  return log;
}

// Returns the sum of log f over the tile, up to the sign of the direction.
template <typename S, typename T, typename Map, bool kInverse>
FLOWOPS_INLINE double forward_tile(const ForwardTile<S, T>& t) {
  Vec<T> total(0);
  for (int64_t i = 0; i < t.size; i += kMaxSpan<T>) {
    const auto terms = forward_span<S, T, Map, kInverse>(t, i, std::min(t.size, i + kMaxSpan<T>));
    total += terms.sum - log(terms.product);
  }
  return total.sum();
}

template <typename S, typename T>
void advance(ForwardTile<S, T>& tile, const ForwardStep& step) {
  tile.x += step.x;
  tile.raw += tile.raw ? step.raw : 0;
  tile.shift += step.shift;
  tile.z += step.z;
}

// Up to kLanes rows that are short enough for the product over all lanes not to overflow: their logs and sums
// cost more than their elements when taken row by row.
template <typename S, typename T, typename Map, bool kInverse>
void forward_short_rows(ForwardTile<S, T>& tile, const ForwardStep& step, int64_t count, double* totals) {
  using V = Vec<T>;
  V sums[V::kLanes], products[V::kLanes];
  for (int64_t row = 0; row < count; ++row) {
    const auto terms = forward_span<S, T, Map, kInverse>(tile, 0, tile.size);
    sums[row] = terms.sum, products[row] = terms.product;
    advance(tile, step);
  }
  // Always all lanes, so that a row's sum does not depend on its neighbours.
  std::fill(sums + count, sums + V::kLanes, V(0));
  std::fill(products + count, products + V::kLanes, V(1));
  const V total = reduce_rows(sums, [](V a, V b) { return a + b; }) -
                  log(reduce_rows(products, [](V a, V b) { return a * b; }));
  for (int64_t row = 0; row < count; ++row) totals[row] = total.lanes[row];
}

// The same tile of several samples in turn: short rows spend more on a call than on arithmetic.
template <typename S, typename T, typename Map, bool kInverse>
void forward_tiles(const ForwardTile<S, T>& first, const ForwardStep& step, int64_t samples, double* totals) {
  constexpr int64_t kRows = Vec<T>::kLanes;
  ForwardTile<S, T> tile = first;
  if (tile.size < kMaxLogFactors) {
    for (int64_t s = 0; s < samples; s += kRows) {
      forward_short_rows<S, T, Map, kInverse>(tile, step, std::min(kRows, samples - s), totals + s);
    }
    return;
  }
  for (int64_t s = 0; s < samples; ++s) {
    totals[s] = forward_tile<S, T, Map, kInverse>(tile);
    advance(tile, step);
  }
}

template <typename S, typename T>
struct BackwardTile {
  const S *grad_z, *saved, *raw;
  const T *amplitude, *mask;  // may be null
  S *grad_x, *grad_raw, *grad_shift;
  T* grad_amplitude;  // may be null
  int64_t size;
  const T* grad_logdet;
  bool shift_first;
  ScaleConstants constants;
};

// Elements from one sample to the next.
struct BackwardStep {
  int64_t grad_z, saved, raw, grad_x, grad_raw, grad_shift, grad_logdet;
};

template <typename S, typename T, typename Map, bool kInverse>
FLOWOPS_INLINE void backward_tile(const BackwardTile<S, T>& t) {
  using V = Vec<T>;
  const V grad_logdet(*t.grad_logdet), zero(0), limit(T(t.constants.limit));
  const V gain(T(t.constants.gain)), floor(T(t.constants.floor));
  const auto step = [&](int64_t i, auto load, auto store) {
    const V grad_z = load(t.grad_z + i);
    const V raw = load(t.raw + i), bound = t.amplitude ? load(t.amplitude + i) : limit;
    const auto terms = Map::template evaluate<V>({raw, bound, gain, floor});
    auto grad =
        affine_coupling_gradient(grad_z, grad_logdet, load(t.saved + i), terms, t.shift_first, kInverse);
    if (t.mask) {
      const auto kept = load(t.mask + i) != zero;
      grad.x = select(kept, grad_z, grad.x);
      grad.raw = select(kept, zero, grad.raw);
      grad.shift = select(kept, zero, grad.shift);
      grad.limit = select(kept, zero, grad.limit);
    }
    store(t.grad_x + i, grad.x);
    store(t.grad_raw + i, grad.raw);
    store(t.grad_shift + i, grad.shift);
    if (t.grad_amplitude) store(t.grad_amplitude + i, grad.limit);
  };
  int64_t i = 0;
  for (; i + V::kLanes <= t.size; i += V::kLanes) {
    for (const S* p : {t.grad_z, t.saved, t.raw}) __builtin_prefetch(p + i + kPrefetch);
    for (const S* p : {t.grad_x, t.grad_raw, t.grad_shift}) __builtin_prefetch(p + i + kPrefetch, 1);
    step(i, [](const auto* p) { return load_lanes<T>(p); }, [](auto* p, V v) { store_lanes(p, v); });
  }
  if (const int64_t rest = t.size - i; rest > 0) {
    step(
        i, [rest](const auto* p) { return load_lanes<T>(p, rest); },
        [rest](auto* p, V v) { store_lanes(p, v, rest); });
  }
}

// The same tile of several samples in turn.
template <typename S, typename T, typename Map, bool kInverse>
void backward_tiles(const BackwardTile<S, T>& first, const BackwardStep& step, int64_t samples) {
  BackwardTile<S, T> tile = first;  // a copy that the stores cannot alias
  for (int64_t s = 0; s < samples; ++s) {
    backward_tile<S, T, Map, kInverse>(tile);
    tile.grad_z += step.grad_z;
    tile.saved += step.saved;
    tile.raw += step.raw;
    tile.grad_x += step.grad_x;
    tile.grad_raw += step.grad_raw;
    tile.grad_shift += step.grad_shift;
    tile.grad_logdet += step.grad_logdet;
  }
}

template <typename S, typename T>
using ForwardFunction = void (*)(const ForwardTile<S, T>&, const ForwardStep&, int64_t samples,
                                 double* totals);
template <typename S, typename T>
using BackwardFunction = void (*)(const BackwardTile<S, T>&, const BackwardStep&, int64_t samples);

// Calls body with the type of the scale map.
template <typename Body>
auto with_scale(ScaleMap map, const Body& body) {
  switch (map) {
    case ScaleMap::kAdditive: return body(AdditiveScale{});
    case ScaleMap::kExp: return body(ExpScale{});
    case ScaleMap::kTanhExp: return body(TanhExpScale{});
    case ScaleMap::kSigmoid: return body(SigmoidScale{});
    case ScaleMap::kReciprocalSigmoid: return body(ReciprocalSigmoidScale{});
    case ScaleMap::kAtanExp: return body(AtanExpScale{});
    case ScaleMap::kSoftsignExp: return body(SoftsignExpScale{});
    case ScaleMap::kSoftplus: return body(SoftplusScale{});
    case ScaleMap::kFlooredSigmoid: return body(FlooredSigmoidScale{});
  }
  return decltype(body(ExpScale{})){};
}

template <typename S, typename T>
ForwardFunction<S, T> pick_forward(ScaleMap map, bool inverse) {
  return with_scale(map, [=](auto scale) -> ForwardFunction<S, T> {
    using Map = decltype(scale);
    return inverse ? forward_tiles<S, T, Map, true> : forward_tiles<S, T, Map, false>;
  });
}

// The backward of an additive coupling is composed in autograd: no arithmetic worth a kernel.
template <typename S, typename T>
BackwardFunction<S, T> pick_backward(ScaleMap map, bool inverse) {
  return with_scale(map, [=](auto scale) -> BackwardFunction<S, T> {
    using Map = decltype(scale);
    return inverse ? backward_tiles<S, T, Map, true> : backward_tiles<S, T, Map, false>;
  });
}

}  // namespace flowops
