// The scan of math/linear_attention.h, one block for a head of a sequence and a slice of columns: chunks of
// rows and the state lie in shared memory in the accumulation type.
#include "common/cuda.cuh"
#include "cuda/linear_attention_launch.h"
#include "cuda/linear_attention_product.cuh"

namespace flowops {
namespace {

// Elements of a row that a thread moves at a time, in memory as many bytes aligned, if they can be.
constexpr int kPiece = 4;

template <typename T>
struct alignas(sizeof(T) * kPiece < 16 ? sizeof(T) * kPiece : 16) Piece {
  T lanes[kPiece];
};

template <typename T>
__device__ bool aligned_pieces(const T* row) {
  return reinterpret_cast<uintptr_t>(row) % alignof(Piece<T>) == 0;
}

// The piece of `row`, of which `left` elements are there, zeros behind them.
template <typename T>
__device__ Piece<T> load_piece(const T* row, int left) {
  if (left >= kPiece && aligned_pieces(row)) return *reinterpret_cast<const Piece<T>*>(row);
  Piece<T> piece;
#pragma unroll
  for (int c = 0; c < kPiece; ++c) piece.lanes[c] = c < left ? row[c] : T(0.f);
  return piece;
}

template <typename T>
__device__ void store_piece(T* row, int left, const Piece<T>& piece) {
  if (left >= kPiece && aligned_pieces(row)) {
    *reinterpret_cast<Piece<T>*>(row) = piece;
    return;
  }
#pragma unroll
  for (int c = 0; c < kPiece; ++c) {
    if (c < left) row[c] = piece.lanes[c];
  }
}

// Calls body(row, first column) for the pieces of rows of `columns` columns, all of them by the whole block.
template <typename Body>
__device__ void for_each_piece(int rows, int columns, const Body& body) {
  const int pieces = ceil_div(columns, kPiece);
  // More at a time would spill registers.
#pragma unroll 2
  for (int index = threadIdx.x; index < rows * pieces; index += kAttentionThreads) {
    body(index / pieces, index % pieces * kPiece);
  }
}

template <typename scalar_t>
class BlockScan {
 public:
  using T = opmath_type<scalar_t>;

  __device__ BlockScan(const AttentionScan& scan, const AttentionTiling& tiling)
      : scan_(scan), chunk_(tiling.chunk), rows_(int(scan.key.columns) + scan.key.tail) {
    const int64_t place = blockIdx.x / tiling.slices;
    sequence_ = place / scan.heads, head_ = place % scan.heads;
    first_ = int(blockIdx.x % tiling.slices) * tiling.slice;
    columns_ = min(tiling.slice, int(scan.value.columns) - first_);
    all_columns_ = columns_ + scan.value.tail;
    T* memory = dynamic_shared<T>();
    const auto take = [&](int rows, int stride) {
      const Matrix<T> matrix{memory, stride};
      memory += rows * stride;
      return matrix;
    };
    const int wide = b_stride(tiling.slice + 1);
    query_ = take(chunk_, a_stride(rows_)), key_ = take(chunk_, a_stride(rows_));
    value_ = take(chunk_, wide), sums_ = take(chunk_, wide);
    state_ = take(round_up(rows_, kMmaRows), wide);
    scores_ = take(chunk_, a_stride(chunk_));
    row_factor_ = memory, row_tail_ = memory + chunk_;
    spoiled_ = reinterpret_cast<int*>(memory + 2 * chunk_);
  }

  __device__ void run() {
    int64_t begin = 0, query_end = scan_.query_time, key_end = scan_.key_time;
    batch_ = sequence_;
    if (scan_.offsets != nullptr) {
      // The host has not read them: whatever they hold, no access leaves the tensors.
      batch_ = 0;
      begin = clamped(scan_.offsets[sequence_], 0);
      query_end = key_end = clamped(scan_.offsets[sequence_ + 1], begin);
    }
    if (threadIdx.x == 0) *spoiled_ = 0;
    __syncthreads();
    load_state();
    // Where every query sees all keys, those are added to the state before the first query.
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      const bool queries = pass == 1, keys = queries ? scan_.causal : !scan_.causal && !scan_.complete;
      if (queries ? scan_.target.data == nullptr : !keys) continue;
      const int64_t end = queries ? query_end : key_end;
      for (int64_t start = begin; start < end; start += chunk_) {
        const int count = start_chunk(begin, end, start);
        load(count, queries, keys);
        __syncthreads();
        if (queries) {
          if (keys) {
            multiply<false, Triangle::kLowerTarget>(count, count, rows_, query_, key_.transposed(), scores_);
          }
          multiply<false, Triangle::kNone>(count, all_columns_, rows_, query_, state_, sums_);
          __syncthreads();
          if (keys) multiply<true, Triangle::kLowerA>(count, all_columns_, count, scores_, value_, sums_);
        }
        if (keys) add_to_state(count);
        if (!queries) continue;
        __syncthreads();
        write(count);
      }
    }
    store_state();
  }

