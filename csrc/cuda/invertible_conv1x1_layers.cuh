// Layers as the weight preparation kernels see them, and the elimination that they share.
#pragma once

#include <algorithm>

#include "common/cuda.cuh"
#include "cuda/invertible_conv1x1_prepare_launch.h"
#include "math/invertible_conv1x1.h"

namespace flowops {

constexpr int kLayerThreads = 256;
// That registers must leave room for.
constexpr int kLayersPerMultiprocessor = 2;
constexpr int kLayerWarps = kLayerThreads / kWarpThreads;

// As many layers as one launch can take by value.
template <typename Entry>
struct LayerTable {
  static constexpr int kLayers = (kMaxArgumentBytes - 64) / sizeof(Entry);
  Entry layers[kLayers];
};

// Typed pointers to the inputs of a layer.
template <typename T>
struct LayerInputs {
  int n;
  const T *lower, *upper, *log_s, *sign, *full, *bias, *log_scale, *result;
  const int64_t* permutation;

  __device__ explicit LayerInputs(const PreparedLayer& p)
      : n(int(p.channels)),
        lower(static_cast<const T*>(p.lower)),
        upper(static_cast<const T*>(p.upper)),
        log_s(static_cast<const T*>(p.log_s)),
        sign(static_cast<const T*>(p.sign)),
        full(static_cast<const T*>(p.full)),
        bias(static_cast<const T*>(p.actnorm_bias)),
        log_scale(static_cast<const T*>(p.actnorm_log_scale)),
        result(static_cast<const T*>(p.weight)),
        permutation(p.permutation) {}

  // exp(sign log_scale), 1 without actnorm.
  __device__ double scale(int channel, double direction) const {
    return log_scale ? exp(direction * double(log_scale[channel])) : 1.0;
  }

  // Row that row i of W has before the permutation; -1 for an index outside the matrix.
  __device__ int permuted(int i) const {
    const int64_t index = permutation[i];
    return index >= 0 && index < n ? int(index) : -1;
  }
};

// Calls body(row, column) for all entries of an (n, n) matrix, a warp along a row.
template <typename Body>
__device__ __forceinline__ void for_each_entry(int n, const Body& body) {
  for (int row = threadIdx.x / kWarpThreads; row < n; row += kLayerWarps) {
    for (int column = threadIdx.x % kWarpThreads; column < n; column += kWarpThreads) body(row, column);
  }
}

// Calls write(row, sum of term(row, column) over the columns), a warp a row.
template <typename Term, typename Write>
__device__ __forceinline__ void for_each_row_sum(int n, const Term& term, const Write& write) {
  for (int row = threadIdx.x / kWarpThreads; row < n; row += kLayerWarps) {
    double sum = 0;
    for (int column = threadIdx.x % kWarpThreads; column < n; column += kWarpThreads) {
      sum += term(row, column);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % kWarpThreads == 0) write(row, sum);
  }
}

// Row of the largest magnitude in column k from row k on, the first of equals; called by one warp.
__device__ inline int find_pivot(const double* a, int n, int k) {
  double best = -1;
  int index = k;
  for (int i = k + int(threadIdx.x) % kWarpThreads; i < n; i += kWarpThreads) {
    const double magnitude = abs(a[i * n + k]);
    if (magnitude > best) {
      best = magnitude;
      index = i;
    }
  }
  for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) {
    const double other = __shfl_xor_sync(kFullWarp, best, lanes);
    const int other_index = __shfl_xor_sync(kFullWarp, index, lanes);
    if (other > best || (other == best && other_index < index)) {
      best = other;
      index = other_index;
    }
  }
  return index;
}

// Gauss-Jordan elimination with partial pivoting of the (n, n) matrix `a` in shared memory, by a
// whole block. Returns log|det a| in thread 0. With `invert`, `a` becomes its inverse; else only
// its pivots are eliminated.
__device__ inline double eliminate(double* a, int n, int* pivots, bool invert) {
  double log_abs_det = 0;
  for (int k = 0; k < n; ++k) {
    if (threadIdx.x < kWarpThreads) {
      const int found = find_pivot(a, n, k);
      if (threadIdx.x == 0) pivots[k] = found;
    }
    __syncthreads();
    const int chosen = pivots[k];
    for (int j = threadIdx.x; chosen != k && j < n; j += kLayerThreads) {
      const double held = a[k * n + j];
      a[k * n + j] = a[chosen * n + j];
      a[chosen * n + j] = held;
    }
    __syncthreads();
    const double pivot = a[k * n + k];
    // A zero pivot makes it -inf for good, whatever the division by it leaves behind.
    if (threadIdx.x == 0 && log_abs_det != -INFINITY) log_abs_det += log(abs(pivot));
    for_each_entry(n, [&](int i, int j) {
      if (j == k || i == k || (!invert && (i < k || j < k))) return;
      a[i * n + j] -= a[i * n + k] / pivot * a[k * n + j];
    });
    __syncthreads();
    if (!invert) continue;
    for (int j = threadIdx.x; j < n; j += kLayerThreads) {
      a[k * n + j] = (j == k ? 1.0 : a[k * n + j]) / pivot;
      if (j != k) a[j * n + k] = -a[j * n + k] / pivot;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; invert && i < n; i += kLayerThreads) {
    for (int k = n - 1; k >= 0; --k) {
      const double held = a[i * n + k];
      a[i * n + k] = a[i * n + pivots[k]];
      a[i * n + pivots[k]] = held;
    }
  }
  __syncthreads();
  return log_abs_det;
}

// Shared memory for `rows` vectors and, where the largest matrix is factored, that matrix and its
// pivots.
inline size_t layer_shared_bytes(int64_t channels, int rows, bool factored) {
  const int64_t n = factored ? std::min(channels, kMaxFactoredChannels) : 0;
  return sizeof(double) * (rows * channels + n * n) + sizeof(int) * n;
}

// Launches a kernel over all layers, a block a layer. `shared_bytes` maps the most channels to
// bytes.
template <typename Entry, typename Kernel, typename Channels, typename SharedBytes>
cudaError_t launch_layers(Kernel kernel, const Entry* layers, int64_t count, bool inverse,
                          cudaStream_t stream, const Channels& channels, const SharedBytes& shared_bytes) {
  using Table = LayerTable<Entry>;
  for (int64_t first = 0; first < count; first += Table::kLayers) {
    const int64_t last = std::min<int64_t>(count, first + Table::kLayers);
    Table table;
    int64_t most = 0;
    for (int64_t i = first; i < last; ++i) {
      table.layers[i - first] = layers[i];
      most = std::max(most, channels(layers[i]));
    }
    const cudaError_t error =
        launch(kernel, unsigned(last - first), kLayerThreads, shared_bytes(most), stream, table, inverse);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flowops
