// Register-blocked products of small matrices whose columns lie in vectors: the inner loops of the 1x1
// convolution, of the assembly of its weight and of the LU factorisation. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/vec.h"
#include "cpu/transpose.h"

namespace flowops {

// Rows and vectors of one block of accumulators; with the operands they fill the registers of each
// instruction set.
inline constexpr int kGemmRows = kVectorBytes >= 32 ? 6 : 4;
inline constexpr int kGemmVectors = kVectorBytes == 64 ? 4 : 2;
// Fewer vectors leave room for more rows: few sums would wait for each other.
template <int kVectors>
inline constexpr int kRowsBeside = kVectors > 1         ? kGemmRows* kGemmVectors / kVectors
                                   : kVectorBytes == 64 ? 16
                                                        : 8;
inline constexpr int kDotRows = 4;
inline constexpr int kDotColumns = kVectorBytes == 64 ? 4 : 2;

enum class GemmStart { kZero, kBias, kTarget };

// A left factor, read one element at a time: element (i, k), and the factor from row i on, or from column k
// on. From a column that is a multiple of kRun, the next kRun ones can be read.
template <typename T>
struct RowMajor {
  static constexpr int kRun = 1;
  const T* data;
  int64_t stride;
  T operator()(int64_t i, int64_t k) const { return data[i * stride + k]; }
  RowMajor from_row(int64_t i) const { return {data + i * stride, stride}; }
  RowMajor from_column(int64_t k) const { return {data + k, stride}; }
};

template <typename T>
struct ColumnMajor {
  static constexpr int kRun = 1;
  const T* data;
  int64_t stride;
  T operator()(int64_t i, int64_t k) const { return data[i + k * stride]; }
  ColumnMajor from_row(int64_t i) const { return {data + i, stride}; }
  ColumnMajor from_column(int64_t k) const { return {data + k * stride, stride}; }
};

// Its columns are the lanes of vectors, each with its own address; `start` is that of the first row.
template <typename T>
struct LaneColumns {
  static constexpr int kRun = Vec<T>::kLanes;
  const T* const* vectors;
  int64_t start, stride;
  LaneColumns from_row(int64_t i) const { return {vectors, start + i * stride, stride}; }
  RowMajor<T> from_column(int64_t k) const { return {vectors[k / kRun] + start, stride}; }
};

// c[v] = start + a b[v], or start - a b[v], for kRows rows and kVectors vectors of columns. Each vector has
// its own address, so that a block may take its columns from several samples. `bias` has one value a row.
// kLower: row i has 1 + i terms more than `depth`; others are not read. The start is added last: compilers
// spill sums that begin as loaded values.
template <GemmStart kStart, bool kSubtract, int kRows, int kVectors, bool kLower = false, typename Left,
          typename T>
inline void gemm_block(int64_t depth, Left a, const T* const* b, int64_t b_row, T* const* c, int64_t c_row,
                       const T* bias) {
  Vec<T> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; k += Left::kRun) {
    const auto run = a.from_column(k);
#pragma GCC unroll 16
    for (int l = 0; l < Left::kRun; ++l) {
      Vec<T> columns[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) columns[v] = Vec<T>::load(b[v] + (k + l) * b_row);
#pragma GCC unroll 32
      for (int i = 0; i < kRows; ++i) {
        const T value = run(i, l);
        const Vec<T> factor(kSubtract ? -value : value);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[i][v] += factor * columns[v];
      }
    }
  }
  if constexpr (kLower) {
#pragma GCC unroll 32
    for (int l = 0; l < kRows; ++l) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const auto column = Vec<T>::load(b[v] + (depth + l) * b_row);
#pragma GCC unroll 32
        for (int i = l; i < kRows; ++i) sum[i][v] += Vec<T>(a(i, depth + l)) * column;
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      T* const target = c[v] + i * c_row;
      if constexpr (kStart == GemmStart::kBias) sum[i][v] += Vec<T>(bias[i]);
      if constexpr (kStart == GemmStart::kTarget) sum[i][v] += Vec<T>::load(target);
      sum[i][v].store(target);
    }
  }
}

// Calls body(start, size) for blocks that cover [0, count); the sizes are compile-time constants, kMax
// mostly.
template <int kMax, typename Body>
inline void in_blocks(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kMax <= count; i += kMax) body(i, std::integral_constant<int, kMax>());
  if (kMax > 8 && i + 8 <= count) body(i, std::integral_constant<int, 8>()), i += 8;
  if (kMax > 4 && i + 4 <= count) body(i, std::integral_constant<int, 4>()), i += 4;
  if (kMax == 4 && i + 3 == count) body(i, std::integral_constant<int, 3>()), i += 3;
  if (kMax > 2 && i + 2 <= count) body(i, std::integral_constant<int, 2>()), i += 2;
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>());
}

