// A loop over contiguous elements, a vector at a time. Torch-free.
#pragma once

#include <cstdint>

#include "common/vec.h"

namespace flowops {

// Elements that loads and stores are announced ahead: at the end of a tile, the next one's where they lie
// in order. An address behind the last element does no harm.
inline constexpr int64_t kPrefetch = 512;

// Calls step(offset, load, store) for each vector of `size` elements; the last may be short.
template <typename T, typename Step>
FLOWOPS_INLINE void for_each_lanes(int64_t size, const Step& step) {
  using V = Vec<T>;
  const auto load = [](const T* p) {
    __builtin_prefetch(p + kPrefetch);
    return V::load(p);
  };
  const auto store = [](T* p, V v) {
    __builtin_prefetch(p + kPrefetch, 1);
    v.store(p);
  };
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) {
    step(i, load, store);
  }
  if (const int64_t rest = size - i; rest > 0) {
    step(i, [rest](const T* p) { return V::load(p, rest); }, [rest](T* p, V v) { v.store(p, rest); });
  }
}

}  // namespace flowops
