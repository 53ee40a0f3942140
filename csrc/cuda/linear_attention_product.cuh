// Products of matrices in shared memory by a whole block: float32 on tensor cores in TF32, which keeps the
// range of float32 (exp of a float16 does not overflow) and more bits of features and state than the 16-bit
// types would; float64, and any type on GPUs before sm_80, one fused multiply-add after another.
#pragma once

#include <type_traits>

#include "common/mma.cuh"
#include "cuda/linear_attention_launch.h"

namespace flowops {

// Rows, or columns where transposed, lie `stride` elements apart. Which way it lies is part of the type, so
// that most offsets are known when compiled.
template <typename T, bool kTransposed = false>
struct Matrix {
  T* data;
  int stride;
  __device__ T& at(int i, int j) const { return data[kTransposed ? j * stride + i : i * stride + j]; }
  __device__ Matrix<T, !kTransposed> transposed() const { return {data, stride}; }
};

// Which elements of target = a b, or target += a b, are products at all. Those above the diagonal of a are
// not multiplied: 0 * NaN is NaN.
enum class Triangle {
  kNone,
  kLowerA,       // a is taken to be zero above the diagonal
  kLowerTarget,  // the target is wanted on and below the diagonal; above, only to be a of kLowerA
};

// Rows and columns of a product that one thread computes at a time.
constexpr int kProductTile = 4;

template <bool kAdd, Triangle kTriangle, typename A, typename B, typename T>
__device__ void multiply_add(int rows, int columns, int depth, A a, B b, Matrix<T> target) {
  const int across = ceil_div(columns, kProductTile);
  const int tiles = ceil_div(rows, kProductTile) * across;
  for (int tile = threadIdx.x; tile < tiles; tile += kAttentionThreads) {
    const int first = tile / across * kProductTile, column = tile % across;
    T sum[kProductTile][kProductTile];
#pragma unroll
    for (int r = 0; r < kProductTile; ++r) {
#pragma unroll
      for (int c = 0; c < kProductTile; ++c) sum[r][c] = T(0);
    }
    const int limit = kTriangle == Triangle::kLowerA ? min(depth, first + kProductTile) : depth;
    for (int k = 0; k < limit; ++k) {
      T left[kProductTile], right[kProductTile];
#pragma unroll
      for (int r = 0; r < kProductTile; ++r) left[r] = a.at(min(first + r, rows - 1), k);
#pragma unroll
      for (int c = 0; c < kProductTile; ++c) right[c] = b.at(k, min(column + c * across, columns - 1));
#pragma unroll
      for (int r = 0; r < kProductTile; ++r) {
        if (kTriangle == Triangle::kLowerA && k > first + r) continue;
#pragma unroll
        for (int c = 0; c < kProductTile; ++c) sum[r][c] += left[r] * right[c];
      }
    }
#pragma unroll
    for (int r = 0; r < kProductTile; ++r) {
#pragma unroll
      for (int c = 0; c < kProductTile; ++c) {
        const int i = first + r, j = column + c * across;
        if (i >= rows || j >= columns) continue;
        T& element = target.at(i, j);
        element = kAdd ? element + sum[r][c] : sum[r][c];
      }
    }
  }
}

// Products of one instruction that a warp holds side by side.
constexpr int kMmasAtOnce = 5;

// Larger magnitudes may be infinite in TF32.
__device__ inline bool finite_in_tf32(float x) { return x < 0x1p127f && x > -0x1p127f; }

// What one warp computes of a product at a time, tiles side by side.
class WarpTiles {
 public:
  __device__ WarpTiles(int row, int column, int tiles)
      : row_(row),
        column_(column),
        tiles_(tiles),
        group_(threadIdx.x % kWarpThreads / 4),
        place_(threadIdx.x % 4) {}

  // Calls body(sum, row, column) for every sum that this lane holds.
  template <typename Body>
  __device__ void for_each(const Body& body) {
#pragma unroll
    for (int tile = 0; tile < kMmasAtOnce; ++tile) {
      if (tile >= tiles_) continue;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        body(sums_[tile].values[part], row_ + group_ + part / 2 * 8,
             column_ + tile * kMmaColumns + 2 * place_ + part % 2);
      }
    }
  }

  // Adds the columns of a and the rows of b from k on that one instruction takes; of b, what is not finite
  // counts as zero with kFinite.
  template <bool kExact, bool kFinite, typename A, typename B>
  __device__ void add_product(A a, B b, int k) {
    Tf32A left, left_rest;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      split(a.at(row_ + group_ + part % 2 * 8, k + place_ + part / 2 * 4), left.bits[part],
            left_rest.bits[part]);
    }
#pragma unroll
    for (int tile = 0; tile < kMmasAtOnce; ++tile) {
      if (tile >= tiles_) continue;
      Tf32B right, right_rest;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        float x = b.at(k + place_ + part * 4, column_ + tile * kMmaColumns + group_);
        if (kFinite && !finite_in_tf32(x)) x = 0;
        split(x, right.bits[part], right_rest.bits[part]);
      }
      if (kExact) {
        mma(sums_[tile], left_rest, right);
        mma(sums_[tile], left, right_rest);
      }
      mma(sums_[tile], left, right);
    }
  }

 private:
  __device__ static void split(float x, uint32_t& most, uint32_t& rest) {
    most = tf32_bits(x);
    rest = tf32_bits(x - tf32_value(most));
  }

  int row_, column_, tiles_, group_, place_;
  MmaSum sums_[kMmasAtOnce];
};

// Reads and writes whole tiles: the matrices reach to the next multiple of a tile, a and b with zeros. What
// TF32 drops of the operands is multiplied too with kExact, which leaves an error of 2^-21. `finite`: b is.
template <bool kAdd, Triangle kTriangle, bool kExact, typename A, typename B>
__device__ void multiply_tf32(int rows, int columns, int depth, A a, B b, Matrix<float> target, bool finite) {
  constexpr int kWarps = kAttentionThreads / kWarpThreads;
  constexpr bool kLowerA = kTriangle == Triangle::kLowerA;
  const int down = ceil_div(rows, kMmaRows), across = ceil_div(columns, kMmaColumns);
  const int at_once = min(kMmasAtOnce, ceil_div(down * across, kWarps));
  const int tasks_across = ceil_div(across, at_once);
  for (int task = threadIdx.x / kWarpThreads; task < down * tasks_across; task += kWarps) {
    const int row = task / tasks_across * kMmaRows, first_tile = task % tasks_across * at_once;
    const int column = first_tile * kMmaColumns;
    if (kTriangle == Triangle::kLowerTarget && column >= row + kMmaRows) continue;
    WarpTiles tiles(row, column, min(at_once, across - first_tile));
    tiles.for_each([&](float& sum, int i, int j) { sum = kAdd ? target.at(i, j) : 0.f; });
    const int below = kLowerA ? min(depth, row) : depth;
    for (int k = 0; k < below; k += kMmaDepth) tiles.add_product<kExact, false>(a, b, k);
    if (kLowerA) {
      const int limit = min(depth, row + kMmaRows);
      for (int k = row; k < limit; k += kMmaDepth) tiles.add_product<kExact, true>(a, b, k);
      for (int k = row; k < limit && !finite; ++k) {
        tiles.for_each([&](float& sum, int i, int j) {
          if (k <= i && !finite_in_tf32(b.at(k, j))) sum += a.at(i, k) * b.at(k, j);
        });
      }
    }
    tiles.for_each([&](float& sum, int i, int j) {
      target.at(i, j) = kTriangle == Triangle::kLowerTarget && j > i ? 0.f : sum;
    });
  }
}

}  // namespace flowops
