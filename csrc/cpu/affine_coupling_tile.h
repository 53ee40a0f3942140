// The arithmetic of affine_coupling over contiguous tiles, for every scale map and direction.
#pragma once

#include <cstdint>

#include "common/vec.h"
#include "math/affine_coupling.h"
#include "ops/affine_coupling_params.h"

namespace flowops {

template <typename T>
struct ForwardTile {
  const T *x, *raw, *shift, *amplitude, *mask;  // the last two may be null
  T* z;
  int64_t size;
  ShiftPlacement placement;
};

// Elements from one sample to the next.
struct ForwardStep {
  int64_t x, raw, shift, z;
};

// Returns the sum of log f over the tile.
template <typename T, typename Map, bool kInverse>
FLOWOPS_INLINE double forward_tile(const ForwardTile<T>& t) {
  using V = Vec<T>;
  const V first(t.placement.first), last(t.placement.last), zero(0), one(1);
  V sum(0), product(1), total(0);
  const auto step = [&](int64_t i, auto load, auto keep_lanes, auto store) {
    const V x = load(t.x + i), shift = load(t.shift + i);
    const V raw = t.raw ? load(t.raw + i) : zero;
    const auto terms = Map::evaluate(raw, t.amplitude ? load(t.amplitude + i) : zero);
    const V factor = kInverse ? terms.reciprocal : terms.value;
    V z = affine_coupling_transform(x, factor, first * shift, last * shift);
    V log_sum = keep_lanes(terms.log_sum, zero), log_product = keep_lanes(terms.log_product, one);
    if (t.mask) {
      const auto kept = load(t.mask + i) != zero;
      z = select(kept, x, z);
      log_sum = select(kept, zero, log_sum);
      log_product = select(kept, one, log_product);
    }
    store(t.z + i, z);
    sum += log_sum;
    product *= log_product;
  };
  int64_t i = 0, factors = 0;
  for (; i + V::kLanes <= t.size; i += V::kLanes) {
    step(i, [](const T* p) { return V::load(p); }, [](V v, V) { return v; }, [](T* p, V v) { v.store(p); });
    if (++factors == kMaxLogFactors - 1) {
      total += sum - log(product);
      sum = zero;
      product = one;
      factors = 0;
    }
  }
  if (const int64_t rest = t.size - i; rest > 0) {
    const auto valid = V::first(rest);
    step(
        i, [rest](const T* p) { return V::load(p, rest); },
        [&valid](V v, V neutral) { return select(valid, v, neutral); },
        [rest](T* p, V v) { v.store(p, rest); });
  }
  return (total + (sum - log(product))).sum();
}

// The same tile of several samples in turn: short rows spend more on a call than on arithmetic.
template <typename T, typename Map, bool kInverse>
void forward_tiles(const ForwardTile<T>& first, const ForwardStep& step, int64_t samples, double* totals) {
  ForwardTile<T> tile = first;  // a copy that the stores cannot alias
  for (int64_t s = 0; s < samples; ++s) {
    totals[s] = forward_tile<T, Map, kInverse>(tile);
    tile.x += step.x;
    tile.raw += tile.raw ? step.raw : 0;
    tile.shift += step.shift;
    tile.z += step.z;
  }
}

template <typename T>
struct BackwardTile {
  const T *grad_z, *saved, *raw, *amplitude, *mask;    // the last two may be null
  T *grad_x, *grad_raw, *grad_shift, *grad_amplitude;  // the last may be null
  int64_t size;
  const T* grad_logdet;
  bool shift_first;
};

// Elements from one sample to the next.
struct BackwardStep {
  int64_t grad_z, saved, raw, grad_x, grad_raw, grad_shift, grad_logdet;
};

template <typename T, typename Map, bool kInverse>
FLOWOPS_INLINE void backward_tile(const BackwardTile<T>& t) {
  using V = Vec<T>;
  const V grad_logdet(*t.grad_logdet), zero(0);
  const auto step = [&](int64_t i, auto load, auto store) {
    const V grad_z = load(t.grad_z + i);
    const auto terms = Map::evaluate(load(t.raw + i), t.amplitude ? load(t.amplitude + i) : zero);
    auto grad =
        affine_coupling_gradient(grad_z, grad_logdet, load(t.saved + i), terms, t.shift_first, kInverse);
    if (t.mask) {
      const auto kept = load(t.mask + i) != zero;
      grad.x = select(kept, grad_z, grad.x);
      grad.raw = select(kept, zero, grad.raw);
      grad.shift = select(kept, zero, grad.shift);
      grad.amplitude = select(kept, zero, grad.amplitude);
    }
    store(t.grad_x + i, grad.x);
    store(t.grad_raw + i, grad.raw);
    store(t.grad_shift + i, grad.shift);
    if (t.grad_amplitude) store(t.grad_amplitude + i, grad.amplitude);
  };
  int64_t i = 0;
  for (; i + V::kLanes <= t.size; i += V::kLanes) {
    step(i, [](const T* p) { return V::load(p); }, [](T* p, V v) { v.store(p); });
  }
  if (const int64_t rest = t.size - i; rest > 0) {
    step(i, [rest](const T* p) { return V::load(p, rest); }, [rest](T* p, V v) { v.store(p, rest); });
  }
}

// The same tile of several samples in turn.
template <typename T, typename Map, bool kInverse>
void backward_tiles(const BackwardTile<T>& first, const BackwardStep& step, int64_t samples) {
  BackwardTile<T> tile = first;  // a copy that the stores cannot alias
  for (int64_t s = 0; s < samples; ++s) {
    backward_tile<T, Map, kInverse>(tile);
    tile.grad_z += step.grad_z;
    tile.saved += step.saved;
    tile.raw += step.raw;
    tile.grad_x += step.grad_x;
    tile.grad_raw += step.grad_raw;
    tile.grad_shift += step.grad_shift;
    tile.grad_logdet += step.grad_logdet;
  }
}

template <typename T>
using ForwardFunction = void (*)(const ForwardTile<T>&, const ForwardStep&, int64_t samples, double* totals);
template <typename T>
using BackwardFunction = void (*)(const BackwardTile<T>&, const BackwardStep&, int64_t samples);

template <typename T>
ForwardFunction<T> pick_forward(ScaleMap map, bool inverse) {
  switch (map) {
    case ScaleMap::kAdditive:
      return inverse ? forward_tiles<T, AdditiveScale, true> : forward_tiles<T, AdditiveScale, false>;
    case ScaleMap::kExp:
      return inverse ? forward_tiles<T, ExpScale, true> : forward_tiles<T, ExpScale, false>;
    case ScaleMap::kTanhExp:
      return inverse ? forward_tiles<T, TanhExpScale, true> : forward_tiles<T, TanhExpScale, false>;
    case ScaleMap::kSigmoid:
      return inverse ? forward_tiles<T, SigmoidScale, true> : forward_tiles<T, SigmoidScale, false>;
  }
  return nullptr;
}

template <typename T>
BackwardFunction<T> pick_backward(ScaleMap map, bool inverse) {
  switch (map) {
    case ScaleMap::kAdditive: break;  // composed in autograd: no arithmetic worth a kernel
    case ScaleMap::kExp:
      return inverse ? backward_tiles<T, ExpScale, true> : backward_tiles<T, ExpScale, false>;
    case ScaleMap::kTanhExp:
      return inverse ? backward_tiles<T, TanhExpScale, true> : backward_tiles<T, TanhExpScale, false>;
    case ScaleMap::kSigmoid:
      return inverse ? backward_tiles<T, SigmoidScale, true> : backward_tiles<T, SigmoidScale, false>;
  }
  return nullptr;
}

}  // namespace flowops
