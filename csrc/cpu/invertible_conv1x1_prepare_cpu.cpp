#include <ATen/Parallel.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_lu_factor_ex.h>
#include <ATen/ops/linalg_lu_solve.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/dispatch.h"
#include "cpu/small_linalg.h"
#include "math/invertible_conv1x1.h"
#include "ops/invertible_conv1x1_prepare.h"

namespace flowops {
namespace {

// Multiply-adds of all layers below which a second thread costs more than it brings.
constexpr double kParallelWork = 50000;
// Channels up to which our own factorisation and inverse together take no longer than LAPACK's two calls.
constexpr int64_t kMaxOwnChannels = 192;
// Rows of a triangular product that share the length of their sums.
constexpr int64_t kBlockRows = 24;

// Calls body(layer) for all layers, the large ones dealt out first so that threads share them evenly.
template <typename Channels, typename Body>
void for_each_layer(int64_t layers, const Channels& channels, const Body& body) {
  std::vector<int64_t> order(layers);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return channels(a) > channels(b); });
  double work = 0;
  for (int64_t i = 0; i < layers; ++i) work += std::pow(double(channels(i)), 3);
  const int64_t threads = work < kParallelWork ? 1 : std::min<int64_t>(layers, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = t; i < layers; i += threads) body(order[i]);
    }
  });
}

// A layer's parameters as typed pointers, its actnorm's scale evaluated.
template <typename T>
struct Layer {
  int64_t n;
  const T *lower, *upper, *log_s, *sign, *full, *bias, *log_scale, *result;
  const int64_t* permutation;
  std::vector<T> scale;     // exp(log_scale), 1 without actnorm
  std::vector<T> diagonal;  // sign exp(log_s), LU layers only

  explicit Layer(const PreparedLayer& p)
      : n(p.channels),
        lower(cast(p.lower)),
        upper(cast(p.upper)),
        log_s(cast(p.log_s)),
        sign(cast(p.sign)),
        full(cast(p.full)),
        bias(cast(p.actnorm_bias)),
        log_scale(cast(p.actnorm_log_scale)),
        result(cast(p.weight)),
        permutation(p.permutation),
        scale(p.channels, T(1)) {
    for (int64_t i = 0; log_scale && i < n; ++i) scale[i] = exp(log_scale[i]);
    for (int64_t i = 0; log_s && i < n; ++i) diagonal.push_back(lu_diagonal(sign[i], log_s[i]));
  }

  static const T* cast(const void* p) { return static_cast<const T*>(p); }

  T lower_factor(int64_t i, int64_t j) const { return lu_lower_factor(lower, n, i, j); }
  T upper_factor(int64_t i, int64_t j, T column_scale) const {
    return lu_upper_factor(upper, n, i, j, diagonal[i], column_scale);
  }

  double log_scale_sum() const { return log_scale ? std::accumulate(log_scale, log_scale + n, 0.0) : 0.0; }

  PaddedMatrix<T> matrix(const void* data) const {
    return PaddedMatrix<T>(n, [&](int64_t i, int64_t j) { return cast(data)[i * n + j]; });
  }
};

// out = L a for unit lower L, whose sums end at the diagonal.
template <typename T>
PaddedMatrix<T> multiply_lower(const PaddedMatrix<T>& lower, const PaddedMatrix<T>& a) {
  const int64_t n = a.size();
  PaddedMatrix<T> out(n);
  for (int64_t i = 0; i < n; i += kBlockRows) {
    const int64_t end = std::min(n, i + kBlockRows);
    gemm<GemmStart::kTarget>(end - i, a.row(), end, lower.left(i), a[0], a.row(), out[i], a.row());
  }
  return out;
}

// out = L^T a for unit lower L, whose sums begin at the diagonal.
template <typename T>
PaddedMatrix<T> multiply_lower_transposed(const PaddedMatrix<T>& lower, const PaddedMatrix<T>& a) {
  const int64_t n = a.size();
  PaddedMatrix<T> out(n);
  for (int64_t i = 0; i < n; i += kBlockRows) {
    const int64_t rows = std::min(n - i, kBlockRows);
    gemm<GemmStart::kTarget>(rows, a.row(), n - i, lower.transposed_left(i, i), a[i], a.row(), out[i],
                             a.row());
  }
  return out;
}

template <typename Left, typename T>
PaddedMatrix<T> multiply(Left a, const PaddedMatrix<T>& b) {
  PaddedMatrix<T> out(b.size());
  gemm<GemmStart::kTarget>(b.size(), b.row(), b.size(), a, b[0], b.row(), out[0], b.row());
  return out;
}