 private:
  __device__ int64_t clamped(int64_t offset, int64_t low) const {
    const int64_t high = scan_.query_time;
    return offset < low ? low : offset > high ? high : offset;
  }

  // Waits until the block has done with the last chunk; returns the rows of this one.
  __device__ int start_chunk(int64_t begin, int64_t end, int64_t start) {
    __syncthreads();
    position_ = scan_.reverse ? end - 1 - (start - begin) : start;
    const int64_t left = end - start;
    return left < chunk_ ? int(left) : chunk_;
  }

  __device__ int64_t time(int i) const { return scan_.reverse ? position_ - i : position_ + i; }

  template <typename Element = scalar_t>
  __device__ Element* row(const AttentionRows& rows, int i) const {
    return static_cast<Element*>(rows.data) + batch_ * rows.batch + time(i) * rows.time + head_ * rows.head;
  }

  __device__ bool left_out(const AttentionFactor& factor, int i) const {
    return factor.keys && scan_.padding != nullptr && scan_.padding[batch_ * scan_.padding_time + time(i)];
  }

  // r and the tail of the rows of the gradient, a warp for each row.
  __device__ void prepare_gradient(const AttentionFactor& factor, int count) {
    const int lane = threadIdx.x % kWarpThreads;
    for (int i = threadIdx.x / kWarpThreads; i < count; i += kAttentionThreads / kWarpThreads) {
      T reciprocal = 1, tail = 0;
      if (scan_.normalize) {
        reciprocal = T(1) / (*row<T>(scan_.denominator, i) + T(scan_.eps));
        const scalar_t *grad = row(factor.rows, i), *out = row(scan_.out, i);
        T product = 0;
#pragma unroll 1
        for (int j = lane; j < int(factor.columns); j += kWarpThreads) {
          product += static_cast<T>(grad[j]) * static_cast<T>(out[j]);
        }
        tail = -reciprocal * warp_sum(product);
      }
      if (lane == 0) row_factor_[i] = reciprocal, row_tail_[i] = tail;
    }
    __syncthreads();
  }

  __device__ Piece<T> elements(const AttentionFactor& factor, int i, const Piece<scalar_t>& x) const {
    Piece<T> result;
#pragma unroll
    for (int c = 0; c < kPiece; ++c) result.lanes[c] = static_cast<T>(x.lanes[c]);
    if (factor.kind == AttentionKind::kGradient) {
#pragma unroll
      for (int c = 0; c < kPiece; ++c) result.lanes[c] *= row_factor_[i];
    } else if (factor.kind == AttentionKind::kFeature) {
      with_feature_map(scan_.map, [&](auto map) {
#pragma unroll
        for (int c = 0; c < kPiece; ++c) result.lanes[c] = feature<decltype(map)::kValue>(result.lanes[c]);
      });
    }
    return result;
  }

  // `columns` columns from `first` on and the tail, with zeros up to a whole chunk of rows of `width`.
  __device__ void load(const AttentionFactor& factor, int count, int first, int columns, Matrix<T> target,
                       int width) {
    const bool gradient = factor.kind == AttentionKind::kGradient;
    if (gradient) prepare_gradient(factor, count);
    for_each_piece(chunk_, width, [&](int i, int j) {
      Piece<T> piece{};
      if (i < count && !left_out(factor, i)) {
        const int left = columns - j;
        piece = elements(factor, i, load_piece(row(factor.rows, i) + first + j, left));
        const T tail = !factor.tail ? T(0) : gradient ? row_tail_[i] : T(1);
#pragma unroll
        for (int c = 0; c < kPiece; ++c) {
          if (c >= left) piece.lanes[c] = c == left ? tail : T(0);
        }
      }
      store_piece(&target.at(i, j), kPiece, piece);
      for (const T x : piece.lanes) {
        if (!finite_in_tf32(float(x))) *spoiled_ = 1;
      }
    });
  }

  __device__ void load(int count, bool queries, bool keys) {
    const int width = round_up(rows_, kMmaRows);
#pragma unroll 1
    for (int which = queries ? 0 : 1; which < (keys ? 3 : 1); ++which) {
      if (which == 2) {
        load(scan_.value, count, first_, columns_, value_, round_up(all_columns_, kMmaColumns));
      } else {
        const AttentionFactor& factor = which == 0 ? scan_.query : scan_.key;
        load(factor, count, 0, int(factor.columns), which == 0 ? query_ : key_, width);
      }
    }
  }

  // Operands of 16 bits give results of 16 bits, for which TF32 is enough.
  template <bool kAdd, Triangle kTriangle, bool kExact = sizeof(scalar_t) == sizeof(float), typename A,
            typename B>
  __device__ void multiply(int rows, int columns, int depth, A a, B b, Matrix<T> target) const {
    if constexpr (kHasTf32 && std::is_same_v<T, float>) {
      multiply_tf32<kAdd, kTriangle, kExact>(rows, columns, depth, a, b, target, !*spoiled_);
    } else {
      multiply_add<kAdd, kTriangle>(rows, columns, depth, a, b, target);
    }
  }

