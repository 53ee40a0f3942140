// Products of the dense rows of a matrix of the storage type with vectors of the arithmetic type T.
#pragma once

#include <ATen/OpMathType.h>

#include <algorithm>
#include <cstdint>

#include "cpu/row.h"

namespace flowops {

// Rows that are multiplied together, so that one load of the vector serves all.
inline constexpr int64_t kGroupedRows = 4;

// <a, b>, four sums at a time.
template <typename A, typename B>
auto dot(const A* a, const B* b, int64_t size) {
  using T = at::opmath_type<A>;
  constexpr int kSums = 4, kLanes = Vec<T>::kLanes;
  Vec<T> sums[kSums];
  for (auto& sum : sums) sum = Vec<T>(T(0));
  int64_t j = 0;
  for (; j + kSums * kLanes <= size; j += kSums * kLanes) {
    for (int s = 0; s < kSums; ++s) {
      sums[s] += load_lanes<T>(a + j + s * kLanes) * load_lanes<T>(b + j + s * kLanes);
    }
  }
  for (; j + kLanes <= size; j += kLanes) sums[0] += load_lanes<T>(a + j) * load_lanes<T>(b + j);
  if (const int64_t rest = size - j; rest > 0) {
    sums[1] += load_lanes<T>(a + j, rest) * load_lanes<T>(b + j, rest);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

template <int kRows, typename scalar_t, typename T>
void multiply_group(const scalar_t* rows, int64_t columns, const T* x, T* products) {
  constexpr int kSums = 2, kLanes = Vec<T>::kLanes;
  Vec<T> sums[kSums][kRows];
  for (auto& group : sums) {
    for (auto& sum : group) sum = Vec<T>(T(0));
  }
  int64_t j = 0;
  for (; j + kSums * kLanes <= columns; j += kSums * kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const auto factor = Vec<T>::load(x + j + s * kLanes);
      for (int r = 0; r < kRows; ++r) {
        sums[s][r] += load_lanes<T>(rows + r * columns + j + s * kLanes) * factor;
      }
    }
  }
  for (; j < columns; j += kLanes) {
    const int64_t rest = std::min<int64_t>(kLanes, columns - j);
    const auto factor = Vec<T>::load(x + j, rest);
    for (int r = 0; r < kRows; ++r) {
      sums[0][r] += load_lanes<T>(rows + r * columns + j, rest) * factor;
    }
  }
  for (int r = 0; r < kRows; ++r) products[r] = (sums[0][r] + sums[1][r]).sum();
}

template <int kRows, typename scalar_t, typename T>
void add_group(const scalar_t* rows, int64_t columns, const T* factors, T* sums) {
  Vec<T> factor[kRows];
  for (int r = 0; r < kRows; ++r) factor[r] = Vec<T>(factors[r]);
  int64_t j = 0;
  for (; j + Vec<T>::kLanes <= columns; j += Vec<T>::kLanes) {
    auto sum = Vec<T>::load(sums + j);
    for (int r = 0; r < kRows; ++r) sum += factor[r] * load_lanes<T>(rows + r * columns + j);
    sum.store(sums + j);
  }
  if (const int64_t rest = columns - j; rest > 0) {
    auto sum = Vec<T>::load(sums + j, rest);
    for (int r = 0; r < kRows; ++r) sum += factor[r] * load_lanes<T>(rows + r * columns + j, rest);
    sum.store(sums + j, rest);
  }
}

// products[i] = <row i, x>.
template <typename scalar_t, typename T>
void multiply_rows(const scalar_t* rows, int64_t count, int64_t columns, const T* x, T* products) {
  int64_t i = 0;
  for (; i + kGroupedRows <= count; i += kGroupedRows) {
    multiply_group<kGroupedRows>(rows + i * columns, columns, x, products + i);
  }
  for (; i < count; ++i) multiply_group<1>(rows + i * columns, columns, x, products + i);
}

// sums += factors[i] times row i, over all rows.
template <typename scalar_t, typename T>
void add_rows(const scalar_t* rows, int64_t count, int64_t columns, const T* factors, T* sums) {
  int64_t i = 0;
  for (; i + kGroupedRows <= count; i += kGroupedRows) {
    add_group<kGroupedRows>(rows + i * columns, columns, factors + i, sums);
  }
  for (; i < count; ++i) add_group<1>(rows + i * columns, columns, factors + i, sums);
}

// target = factor row.
template <typename scalar_t, typename T>
void scale_row(const scalar_t* row, int64_t size, T factor, scalar_t* target) {
  constexpr int kLanes = Vec<T>::kLanes;
  const Vec<T> factors(factor);
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) store_lanes(target + j, load_lanes<T>(row + j) * factors);
  if (const int64_t rest = size - j; rest > 0) {
    store_lanes(target + j, load_lanes<T>(row + j, rest) * factors, rest);
  }
}

// target = factor row + along x.
template <typename scalar_t, typename T>
void scale_and_add_row(const scalar_t* row, int64_t size, T factor, const T* x, T along, scalar_t* target) {
  constexpr int kLanes = Vec<T>::kLanes;
  const Vec<T> factors(factor), alongs(along);
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) {
    store_lanes(target + j, load_lanes<T>(row + j) * factors + Vec<T>::load(x + j) * alongs);
  }
  if (const int64_t rest = size - j; rest > 0) {
    const auto value = load_lanes<T>(row + j, rest) * factors + Vec<T>::load(x + j, rest) * alongs;
    store_lanes(target + j, value, rest);
  }
}

}  // namespace flowops