// W^-1, and log|det W| where the layer is full, in double precision.
struct Inverse {
  PaddedMatrix<double> matrix;
  std::vector<int64_t> column;  // column j of W^-1 is column[j] of `matrix`
  double logdet;
};

struct LapackFactors {
  at::Tensor lu, pivots;
  double logdet;

  template <typename T>
  explicit LapackFactors(const Layer<T>& layer) {
    const auto type = c10::CppTypeToScalarType<T>::value;
    const auto weight = at::from_blob(const_cast<T*>(layer.full), {layer.n, layer.n}, type);
    std::tie(lu, pivots, std::ignore) = at::linalg_lu_factor_ex(weight.to(at::kDouble));
    logdet = lu.diagonal().abs().log().sum().template item<double>();
  }

  PaddedMatrix<double> inverse() const {
    const int64_t n = lu.size(0);
    const auto solved = at::linalg_lu_solve(lu, pivots, at::eye(n, lu.options())).contiguous();
    const double* data = solved.const_data_ptr<double>();
    return PaddedMatrix<double>(n, [&](int64_t i, int64_t j) { return data[i * n + j]; });
  }
};

template <typename T>
double factor_full(const Layer<T>& layer, PaddedMatrix<double>& lu, std::vector<int64_t>& pivot) {
  for (int64_t i = 0; i < layer.n; ++i) std::copy_n(layer.full + i * layer.n, layer.n, lu[i]);
  return lu_factor(lu, pivot);
}

template <typename T>
double full_logdet(const Layer<T>& layer) {
  if (layer.n > kMaxOwnChannels) return LapackFactors(layer).logdet;
  PaddedMatrix<double> lu(layer.n);
  std::vector<int64_t> pivot;
  return factor_full(layer, lu, pivot);
}

template <typename T>
Inverse invert(const Layer<T>& layer) {
  const int64_t n = layer.n;
  std::vector<int64_t> column(n), pivot;
  if (layer.full && n > kMaxOwnChannels) {
    const LapackFactors factors(layer);
    std::iota(column.begin(), column.end(), 0);
    return {factors.inverse(), std::move(column), factors.logdet};
  }
  PaddedMatrix<double> lu(n);
  double logdet = 0;
  if (layer.full) {
    logdet = factor_full(layer, lu, pivot);
    for (int64_t i = 0; i < n; ++i) column[pivot[i]] = i;
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const T *below = layer.lower + i * n, *above = layer.upper + i * n;
      std::copy(below, below + i, lu[i]);
      lu(i, i) = lu_diagonal(double(layer.sign[i]), double(layer.log_s[i]));
      std::copy(above + i + 1, above + n, lu[i] + i + 1);
    }
    std::copy_n(layer.permutation, n, column.begin());
  }
  return {lu_inverse(lu), std::move(column), logdet};
}

// The unit lower factor, and the upper one with its columns scaled.
template <typename T>
PaddedMatrix<T> lower_factor(const Layer<T>& layer) {
  return PaddedMatrix<T>(layer.n, [&](int64_t i, int64_t j) { return layer.lower_factor(i, j); });
}

template <typename T>
PaddedMatrix<T> upper_factor(const Layer<T>& layer, const std::vector<T>& scale) {
  return PaddedMatrix<T>(layer.n, [&](int64_t i, int64_t j) { return layer.upper_factor(i, j, scale[j]); });
}

template <typename T>
void forward_layer(const PreparedLayer& p, bool inverse) {
  const Layer<T> layer(p);
  const int64_t n = layer.n;
  T *weight = static_cast<T*>(p.weight), *bias = static_cast<T*>(p.bias);
  double logdet = layer.log_s ? std::accumulate(layer.log_s, layer.log_s + n, 0.0) : 0.0;
  if (inverse) {
    const Inverse inverted = invert(layer);
    if (layer.full) logdet = inverted.logdet;
    for (int64_t i = 0; i < n; ++i) {
      const double factor = layer.log_scale ? std::exp(-double(layer.log_scale[i])) : 1.0;
      const double* row = inverted.matrix[i];
      for (int64_t j = 0; j < n; ++j) weight[i * n + j] = static_cast<T>(factor * row[inverted.column[j]]);
      if (bias) bias[i] = -layer.bias[i];
    }
  } else {
    if (layer.full) {
      logdet = full_logdet(layer);
      for (int64_t i = 0; i < n * n; ++i) weight[i] = layer.full[i] * layer.scale[i % n];
    } else {
      const auto product = multiply_lower(lower_factor(layer), upper_factor(layer, layer.scale));
      for (int64_t i = 0; i < n; ++i) std::copy_n(product[layer.permutation[i]], n, weight + i * n);
    }
    for (int64_t i = 0; bias && i < n; ++i) {
      bias[i] = static_cast<T>(std::inner_product(weight + i * n, weight + (i + 1) * n, layer.bias, 0.0));
    }
  }
  logdet += layer.log_scale_sum();
  *static_cast<T*>(p.logdet) = static_cast<T>(inverse ? -logdet : logdet);
}

