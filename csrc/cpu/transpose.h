// Square blocks of a matrix, transposed in registers.
#pragma once

#include <cstdint>
#include <utility>

#include "common/vec.h"

namespace flowops {

// Columns that are read from many rows at once. With more of them at a time, shuffles would outweigh what
// longer loads and stores save.
template <typename T>
inline constexpr int kColumnBlock = (kVectorBytes < 32 ? kVectorBytes : 32) / static_cast<int>(sizeof(T));

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

// Transposes each square of kRows lanes that the rows hold.
template <int kStep, typename T, int kRows>
FLOWOPS_INLINE void transpose_steps(Vec<T> (&rows)[kRows]) {
  if constexpr (kStep < kRows) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      if (i & kStep) continue;
      swap_blocks<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<Vec<T>::kLanes>());
    }
    transpose_steps<2 * kStep>(rows);
  }
}

// A vector of kColumnBlock values from each of as many rows as it holds, and back.
template <typename T>
FLOWOPS_INLINE Vec<T> load_blocks(const T* row, [[maybe_unused]] int64_t stride) {
#ifdef __AVX512F__
  const auto source = [&](int block) { return reinterpret_cast<const float*>(row + block * stride); };
  const __m512 first = _mm512_castps256_ps512(_mm256_loadu_ps(source(0)));
  const __m512 lanes = _mm512_insertf32x8(first, _mm256_loadu_ps(source(1)), 1);
  Vec<T> result;
  std::memcpy(&result.lanes, &lanes, sizeof(lanes));
  return result;
#else
  return Vec<T>::load(row);
#endif
}

template <typename T>
FLOWOPS_INLINE void store_blocks(Vec<T> value, T* row, [[maybe_unused]] int64_t stride) {
#ifdef __AVX512F__
  const auto target = [&](int block) { return reinterpret_cast<float*>(row + block * stride); };
  __m512 lanes;
  std::memcpy(&lanes, &value.lanes, sizeof(lanes));
  _mm256_storeu_ps(target(0), _mm512_castps512_ps256(lanes));
  _mm256_storeu_ps(target(1), _mm512_extractf32x8_ps(lanes, 1));
#else
  value.store(row);
#endif
}

}  // namespace detail

// kLanes rows of kLanes values.
template <typename T>
FLOWOPS_INLINE void transpose_square(Vec<T> (&rows)[Vec<T>::kLanes]) {
  detail::transpose_steps<1>(rows);
}

// kColumnBlock columns of kLanes rows, `stride` apart, as a vector of lanes each.
template <typename T>
FLOWOPS_INLINE void load_columns(const T* rows, int64_t stride, Vec<T> (&columns)[kColumnBlock<T>]) {
  constexpr int kBlock = kColumnBlock<T>;
  for (int i = 0; i < kBlock; ++i) columns[i] = detail::load_blocks(rows + i * stride, kBlock * stride);
  detail::transpose_steps<1>(columns);
}

template <typename T>
FLOWOPS_INLINE void store_columns(Vec<T> (&columns)[kColumnBlock<T>], T* rows, int64_t stride) {
  constexpr int kBlock = kColumnBlock<T>;
  detail::transpose_steps<1>(columns);
  for (int i = 0; i < kBlock; ++i) detail::store_blocks(columns[i], rows + i * stride, kBlock * stride);
}

}  // namespace flowops
