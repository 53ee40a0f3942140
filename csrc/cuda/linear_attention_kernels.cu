// The scan of math/linear_attention.h, one block for a head of a sequence and a slice of columns: chunks of
// rows and the state lie in shared memory, and are multiplied in the accumulation type.
#include "common/cuda.cuh"
#include "cuda/linear_attention_launch.h"

namespace flowops {
namespace {

constexpr int kAttentionThreads = 128;
// Rows and columns of a product that one thread computes at a time.
constexpr int kProductTile = 4;

template <typename T>
struct Matrix {
  T* data;
  int row, column;  // strides
  __device__ T& at(int i, int j) const { return data[i * row + j * column]; }
  __device__ Matrix transposed() const { return {data, column, row}; }
};

// target = or += a b by the whole block, kLower: of a only the elements on and below the diagonal. Those
// above are not multiplied at all: 0 * NaN is NaN.
template <bool kAdd, bool kLower, typename T>
__device__ void multiply(int rows, int columns, int depth, Matrix<T> a, Matrix<T> b, Matrix<T> target) {
  const int across = (columns + kProductTile - 1) / kProductTile;
  const int tiles = (rows + kProductTile - 1) / kProductTile * across;
  for (int tile = threadIdx.x; tile < tiles; tile += kAttentionThreads) {
    const int first = tile / across * kProductTile, column = tile % across;
    T sum[kProductTile][kProductTile];
#pragma unroll
    for (int r = 0; r < kProductTile; ++r) {
#pragma unroll
      for (int c = 0; c < kProductTile; ++c) sum[r][c] = T(0);
    }
    const int limit = kLower ? min(depth, first + kProductTile) : depth;
    for (int k = 0; k < limit; ++k) {
      T left[kProductTile], right[kProductTile];
#pragma unroll
      for (int r = 0; r < kProductTile; ++r) left[r] = a.at(min(first + r, rows - 1), k);
#pragma unroll
      for (int c = 0; c < kProductTile; ++c) right[c] = b.at(k, min(column + c * across, columns - 1));
#pragma unroll
      for (int r = 0; r < kProductTile; ++r) {
        if (kLower && k > first + r) continue;
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
    const auto take = [&](int rows, int columns) {
      const Matrix<T> matrix{memory, odd(columns), 1};
      memory += rows * odd(columns);
      return matrix;
    };
    query_ = take(chunk_, rows_), key_ = take(chunk_, rows_);
    value_ = take(chunk_, tiling.slice + 1), sums_ = take(chunk_, tiling.slice + 1);
    state_ = take(rows_, tiling.slice + 1);
    scores_ = take(chunk_, chunk_);
    row_factor_ = memory, row_tail_ = memory + chunk_;
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
    load_state();
    if (!scan_.causal && !scan_.complete) {
      for (int64_t start = begin; start < key_end; start += chunk_) {
        const int count = start_chunk(begin, key_end, start);
        load(scan_.key, count, 0, int(scan_.key.columns), key_);
        load(scan_.value, count, first_, columns_, value_);
        __syncthreads();
        add_to_state(count);
      }
    }
    if (scan_.target.data == nullptr) query_end = begin;
    for (int64_t start = begin; start < query_end; start += chunk_) {
      const int count = start_chunk(begin, query_end, start);
      load(scan_.query, count, 0, int(scan_.query.columns), query_);
      if (scan_.causal) {
        load(scan_.key, count, 0, int(scan_.key.columns), key_);
        load(scan_.value, count, first_, columns_, value_);
      }
      __syncthreads();
      if (scan_.causal) multiply<false, false>(count, count, rows_, query_, key_.transposed(), scores_);
      multiply<false, false>(count, all_columns_, rows_, query_, state_, sums_);
      __syncthreads();
      if (scan_.causal) {
        multiply<true, true>(count, all_columns_, count, scores_, value_, sums_);
        add_to_state(count);
        __syncthreads();
      }
      write(count);
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
        for (int j = lane; j < int(factor.columns); j += kWarpThreads) {
          product += static_cast<T>(grad[j]) * static_cast<T>(out[j]);
        }
        tail = -reciprocal * warp_sum(product);
      }
      if (lane == 0) row_factor_[i] = reciprocal, row_tail_[i] = tail;
    }
    __syncthreads();
  }

  __device__ T element(const AttentionFactor& factor, int i, T x) const {
    if (factor.kind == AttentionKind::kPlain) return x;
    if (factor.kind == AttentionKind::kGradient) return x * row_factor_[i];
    T result = x;
    with_feature_map(scan_.map, [&](auto map) { result = feature<decltype(map)::kValue>(x); });
    return result;
  }

  // `columns` columns from `first` on, then the tail.
  __device__ void load(const AttentionFactor& factor, int count, int first, int columns, Matrix<T> target) {
    const bool gradient = factor.kind == AttentionKind::kGradient;
    if (gradient) prepare_gradient(factor, count);
    const int width = columns + factor.tail;
    for (int index = threadIdx.x; index < count * width; index += kAttentionThreads) {
      const int i = index / width, j = index % width;
      T value = 0;
      if (!left_out(factor, i)) {
        if (j < columns) {
          value = element(factor, i, static_cast<T>(row(factor.rows, i)[first + j]));
        } else {
          value = gradient ? row_tail_[i] : T(1);
        }
      }
      target.at(i, j) = value;
    }
  }

  __device__ void add_to_state(int count) {
    multiply<true, false>(rows_, all_columns_, count, key_.transposed(), value_, state_);
  }

  __device__ void write(int count) const {
    const bool divides = scan_.new_denominator.data != nullptr;
    for (int index = threadIdx.x; index < count * columns_; index += kAttentionThreads) {
      const int i = index / columns_, j = index % columns_;
      T value = sums_.at(i, j);
      if (left_out(scan_.query, i)) {
        value = 0;
      } else if (scan_.features.data != nullptr) {
        const T x = static_cast<T>(row(scan_.features, i)[first_ + j]);
        with_feature_map(scan_.map, [&](auto map) { value *= feature_gradient<decltype(map)::kValue>(x); });
      } else if (divides) {
        const T denominator = sums_.at(i, columns_);
        value *= T(1) / (denominator + T(scan_.eps));
        if (j == 0 && first_ == 0) *row<T>(scan_.new_denominator, i) = denominator;
      }
      row(scan_.target, i)[first_ + j] = static_cast<scalar_t>(value);
    }
  }

  __device__ int64_t place() const { return sequence_ * scan_.heads + head_; }

  // Calls body(row, column) for all elements of the state.
  template <typename Body>
  __device__ void for_each_of_state(const Body& body) const {
    for (int index = threadIdx.x; index < rows_ * all_columns_; index += kAttentionThreads) {
      body(index / all_columns_, index % all_columns_);
    }
  }

  __device__ void load_state() {
    const int dim = int(scan_.dim), value_dim = int(scan_.value_dim);
    const auto* kv = static_cast<const T*>(scan_.initial.kv);
    const auto* z = static_cast<const T*>(scan_.initial.z);
    if (kv != nullptr) kv += place() * dim * value_dim;
    if (z != nullptr) z += place() * dim;
    for_each_of_state([&](int i, int j) {
      const int d = scan_.transposed ? first_ + j : i, e = scan_.transposed ? i : first_ + j;
      const bool of_z = scan_.transposed ? i == value_dim : j == columns_;
      T value = 0;
      if (of_z) {
        if (z != nullptr) value = z[d];
      } else if (kv != nullptr) {
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
    for_each_of_state([&](int i, int j) {
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
};

template <typename scalar_t>
__global__ void __launch_bounds__(kAttentionThreads, 1)
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
