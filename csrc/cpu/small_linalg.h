// LU factorisation and inversion of one matrix of moderate size, in cache-friendly blocks. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/small_gemm.h"

namespace flowops {

// Columns eliminated, or rows solved for, at a time: a multiple of the lanes of every instruction set.
inline constexpr int64_t kPanel = 16;

// A square matrix whose rows are padded with zeros to whole vectors.
template <typename T>
class PaddedMatrix {
 public:
  explicit PaddedMatrix(int64_t size)
      : size_(size), row_((size + kPanel - 1) / kPanel * kPanel), data_(size * row_) {}

  // Element (i, j) is element_of(i, j).
  template <typename ElementOf>
  PaddedMatrix(int64_t size, const ElementOf& element_of) : PaddedMatrix(size) {
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) (*this)(i, j) = element_of(i, j);
    }
  }

  int64_t size() const { return size_; }
  int64_t row() const { return row_; }
  T* operator[](int64_t i) { return data_.data() + i * row_; }
  const T* operator[](int64_t i) const { return data_.data() + i * row_; }
  T& operator()(int64_t i, int64_t j) { return data_[i * row_ + j]; }
  const T& operator()(int64_t i, int64_t j) const { return data_[i * row_ + j]; }
  // As a left factor, from element (i, k) on; of the transpose, from its element (i, k) on.
  RowMajor<T> left(int64_t i = 0, int64_t k = 0) const { return {(*this)[i] + k, row_}; }
  ColumnMajor<T> transposed_left(int64_t i = 0, int64_t k = 0) const { return {(*this)[k] + i, row_}; }

 private:
  int64_t size_, row_;
  AlignedVector<T> data_;
};

// Columns of a padded matrix that hold the first `count`.
inline int64_t padded_columns(int64_t count) { return (count + kPanel - 1) / kPanel * kPanel; }

// target[first, last) -= factor source, over columns.
template <typename T>
void subtract_row(T factor, const T* source, T* target, int64_t first, int64_t last) {
  for (int64_t j = first; j < last; ++j) target[j] -= factor * source[j];
}

// Factors one panel of columns [start, end) with partial pivoting, swapping whole rows.
template <typename T>
void factor_panel(PaddedMatrix<T>& a, int64_t start, int64_t end, std::vector<int64_t>& pivot) {
  const int64_t n = a.size();
  for (int64_t k = start; k < end; ++k) {
    int64_t best = k;
    for (int64_t i = k + 1; i < n; ++i) {
      if (std::abs(a(i, k)) > std::abs(a(best, k))) best = i;
    }
    if (best != k) {
      std::swap_ranges(a[k], a[k] + n, a[best]);
      std::swap(pivot[k], pivot[best]);
    }
    if (a(k, k) == T(0)) continue;
    const T reciprocal = T(1) / a(k, k);
    for (int64_t i = k + 1; i < n; ++i) {
      const T factor = a(i, k) * reciprocal;
      a(i, k) = factor;
      subtract_row(factor, a[k], a[i], k + 1, end);
    }
  }
}

// Replaces `a` by its factors, L (unit diagonal, not stored) below and U on and above the diagonal:
// row i of L U is row pivot[i] of the matrix given. Returns log|det|, -inf for a singular matrix.
template <typename T>
T lu_factor(PaddedMatrix<T>& a, std::vector<int64_t>& pivot) {
  const int64_t n = a.size();
  pivot.resize(n);
  for (int64_t i = 0; i < n; ++i) pivot[i] = i;
  for (int64_t start = 0; start < n; start += kPanel) {
    const int64_t end = std::min(n, start + kPanel);
    factor_panel(a, start, end, pivot);
    if (end == n) break;
    for (int64_t i = start + 1; i < end; ++i) {
      for (int64_t k = start; k < i; ++k) subtract_row(a(i, k), a[k], a[i], end, a.row());
    }
    gemm<GemmStart::kTarget, true>(n - end, a.row() - end, end - start, a.left(end, start), a[start] + end,
                                   a.row(), a[end] + end, a.row());
  }
  T logdet = 0;
  for (int64_t i = 0; i < n; ++i) logdet += std::log(std::abs(a(i, i)));
  return logdet;
}

// (L U)^-1 for factors stored as lu_factor leaves them.
template <typename T>
PaddedMatrix<T> lu_inverse(const PaddedMatrix<T>& lu) {
  const int64_t n = lu.size();
  PaddedMatrix<T> x(n);
  for (int64_t start = 0; start < n; start += kPanel) {  // L x = I; x is lower triangular
    const int64_t end = std::min(n, start + kPanel), columns = padded_columns(end);
    gemm<GemmStart::kTarget, true>(end - start, columns, start, lu.left(start), x[0], x.row(), x[start],
                                   x.row());
    for (int64_t i = start; i < end; ++i) {
      x(i, i) = T(1);
      for (int64_t k = start; k < i; ++k) subtract_row(lu(i, k), x[k], x[i], 0, columns);
    }
  }
  for (int64_t start = (n - 1) / kPanel * kPanel; start >= 0; start -= kPanel) {  // U x = L^-1
    const int64_t end = std::min(n, start + kPanel);
    if (end < n) {
      gemm<GemmStart::kTarget, true>(end - start, x.row(), n - end, lu.left(start, end), x[end], x.row(),
                                     x[start], x.row());
    }
    for (int64_t i = end - 1; i >= start; --i) {
      for (int64_t k = i + 1; k < end; ++k) subtract_row(lu(i, k), x[k], x[i], 0, x.row());
      const T reciprocal = T(1) / lu(i, i);
      for (int64_t j = 0; j < n; ++j) x(i, j) *= reciprocal;
    }
  }
  return x;
}

}  // namespace flowops