// dL/dW without the log-det's part, and the actnorm's gradients; math/invertible_conv1x1.h has the
// derivation. Forward: the gradient of the result, its columns not yet scaled.
template <typename T>
PaddedMatrix<T> fold_backward(const PreparedLayerBackward& p, const Layer<T>& layer, bool inverse) {
  const int64_t n = layer.n;
  auto grad = layer.matrix(p.grad_weight);
  const T *r = layer.result, *h = Layer<T>::cast(p.grad_bias);
  const T logdet = *Layer<T>::cast(p.grad_logdet);
  T *grad_bias = static_cast<T*>(p.grad_actnorm_bias),
    *grad_log_scale = static_cast<T*>(p.grad_actnorm_log_scale);
  if (inverse) {
    for (int64_t i = 0; h && i < n; ++i) {
      grad_bias[i] = -h[i];
      grad_log_scale[i] = static_cast<T>(-std::inner_product(grad[i], grad[i] + n, r + i * n, 0.0)) - logdet;
    }
    auto product = multiply(ColumnMajor<T>{r, n}, grad);  // R^T G
    for (int64_t i = 0; layer.full && i < n; ++i) product(i, i) += logdet;
    const PaddedMatrix<T> transposed(n, [&](int64_t i, int64_t j) { return -r[j * n + i] * layer.scale[j]; });
    return multiply(product.left(), transposed);
  }
  if (!h) return grad;
  std::vector<double> bias_sum(n), scale_sum(n);
  for (int64_t i = 0; i < n; ++i) {
    T* row = grad[i];
    for (int64_t j = 0; j < n; ++j) {
      row[j] += h[i] * layer.bias[j];
      bias_sum[j] += double(h[i] * r[i * n + j]);
      scale_sum[j] += double(row[j] * r[i * n + j]);
    }
  }
  for (int64_t j = 0; j < n; ++j) {
    grad_bias[j] = static_cast<T>(bias_sum[j]);
    grad_log_scale[j] = static_cast<T>(scale_sum[j]) + logdet;
  }
  return grad;
}

template <typename T>
void lu_backward_layer(const PreparedLayerBackward& p, bool inverse) {
  const Layer<T> layer(p.forward);
  const int64_t n = layer.n;
  const auto grad = fold_backward(p, layer, inverse);
  const T logdet = inverse ? -*Layer<T>::cast(p.grad_logdet) : *Layer<T>::cast(p.grad_logdet);
  const std::vector<T> scale = inverse ? std::vector<T>(n, T(1)) : layer.scale;
  PaddedMatrix<T> grad_m(n);
  for (int64_t i = 0; i < n; ++i) std::copy_n(grad[i], n, grad_m[layer.permutation[i]]);
  const auto grad_v = multiply_lower_transposed(lower_factor(layer), grad_m);
  const PaddedMatrix<T> upper_transposed(
      n, [&](int64_t i, int64_t j) { return layer.upper_factor(j, i, scale[i]); });
  const auto grad_l = multiply(grad_m.left(), upper_transposed);
  T *lower = static_cast<T*>(p.grad_lower), *upper = static_cast<T*>(p.grad_upper);
  T* log_s = static_cast<T*>(p.grad_log_s);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      lower[i * n + j] = j < i ? grad_l(i, j) : T(0);
      upper[i * n + j] = j > i ? grad_v(i, j) * scale[j] : T(0);
    }
    log_s[i] = grad_v(i, i) * layer.diagonal[i] * scale[i] + logdet;
  }
}

template <typename T>
void full_backward_layer(const PreparedLayerBackward& p, bool inverse) {
  const Layer<T> layer(p.forward);
  const int64_t n = layer.n;
  const auto grad = fold_backward(p, layer, inverse);
  T* target = static_cast<T*>(p.grad_full);
  if (inverse) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(grad[i], n, target + i * n);
    return;
  }
  const Inverse inverted = invert(layer);
  const double logdet = *Layer<T>::cast(p.grad_logdet);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double inverse_transposed = inverted.matrix(j, inverted.column[i]);
      target[i * n + j] = static_cast<T>(double(grad(i, j) * layer.scale[j]) + logdet * inverse_transposed);
    }
  }
}

// An index outside the matrix would read foreign memory.
void check_permutations(const std::vector<PreparedLayer>& layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    std::vector<bool> seen(layers[i].channels);
    for (int64_t j = 0; j < layers[i].channels; ++j) {
      const int64_t index = layers[i].permutation[j];
      const bool valid = index >= 0 && index < layers[i].channels && !seen[index];
      FLOWOPS_CHECK(kInvertibleConv1x1Lu, valid, "permutation[", i, "] must hold each of 0 to ",
                    layers[i].channels - 1, " once, got ", index, " at position ", j);
      seen[index] = true;
    }
  }
}

