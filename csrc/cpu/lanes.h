// A loop over contiguous elements, a vector at a time. Torch-free.
#pragma once

#include <cstdint>

#include "common/vec.h"

namespace flowops {

// Calls step(offset, load, store) for each vector of `size` elements; the last may be short.
template <typename T, typename Step>
FLOWOPS_INLINE void for_each_lanes(int64_t size, const Step& step) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) {
    step(i, [](const T* p) { return V::load(p); }, [](T* p, V v) { v.store(p); });
  }
  if (const int64_t rest = size - i; rest > 0) {
    step(i, [rest](const T* p) { return V::load(p, rest); }, [rest](T* p, V v) { v.store(p, rest); });
  }
}

}  // namespace flowops
