#include "cuda/invertible_conv1x1_layers.cuh"

// csrc/math/invertible_conv1x1.h derives the gradients and names the matrices.

namespace flowops {
namespace {

// A layer, its upstream gradients, and exp(log_scale) in shared memory.
template <typename T>
struct BackwardInputs {
  LayerInputs<T> layer;
  const T *grad_weight, *grad_bias;
  T logdet;
  T* scale;

  __device__ BackwardInputs(const PreparedLayerBackward& p, T* shared)
      : layer(p.forward),
        grad_weight(static_cast<const T*>(p.grad_weight)),
        grad_bias(static_cast<const T*>(p.grad_bias)),
        logdet(*static_cast<const T*>(p.grad_logdet)),
        scale(shared) {
    for (int i = threadIdx.x; i < layer.n; i += kLayerThreads) {
      scale[i] = static_cast<T>(layer.scale(i, 1));
    }
  }

  // Element of G' = G + h b^T.
  __device__ T folded(int i, int j) const {
    const T own = grad_weight[i * layer.n + j];
    return grad_bias ? own + grad_bias[i] * layer.bias[j] : own;
  }
};

template <typename T>
__device__ void actnorm_gradient(const PreparedLayerBackward& p, const BackwardInputs<T>& in, bool inverse) {
  if (!in.grad_bias) return;
  const int n = in.layer.n;
  const T* result = in.layer.result;
  T* bias = static_cast<T*>(p.grad_actnorm_bias);
  T* log_scale = static_cast<T*>(p.grad_actnorm_log_scale);
  if (inverse) {
    for_each_row_sum(
        n, [&](int i, int j) { return double(in.grad_weight[i * n + j]) * double(result[i * n + j]); },
        [&](int i, double sum) {
          bias[i] = -in.grad_bias[i];
          log_scale[i] = static_cast<T>(-sum - double(in.logdet));
        });
    return;
  }
  // Sums over a column, which is a row of the transpose.
  for_each_row_sum(
      n, [&](int j, int i) { return double(in.folded(i, j)) * double(result[i * n + j]); },
      [&](int j, double sum) { log_scale[j] = static_cast<T>(sum + double(in.logdet)); });
  for_each_row_sum(
      n, [&](int j, int i) { return double(result[i * n + j]) * double(in.grad_bias[i]); },
      [&](int j, double sum) { bias[j] = static_cast<T>(sum); });
}

// The inverse direction's dL/dW = -(R^T G + diagonal I) R^T diag(e^s), entry by entry through
// write(i, j, value).
template <typename T, typename Write>
__device__ void inverse_weight_gradient(const BackwardInputs<T>& in, T diagonal, T* product,
                                        const Write& write) {
  const int n = in.layer.n;
  const T* result = in.layer.result;
  for_each_entry(n, [&](int i, int j) {
    T sum = i == j ? diagonal : T(0);
    for (int k = 0; k < n; ++k) sum += result[k * n + i] * in.grad_weight[k * n + j];
    product[i * n + j] = sum;
  });
  __syncthreads();
  for_each_entry(n, [&](int i, int j) {
    T sum = 0;
    for (int k = 0; k < n; ++k) sum += product[i * n + k] * result[j * n + k];
    write(i, j, -sum * in.scale[j]);
  });
}

template <typename T>
__global__ void __launch_bounds__(kLayerThreads, kLayersPerMultiprocessor)
    prepare_lu_backward_kernel(const __grid_constant__ LayerTable<LayerBackward> table, bool inverse) {
  const LayerBackward& entry = table.layers[blockIdx.x];
  const PreparedLayerBackward& p = entry.layer;
  const BackwardInputs<T> in(p, dynamic_shared<T>());
  const LayerInputs<T>& layer = in.layer;
  const int n = layer.n;
  T* diagonal = in.scale + n;
  T *grad_m = static_cast<T*>(entry.scratch), *product = grad_m + n * n;
  for (int i = threadIdx.x; i < n; i += kLayerThreads) {
    diagonal[i] = lu_diagonal(layer.sign[i], layer.log_s[i]);
  }
  actnorm_gradient(p, in, inverse);  // reads neither scale nor diagonal
  // Row permutation[i] of dL/dM is row i of dL/dW.
  const auto write = [&](int i, int j, T value) {
    const int row = layer.permuted(i);
    if (row >= 0) grad_m[row * n + j] = value;
  };
  if (inverse) {
    inverse_weight_gradient(in, T(0), product, write);
  } else {
    for_each_entry(n, [&](int i, int j) { write(i, j, in.folded(i, j)); });
  }
  __syncthreads();
  T *lower = static_cast<T*>(p.grad_lower), *upper = static_cast<T*>(p.grad_upper);
  T* log_s = static_cast<T*>(p.grad_log_s);
  for_each_entry(n, [&](int i, int j) {
    T grad_l = 0, grad_v = 0;
    if (i > j) {
      for (int k = j; k < n; ++k) {
        const T column_scale = inverse ? T(1) : in.scale[k];
        grad_l += grad_m[i * n + k] * lu_upper_factor(layer.upper, n, j, k, diagonal[j], column_scale);
      }
    } else {
      for (int k = i; k < n; ++k) grad_v += lu_lower_factor(layer.lower, n, k, i) * grad_m[k * n + j];
      if (!inverse) grad_v *= in.scale[j];
    }
    lower[i * n + j] = grad_l;
    upper[i * n + j] = i < j ? grad_v : T(0);
    if (i == j) log_s[i] = grad_v * diagonal[i] + (inverse ? -in.logdet : in.logdet);
  });
}

template <typename T>
__global__ void __launch_bounds__(kLayerThreads, kLayersPerMultiprocessor)
    prepare_full_backward_kernel(const __grid_constant__ LayerTable<LayerBackward> table, bool inverse) {
  const LayerBackward& entry = table.layers[blockIdx.x];
  const PreparedLayerBackward& p = entry.layer;
  const int n = int(p.forward.channels);
  // Vectors and matrix alike in double, as layer_shared_bytes counts them.
  double* shared = dynamic_shared<double>();
  const BackwardInputs<T> in(p, reinterpret_cast<T*>(shared));
  double* matrix = shared + n;
  int* pivots = reinterpret_cast<int*>(matrix + n * n);
  __syncthreads();
  actnorm_gradient(p, in, inverse);
  T* target = static_cast<T*>(p.grad_full);
  if (inverse) {
    inverse_weight_gradient(in, in.logdet, static_cast<T*>(entry.scratch),
                            [&](int i, int j, T value) { target[i * n + j] = value; });
    return;
  }
  const T* inverted = static_cast<const T*>(entry.inverse);
  if (!inverted) {
    for_each_entry(n, [&](int i, int j) { matrix[i * n + j] = in.layer.full[i * n + j]; });
    __syncthreads();
    eliminate(matrix, n, pivots, true);
  }
  for_each_entry(n, [&](int i, int j) {
    const double transposed = inverted ? double(inverted[j * n + i]) : matrix[j * n + i];
    const double flow = in.folded(i, j) * in.scale[j];
    target[i * n + j] = static_cast<T>(flow + double(in.logdet) * transposed);
  });
}

int64_t channels_of(const LayerBackward& entry) { return entry.layer.forward.channels; }

template <typename T>
cudaError_t launch_lu_backward(const LayerBackward* layers, int64_t count, bool inverse,
                               cudaStream_t stream) {
  return launch_layers(prepare_lu_backward_kernel<T>, layers, count, inverse, stream, channels_of,
                       [](int64_t channels) { return layer_shared_bytes(channels, 2, false); });
}

template <typename T>
cudaError_t launch_full_backward(const LayerBackward* layers, int64_t count, bool inverse,
                                 cudaStream_t stream) {
  return launch_layers(prepare_full_backward_kernel<T>, layers, count, inverse, stream, channels_of,
                       [&](int64_t channels) { return layer_shared_bytes(channels, 1, !inverse); });
}

}  // namespace

cudaError_t launch_prepare_lu_backward(StorageType type, const LayerBackward* layers, int64_t count,
                                       bool inverse, cudaStream_t stream) {
  return type == StorageType::kDouble ? launch_lu_backward<double>(layers, count, inverse, stream)
                                      : launch_lu_backward<float>(layers, count, inverse, stream);
}

cudaError_t launch_prepare_full_backward(StorageType type, const LayerBackward* layers, int64_t count,
                                         bool inverse, cudaStream_t stream) {
  return type == StorageType::kDouble ? launch_full_backward<double>(layers, count, inverse, stream)
                                      : launch_full_backward<float>(layers, count, inverse, stream);
}

}  // namespace flowops