// gemm_block for any number of rows.
template <GemmStart kStart, bool kSubtract, int kVectors, typename Left, typename T>
inline void gemm_rows(int64_t rows, int64_t depth, Left a, const T* const* b, int64_t b_row, T* const* c,
                      int64_t c_row, const T* bias) {
  in_blocks<kRowsBeside<kVectors>>(rows, [&](int64_t i, auto count) {
    T* target[kVectors];
    for (int v = 0; v < kVectors; ++v) target[v] = c[v] + i * c_row;
    gemm_block<kStart, kSubtract, decltype(count)::value, kVectors>(depth, a.from_row(i), b, b_row, target,
                                                                    c_row, bias ? bias + i : nullptr);
  });
}

// c (rows, columns) = or += or -= a b for whole matrices; `columns` is a multiple of the lanes.
template <GemmStart kStart, bool kSubtract = false, typename Left, typename T>
inline void gemm(int64_t rows, int64_t columns, int64_t depth, Left a, const T* b, int64_t b_row, T* c,
                 int64_t c_row, const T* bias = nullptr) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  in_blocks<kGemmVectors>(columns / kLanes, [&](int64_t j, auto count) {
    constexpr int kCount = decltype(count)::value;
    const T* source[kCount];
    T* target[kCount];
    for (int v = 0; v < kCount; ++v) source[v] = b + (j + v) * kLanes, target[v] = c + (j + v) * kLanes;
    gemm_rows<kStart, kSubtract, kCount>(rows, depth, a, source, b_row, target, c_row, bias);
  });
}

// c_i += sum_{j <= i} a_ij b_j. Terms with j > i are not read: 0 * NaN is NaN.
template <typename Left, typename T>
inline void lower_gemm(int64_t rows, int64_t columns, Left a, const T* b, int64_t b_row, T* c,
                       int64_t c_row) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  in_blocks<kGemmVectors>(columns / kLanes, [&](int64_t j, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    in_blocks<kRowsBeside<kVectors>>(rows, [&](int64_t i, auto count) {
      const T* source[kVectors];
      T* target[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        source[v] = b + (j + v) * kLanes, target[v] = c + i * c_row + (j + v) * kLanes;
      }
      gemm_block<GemmStart::kTarget, false, decltype(count)::value, kVectors, true>(
          i, a.from_row(i), source, b_row, target, c_row, static_cast<const T*>(nullptr));
    });
  });
}

// out (kRows, kColumns) += sum over vectors v and their lanes of a[v] (row i) b[v] (row j). Rows are counted
// from a_start and b_start, in elements.
template <int kRows, int kColumns, typename T>
inline void dot_block(int64_t vectors, const T* const* a, int64_t a_start, int64_t a_row, const T* const* b,
                      int64_t b_start, int64_t b_row, T* out, int64_t out_row) {
  Vec<T> sum[kRows][kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) sum[i][j] = Vec<T>(T(0));
  }
  for (int64_t v = 0; v < vectors; ++v) {
    Vec<T> right[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) right[j] = Vec<T>::load(b[v] + b_start + j * b_row);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> left = Vec<T>::load(a[v] + a_start + i * a_row);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) sum[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) out[i * out_row + j] += sum[i][j].sum();
  }
}

// out (rows, columns) += a b^T over the lanes of all vectors; row i of vector v starts at a[v] + i * a_row.
template <typename T>
inline void dot(int64_t rows, int64_t columns, int64_t vectors, const T* const* a, int64_t a_row,
                const T* const* b, int64_t b_row, T* out, int64_t out_row) {
  in_blocks<kDotRows>(rows, [&](int64_t i, auto row_count) {
    in_blocks<kDotColumns>(columns, [&](int64_t j, auto column_count) {
      dot_block<decltype(row_count)::value, decltype(column_count)::value>(
          vectors, a, i * a_row, a_row, b, j * b_row, b_row, out + i * out_row + j, out_row);
    });
  });
}

// Row l of vector v in `target` holds lane l of all rows of `source`, padded with zeros to whole vectors:
// target[(v * lanes + l) * target_row + i] = source[v][i * source_row + l].
template <typename T>
inline void transpose(int64_t rows, int64_t vectors, const T* const* source, int64_t source_row, T* target,
                      int64_t target_row) {
  constexpr int kLanes = Vec<T>::kLanes;
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t start = 0; start < rows; start += kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = start + i < rows ? Vec<T>::load(source[v] + (start + i) * source_row) : Vec<T>(T(0));
      }
      transpose_square(square);
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) square[l].store(target + (v * kLanes + l) * target_row + start);
    }
  }
}

}  // namespace flowops
