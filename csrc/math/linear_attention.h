// Scalars of linear attention, and why one scan serves forward and backward. Torch-free.
//
// With features f(q), f(k) and the state S_i = S_0 + sum_{j <= i} f(k_j) v_j^T (every j where not causal):
//   n_i = S_i^T f(q_i),   out_i = n_i / (d_i + eps),   d_i the same with v_j = 1 and the state z.
// So d is one more column of n, z one of S: write v' = (v, 1), S' = (S, z), and
//   n' = scan(f(q), f(k), v'; S'_0).
// Upstream gradients g of out and R' of the last S' give, per row, n' the gradient
//   G' = (g r, -r <g, out>),   r = 1 / (d + eps)   (not normalised: (g, 0)),
// and since n' is linear in each of its factors, the gradients are scans too:
//   dL/df(q) = scan(G', v', f(k); S'_0^T)
//   dL/df(k) = scan(v', G', f(q); R'^T), in reversed time
//   dL/dv    = scan(f(k), f(q), G'; R'), in reversed time; its last state is dL/dS'_0.
// Where every row sees all others, all of them see the last state: the first scan starts with that of the
// forward pass, and the other two with dL/dS'_0, which is made once.
#pragma once

#include <cstdint>

#include "math/scalar.h"

namespace flowops {

enum class FeatureMap : int64_t { kElu, kRelu, kExp, kIdentity };
inline constexpr int64_t kFeatureMaps = 4;

// elu(x) + 1 without the cancellation of (exp(x) - 1) + 1. A NaN stays one in every map.
template <FeatureMap kMap, typename T>
FLOWOPS_HOST_DEVICE T feature(T x) {
  if constexpr (kMap == FeatureMap::kElu) {
    return select(x > T(0), x + T(1), exp(minimum(x, T(0))));
  } else if constexpr (kMap == FeatureMap::kRelu) {
    return select(x < T(0), T(0), x);
  } else if constexpr (kMap == FeatureMap::kExp) {
    return exp(x);
  } else {
    return x;
  }
}

template <FeatureMap kMap, typename T>
FLOWOPS_HOST_DEVICE T feature_gradient(T x) {
  if constexpr (kMap == FeatureMap::kElu) {
    return select(x > T(0), T(1), exp(minimum(x, T(0))));
  } else if constexpr (kMap == FeatureMap::kRelu) {
    return select(x > T(0), T(1), T(0));
  } else if constexpr (kMap == FeatureMap::kExp) {
    return exp(x);
  } else {
    return T(1);
  }
}

template <FeatureMap kMap>
struct FeatureMapTag {
  static constexpr FeatureMap kValue = kMap;
};

// Calls body with the map as a type.
template <typename Body>
FLOWOPS_HOST_DEVICE void with_feature_map(FeatureMap map, const Body& body) {
  switch (map) {
    case FeatureMap::kElu: return body(FeatureMapTag<FeatureMap::kElu>());
    case FeatureMap::kRelu: return body(FeatureMapTag<FeatureMap::kRelu>());
    case FeatureMap::kExp: return body(FeatureMapTag<FeatureMap::kExp>());
    case FeatureMap::kIdentity: return body(FeatureMapTag<FeatureMap::kIdentity>());
  }
}

}  // namespace flowops
