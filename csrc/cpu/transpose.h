// Square blocks of a matrix, transposed in registers.
#pragma once

#include <cstdint>
#include <utility>

#include "common/vec.h"

namespace flowops {

namespace detail {

// Swaps, between rows `kStep` apart, the off-diagonal blocks of `kStep` lanes.
template <int kStep, typename T, size_t... kLane>
FLOWOPS_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, std::index_sequence<kLane...>) {
  constexpr size_t kLanes = Vec<T>::kLanes;
#ifdef __clang__
  const auto first =
      __builtin_shufflevector(a.lanes, b.lanes, (kLane & kStep ? kLanes + kLane - kStep : kLane)...);
  const auto second =
      __builtin_shufflevector(a.lanes, b.lanes, (kLane & kStep ? kLanes + kLane : kLane + kStep)...);
#else
  using Bits = typename Vec<T>::Bits;
  constexpr Bits kFirst = {(kLane & kStep ? kLanes + kLane - kStep : kLane)...};
  constexpr Bits kSecond = {(kLane & kStep ? kLanes + kLane : kLane + kStep)...};
  const auto first = __builtin_shuffle(a.lanes, b.lanes, kFirst);
  const auto second = __builtin_shuffle(a.lanes, b.lanes, kSecond);
#endif
  a.lanes = first, b.lanes = second;
}

template <int kStep, typename T>
FLOWOPS_INLINE void transpose_steps(Vec<T> (&rows)[Vec<T>::kLanes]) {
  if constexpr (kStep < Vec<T>::kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < Vec<T>::kLanes; ++i) {
      if (i & kStep) continue;
      swap_blocks<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<Vec<T>::kLanes>());
    }
    transpose_steps<2 * kStep>(rows);
  }
}

}  // namespace detail

// kLanes rows of kLanes values.
template <typename T>
FLOWOPS_INLINE void transpose_square(Vec<T> (&rows)[Vec<T>::kLanes]) {
  detail::transpose_steps<1>(rows);
}

// The same in memory; strides are between rows.
template <typename T>
inline void transpose_square(const T* source, int64_t source_stride, T* target, int64_t target_stride) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = Vec<T>::load(source + i * source_stride);
  transpose_square(rows);
  for (int i = 0; i < kLanes; ++i) rows[i].store(target + i * target_stride);
}

}  // namespace flowops