PreparedWeights run_forward(const PrepareCall& call, bool inverse) {
  AT_DISPATCH_FLOATING_TYPES(call.logdet.scalar_type(), "invertible_conv1x1", [&] {
    for_each_layer(
        call.layers.size(), [&](int64_t i) { return call.layers[i].channels; },
        [&](int64_t i) { forward_layer<scalar_t>(call.layers[i], inverse); });
  });
  return call.result();
}

}  // namespace

PreparedWeights invertible_conv1x1_lu_cpu(at::TensorList lower, at::TensorList upper, at::TensorList log_s,
                                          at::TensorList sign, at::TensorList permutation,
                                          at::TensorList actnorm_bias, at::TensorList actnorm_log_scale,
                                          bool inverse) {
  check_invertible_conv1x1_lu_inputs(lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale);
  const auto call = prepare_layers(lower, actnorm_bias, actnorm_log_scale, [&](LayerStore& store, size_t i) {
    return lu_layer(store, lower, upper, log_s, sign, permutation, i);
  });
  check_permutations(call.layers);
  return run_forward(call, inverse);
}

PreparedWeights invertible_conv1x1_full_cpu(at::TensorList weight, at::TensorList actnorm_bias,
                                            at::TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_full_inputs(weight, actnorm_bias, actnorm_log_scale);
  const auto call = prepare_layers(weight, actnorm_bias, actnorm_log_scale,
                                   [&](LayerStore& store, size_t i) { return full_layer(store, weight, i); });
  return run_forward(call, inverse);
}

std::tuple<TensorVector, TensorVector, TensorVector, TensorVector, TensorVector>
invertible_conv1x1_lu_backward_cpu(at::TensorList grad_weight, at::TensorList grad_bias,
                                   const at::Tensor& grad_logdet, at::TensorList result, at::TensorList lower,
                                   at::TensorList upper, at::TensorList log_s, at::TensorList sign,
                                   at::TensorList permutation, at::TensorList actnorm_bias,
                                   at::TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_lu_inputs(lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale);
  check_prepared_gradients(kInvertibleConv1x1Lu, grad_weight, grad_bias, grad_logdet, result, lower,
                           actnorm_bias);
  const auto call =
      prepare_layers_backward(grad_weight, grad_bias, grad_logdet, result, log_s, actnorm_bias,
                              actnorm_log_scale, [&](LayerStore& store, size_t i) {
                                return lu_layer(store, lower, upper, log_s, sign, permutation, i);
                              });
  AT_DISPATCH_FLOATING_TYPES(grad_logdet.scalar_type(), "invertible_conv1x1", [&] {
    for_each_layer(
        call.layers.size(), [&](int64_t i) { return call.layers[i].forward.channels; },
        [&](int64_t i) { lu_backward_layer<scalar_t>(call.layers[i], inverse); });
  });
  const auto type = lower[0].scalar_type();
  return {cast_all(call.lower, type), cast_all(call.upper, type), cast_all(call.log_s, type),
          cast_all(call.actnorm_bias, type), cast_all(call.actnorm_log_scale, type)};
}

std::tuple<TensorVector, TensorVector, TensorVector> invertible_conv1x1_full_backward_cpu(
    at::TensorList grad_weight, at::TensorList grad_bias, const at::Tensor& grad_logdet,
    at::TensorList result, at::TensorList weight, at::TensorList actnorm_bias,
    at::TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_full_inputs(weight, actnorm_bias, actnorm_log_scale);
  check_prepared_gradients(kInvertibleConv1x1Full, grad_weight, grad_bias, grad_logdet, result, weight,
                           actnorm_bias);
  const auto call = prepare_layers_backward(
      grad_weight, grad_bias, grad_logdet, result, {}, actnorm_bias, actnorm_log_scale,
      [&](LayerStore& store, size_t i) { return full_layer(store, weight, i); });
  AT_DISPATCH_FLOATING_TYPES(grad_logdet.scalar_type(), "invertible_conv1x1", [&] {
    for_each_layer(
        call.layers.size(), [&](int64_t i) { return call.layers[i].forward.channels; },
        [&](int64_t i) { full_backward_layer<scalar_t>(call.layers[i], inverse); });
  });
  const auto type = weight[0].scalar_type();
  return {cast_all(call.full, type), cast_all(call.actnorm_bias, type),
          cast_all(call.actnorm_log_scale, type)};
}

}  // namespace flowops