  // The state is float32 whatever the operands.
  __device__ void add_to_state(int count) {
    multiply<true, Triangle::kNone, true>(rows_, all_columns_, count, key_.transposed(), value_, state_);
  }

  __device__ void write(int count) const {
    const bool divides = scan_.new_denominator.data != nullptr;
    for_each_piece(count, columns_, [&](int i, int j) {
      const int left = columns_ - j;
      Piece<T> value = load_piece(&sums_.at(i, j), kPiece);
      if (left_out(scan_.query, i)) {
        value = {};
      } else if (scan_.features.data != nullptr) {
        const Piece<scalar_t> x = load_piece(row(scan_.features, i) + first_ + j, left);
        with_feature_map(scan_.map, [&](auto map) {
#pragma unroll
          for (int c = 0; c < kPiece; ++c) {
            value.lanes[c] *= feature_gradient<decltype(map)::kValue>(static_cast<T>(x.lanes[c]));
          }
        });
      } else if (divides) {
        const T denominator = sums_.at(i, columns_), reciprocal = T(1) / (denominator + T(scan_.eps));
#pragma unroll
        for (int c = 0; c < kPiece; ++c) value.lanes[c] *= reciprocal;
        if (j == 0 && first_ == 0) *row<T>(scan_.new_denominator, i) = denominator;
      }
      Piece<scalar_t> result;
#pragma unroll
      for (int c = 0; c < kPiece; ++c) result.lanes[c] = static_cast<scalar_t>(value.lanes[c]);
      store_piece(row(scan_.target, i) + first_ + j, left, result);
    });
  }

  __device__ int64_t place() const { return sequence_ * scan_.heads + head_; }

  // Calls body(row, column) for all elements of the state.
  template <typename Body>
  __device__ void for_each_of_state(int rows, int columns, const Body& body) const {
    for (int index = threadIdx.x; index < rows * columns; index += kAttentionThreads) {
      body(index / columns, index % columns);
    }
  }

  __device__ void load_state() {
    const int dim = int(scan_.dim), value_dim = int(scan_.value_dim);
    const auto* kv = static_cast<const T*>(scan_.initial.kv);
    const auto* z = static_cast<const T*>(scan_.initial.z);
    if (kv != nullptr) kv += place() * dim * value_dim;
    if (z != nullptr) z += place() * dim;
    // Zeros up to whole tiles.
    for_each_of_state(round_up(rows_, kMmaRows), round_up(all_columns_, kMmaColumns), [&](int i, int j) {
      const int d = scan_.transposed ? first_ + j : i, e = scan_.transposed ? i : first_ + j;
      const bool of_z = scan_.transposed ? i == value_dim : j == columns_;
      const bool inside = i < rows_ && j < all_columns_;
      T value = 0;
      if (inside && of_z) {
        if (z != nullptr) value = z[d];
      } else if (inside && kv != nullptr) {
        value = kv[int64_t(d) * value_dim + e];
      }
      state_.at(i, j) = value;
    });
  }

  __device__ void store_state() const {
    if (scan_.final.kv == nullptr) return;
    __syncthreads();
    auto* kv = static_cast<T*>(scan_.final.kv) + place() * scan_.dim * scan_.value_dim;
    auto* z = static_cast<T*>(scan_.final.z) + place() * scan_.dim;
    for_each_of_state(rows_, all_columns_, [&](int i, int j) {
      if (j < columns_) {
        kv[i * scan_.value_dim + first_ + j] = state_.at(i, j);
      } else if (first_ == 0) {
        z[i] = state_.at(i, j);
      }
    });
  }

  const AttentionScan& scan_;
  int chunk_, rows_, first_, columns_, all_columns_;  // all_columns_: with the tail
  int64_t sequence_, head_, batch_ = 0, position_ = 0;
  Matrix<T> query_, key_, value_, sums_, state_, scores_;
  T *row_factor_, *row_tail_;
  int* spoiled_;  // whether the scan has met an element that is not finite
};

// On one multiprocessor: what the registers allow.
template <typename scalar_t>
constexpr int kAttentionBlocks = sizeof(scalar_t) == sizeof(double) ? 1 : 3;

template <typename scalar_t>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks<scalar_t>)
    linear_attention_scan_kernel(const __grid_constant__ AttentionScan scan, const AttentionTiling tiling) {
  BlockScan<scalar_t>(scan, tiling).run();
}

}  // namespace

cudaError_t launch_linear_attention_scan(StorageType type, const AttentionScan& scan, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    constexpr size_t kBytes = sizeof(opmath_type<scalar_t>);
    const AttentionTiling tiling = attention_tiling(scan, kBytes);
    const int64_t blocks = scan.sequences * scan.heads * tiling.slices;
    if (blocks == 0) return cudaSuccess;
    if (blocks > (int64_t{1} << 31) - 1) return cudaErrorInvalidConfiguration;
    return launch(linear_attention_scan_kernel<scalar_t>, unsigned(blocks), kAttentionThreads,
                  tiling.shared_values * kBytes, stream, scan, tiling);
  });
}

}  // namespace flowops
