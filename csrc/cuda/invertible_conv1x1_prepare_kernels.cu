#include "cuda/invertible_conv1x1_layers.cuh"

namespace flowops {
namespace {

// What the LU and the full parameterisation share: bias and log-det; `log_abs_det` is read in thread 0. A
// lane reads the entries of the weight that it wrote itself: for_each_entry and for_each_row_sum deal them
// out alike.
template <typename T>
__device__ void finish_layer(const PreparedLayer& p, bool inverse, double log_abs_det) {
  const LayerInputs<T> layer(p);
  if (p.bias) {
    T* bias = static_cast<T*>(p.bias);
    if (inverse) {
      for (int i = threadIdx.x; i < layer.n; i += kLayerThreads) bias[i] = -layer.bias[i];
    } else {
      for_each_row_sum(
          layer.n,
          [&](int i, int j) { return double(layer.result[i * layer.n + j]) * double(layer.bias[j]); },
          [&](int i, double sum) { bias[i] = static_cast<T>(sum); });
    }
  }
  double total = 0;
  for (int i = threadIdx.x; i < layer.n; i += kLayerThreads) {
    if (layer.log_s) total += layer.log_s[i];
    if (layer.log_scale) total += layer.log_scale[i];
  }
  total = block_sum<kLayerThreads>(total);
  if (threadIdx.x != 0) return;
  total += log_abs_det;
  *static_cast<T*>(p.logdet) = static_cast<T>(inverse ? -total : total);
}

// W = P L (U + diag(d)) diag(scale).
template <typename T>
__device__ void lu_product(const LayerInputs<T>& layer, const double* scale, const double* diagonal,
                           T* weight) {
  const int n = layer.n;
  for_each_entry(n, [&](int i, int j) {
    const int row = layer.permuted(i);
    const T column_scale = static_cast<T>(scale[j]);
    T sum = row < 0 ? T(NAN) : T(0);
    for (int k = 0; k <= min(row, j); ++k) {
      sum += lu_lower_factor(layer.lower, n, row, k) *
             lu_upper_factor(layer.upper, n, k, j, static_cast<T>(diagonal[k]), column_scale);
    }
    weight[i * n + j] = sum;
  });
}

// diag(scale) W^-1, a thread a column: L, then U + diag(d), by substitution in `solution`, (n, n)
// of Work.
template <typename T, typename Work>
__device__ void lu_inverse(const LayerInputs<T>& layer, const double* scale, const double* diagonal,
                           Work* solution, T* weight) {
  const int n = layer.n;
  for (int column = threadIdx.x; column < n; column += kLayerThreads) {
    Work* x = solution + column;
    // P^T has its one of column c in row permutation[c].
    const int one = layer.permuted(column);
    for (int i = 0; i < n; ++i) {
      Work sum = one < 0 ? Work(NAN) : Work(i == one ? 1 : 0);
      for (int k = 0; k < i; ++k) sum -= Work(layer.lower[i * n + k]) * x[k * n];
      x[i * n] = sum;
    }
    for (int i = n - 1; i >= 0; --i) {
      Work sum = x[i * n];
      for (int k = i + 1; k < n; ++k) sum -= Work(layer.upper[i * n + k]) * x[k * n];
      x[i * n] = sum / Work(diagonal[i]);
    }
    for (int i = 0; i < n; ++i) {
      weight[i * n + column] = static_cast<T>(x[i * n] * Work(scale[i]));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kLayerThreads, kLayersPerMultiprocessor)
    prepare_lu_kernel(const __grid_constant__ LayerTable<PreparedLayer> table, bool inverse) {
  const PreparedLayer& p = table.layers[blockIdx.x];
  const LayerInputs<T> layer(p);
  const int n = layer.n;
  double* scale = dynamic_shared<double>();
  double *diagonal = scale + n, *solution = diagonal + n;
  for (int i = threadIdx.x; i < n; i += kLayerThreads) {
    scale[i] = layer.scale(i, inverse ? -1 : 1);
    diagonal[i] = lu_diagonal(double(layer.sign[i]), double(layer.log_s[i]));
  }
  __syncthreads();
  T* weight = static_cast<T*>(p.weight);
  if (!inverse) {
    lu_product(layer, scale, diagonal, weight);
  } else if (n <= kMaxFactoredChannels) {
    lu_inverse(layer, scale, diagonal, solution, weight);
  } else {
    lu_inverse(layer, scale, diagonal, weight, weight);
  }
  finish_layer<T>(p, inverse, 0);
}

template <typename T>
__global__ void __launch_bounds__(kLayerThreads, kLayersPerMultiprocessor)
    prepare_full_kernel(const __grid_constant__ LayerTable<FullLayer> table, bool inverse) {
  const FullLayer& entry = table.layers[blockIdx.x];
  const LayerInputs<T> layer(entry.layer);
  const int n = layer.n;
  double* scale = dynamic_shared<double>();
  double* matrix = scale + n;
  int* pivots = reinterpret_cast<int*>(matrix + n * n);
  for (int i = threadIdx.x; i < n; i += kLayerThreads) scale[i] = layer.scale(i, inverse ? -1 : 1);
  const bool given = entry.log_abs_det != nullptr;
  if (!given) {
    for_each_entry(n, [&](int i, int j) { matrix[i * n + j] = layer.full[i * n + j]; });
  }
  __syncthreads();
  const double log_abs_det =
      given ? double(*static_cast<const T*>(entry.log_abs_det)) : eliminate(matrix, n, pivots, inverse);
  T* weight = static_cast<T*>(entry.layer.weight);
  const T* inverted = static_cast<const T*>(entry.inverse);
  for_each_entry(n, [&](int i, int j) {
    const int at = i * n + j;
    const double value =
        inverse ? scale[i] * (given ? double(inverted[at]) : matrix[at]) : scale[j] * double(layer.full[at]);
    weight[at] = static_cast<T>(value);
  });
  finish_layer<T>(entry.layer, inverse, log_abs_det);
}

template <typename T>
cudaError_t launch_lu(const PreparedLayer* layers, int64_t count, bool inverse, cudaStream_t stream) {
  return launch_layers(
      prepare_lu_kernel<T>, layers, count, inverse, stream,
      [](const PreparedLayer& layer) { return layer.channels; },
      [&](int64_t channels) { return layer_shared_bytes(channels, 2, inverse); });
}

template <typename T>
cudaError_t launch_full(const FullLayer* layers, int64_t count, bool inverse, cudaStream_t stream) {
  return launch_layers(
      prepare_full_kernel<T>, layers, count, inverse, stream,
      [](const FullLayer& entry) { return entry.layer.channels; },
      [](int64_t channels) { return layer_shared_bytes(channels, 1, true); });
}

}  // namespace

cudaError_t launch_prepare_lu(StorageType type, const PreparedLayer* layers, int64_t count, bool inverse,
                              cudaStream_t stream) {
  return type == StorageType::kDouble ? launch_lu<double>(layers, count, inverse, stream)
                                      : launch_lu<float>(layers, count, inverse, stream);
}

cudaError_t launch_prepare_full(StorageType type, const FullLayer* layers, int64_t count, bool inverse,
                                cudaStream_t stream) {
  return type == StorageType::kDouble ? launch_full<double>(layers, count, inverse, stream)
                                      : launch_full<float>(layers, count, inverse, stream);
}

}  // namespace flowops
