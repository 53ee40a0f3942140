#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/dispatch.h"
#include "cpu/matrix_rows.h"
#include "math/spectral_norm.h"
#include "ops/spectral_norm.h"

namespace flowops {
namespace {

// Elements of a block of rows. Blocks are summed one after another, so that results do not depend on the
// number of threads.
constexpr int64_t kBlockElements = 1 << 17;
// Elements of all layers below which a second thread costs more than it brings.
constexpr int64_t kParallelElements = 1 << 14;

// A matrix cut into blocks of whole rows.
struct RowBlocks {
  int64_t rows, columns, height, count;

  RowBlocks(int64_t rows_, int64_t columns_)
      : rows(rows_),
        columns(columns_),
        height(std::min(rows_, std::max<int64_t>(kGroupedRows, kBlockElements / columns_))),
        count((rows_ + height - 1) / height) {}

  // Calls body(block, first row, rows), on several threads unless the caller is one of several.
  template <typename Body>
  void for_each(const Body& body) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) body(b, b * height, std::min(height, rows - b * height));
    });
  }
};

// Calls body(layer) for all layers: those that are more than a thread's share one after another, each with
// all threads, the others dealt to the threads, large ones first.
template <typename Layer, typename Body>
void for_each_layer(const std::vector<Layer>& layers, const Body& body) {
  const auto size = [&](int64_t i) { return layers[i].rows * layers[i].columns; };
  std::vector<int64_t> order(layers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size(a) > size(b); });
  int64_t total = 0;
  for (const int64_t i : order) total += size(i);
  const int64_t threads = total < kParallelElements ? 1 : at::get_num_threads();
  size_t first = 0;
  while (first < order.size() && threads > 1 && size(order[first]) > total / threads) {
    body(layers[order[first++]]);
  }
  std::atomic<size_t> next{first};
  at::parallel_for(0, std::min<int64_t>(threads, order.size() - first), 1, [&](int64_t, int64_t) {
    for (size_t i = next++; i < order.size(); i = next++) body(layers[order[i]]);
  });
}

template <typename T>
double length(const std::vector<T>& x) {
  return std::sqrt(double(dot(x.data(), x.data(), x.size())));
}

// The power iteration on one matrix: u, v and sigma.
template <typename scalar_t>
class PowerIteration {
  using T = at::opmath_type<scalar_t>;

 public:
  explicit PowerIteration(const SpectralNormLayer& p)
      : blocks_(p.rows, p.columns),
        weight_(static_cast<const scalar_t*>(p.weight)),
        u_(static_cast<T*>(p.new_u)),
        v_(static_cast<T*>(p.new_v)),
        product_(p.rows),
        sums_(p.columns),
        partial_(blocks_.count * p.columns) {
    std::copy_n(static_cast<const T*>(p.u), p.rows, u_);
    std::copy_n(static_cast<const T*>(p.v), p.columns, v_);
  }

  double run(const SpectralNormSettings& settings) {
    double sigma = 0;
    for (int64_t i = 0; i < settings.iterations; ++i) sigma = iterate(settings.eps);
    if (settings.iterations > 0) return sigma;
    blocks_.for_each([&](int64_t, int64_t first, int64_t rows) {
      multiply_rows(row(first), rows, blocks_.columns, v_, product_.data() + first);
    });
    return dot(u_, product_.data(), blocks_.rows);
  }

 private:
  const scalar_t* row(int64_t i) const { return weight_ + i * blocks_.columns; }

  // W^T W v is summed while a few rows lie in the cache, so that an iteration reads W once.
  double iterate(double eps) {
    const int64_t columns = blocks_.columns;
    blocks_.for_each([&](int64_t block, int64_t first, int64_t rows) {
      T* partial = partial_.data() + block * columns;
      std::fill_n(partial, columns, T(0));
      for (int64_t i = first; i < first + rows; i += kGroupedRows) {
        const int64_t count = std::min(kGroupedRows, first + rows - i);
        multiply_rows(row(i), count, columns, v_, product_.data() + i);
        add_rows(row(i), count, columns, product_.data() + i, partial);
      }
    });
    const double norm = length(product_);
    const bool moves = gives_direction(norm, eps);
    if (moves) {
      for (int64_t i = 0; i < blocks_.rows; ++i) u_[i] = static_cast<T>(product_[i] / norm);
    } else {
      blocks_.for_each([&](int64_t block, int64_t first, int64_t rows) {
        T* partial = partial_.data() + block * columns;
        std::fill_n(partial, columns, T(0));
        add_rows(row(first), rows, columns, u_ + first, partial);
      });
    }
    std::fill(sums_.begin(), sums_.end(), T(0));
    for (int64_t b = 0; b < blocks_.count; ++b) {
      const T* partial = partial_.data() + b * columns;
      for (int64_t j = 0; j < columns; ++j) sums_[j] += partial[j];
    }
    const T scale = static_cast<T>(moves ? 1 / norm : 1);
    for (int64_t j = 0; j < columns; ++j) sums_[j] *= scale;
    const double sum_norm = length(sums_);
    if (!gives_direction(sum_norm, eps)) return dot(sums_.data(), v_, columns);
    for (int64_t j = 0; j < columns; ++j) v_[j] = static_cast<T>(sums_[j] / sum_norm);
    return sum_norm;
  }

  RowBlocks blocks_;
  const scalar_t* weight_;
  T *u_, *v_;
  std::vector<T> product_, sums_, partial_;  // W v, W^T u, and its part of every block
};

template <typename scalar_t>
void normalize_layer(const SpectralNormLayer& p, const SpectralNormSettings& settings) {
  using T = at::opmath_type<scalar_t>;
  const double sigma = PowerIteration<scalar_t>(p).run(settings);
  const T factor = static_cast<T>(spectral_scale(sigma, settings.coefficient).factor);
  const auto* weight = static_cast<const scalar_t*>(p.weight);
  auto* result = static_cast<scalar_t*>(p.result);
  const RowBlocks blocks(p.rows, p.columns);
  blocks.for_each([&](int64_t, int64_t first, int64_t rows) {
    scale_row(weight + first * p.columns, rows * p.columns, factor, result + first * p.columns);
  });
  *static_cast<T*>(p.sigma) = static_cast<T>(sigma);
}

template <typename scalar_t>
void backward_layer(const SpectralNormLayerBackward& p, const SpectralNormSettings& settings) {
  using T = at::opmath_type<scalar_t>;
  const auto *grad = static_cast<const scalar_t*>(p.grad_result),
             *weight = static_cast<const scalar_t*>(p.weight);
  const auto *u = static_cast<const T*>(p.u), *v = static_cast<const T*>(p.v);
  const auto scale = spectral_scale<double>(*static_cast<const T*>(p.sigma), settings.coefficient);
  const RowBlocks blocks(p.rows, p.columns);
  std::vector<double> products(blocks.count);
  if (scale.slope != 0) {
    blocks.for_each([&](int64_t block, int64_t first, int64_t rows) {
      products[block] = dot(grad + first * p.columns, weight + first * p.columns, rows * p.columns);
    });
  }
  const double product = std::accumulate(products.begin(), products.end(), 0.0);
  const double direction =
      spectral_direction_gradient<double>(product, *static_cast<const T*>(p.grad_sigma), scale.slope);
  auto* target = static_cast<scalar_t*>(p.grad_weight);
  const T factor = static_cast<T>(scale.factor);
  blocks.for_each([&](int64_t, int64_t first, int64_t rows) {
    for (int64_t i = first; i < first + rows; ++i) {
      const T along = static_cast<T>(direction * u[i]);
      scale_and_add_row(grad + i * p.columns, p.columns, factor, v, along, target + i * p.columns);
    }
  });
}

}  // namespace

SpectralNormResult spectral_norm_cpu(at::TensorList weight, at::TensorList u, at::TensorList v,
                                     int64_t n_power_iterations, double eps,
                                     std::optional<double> coefficient) {
  check_spectral_norm_inputs(weight, u, v, n_power_iterations, eps, coefficient);
  const auto call = prepare_spectral_norm(weight, u, v, {n_power_iterations, eps, coefficient.value_or(0)});
  FLOWOPS_DISPATCH(weight[0].scalar_type(), kSpectralNorm, [&] {
    for_each_layer(call.layers,
                   [&](const SpectralNormLayer& layer) { normalize_layer<scalar_t>(layer, call.settings); });
  });
  return call.finish(u, v);
}

TensorVector spectral_norm_backward_cpu(at::TensorList grad_result, const at::Tensor& grad_sigma,
                                        at::TensorList weight, at::TensorList u, at::TensorList v,
                                        const at::Tensor& sigma, std::optional<double> coefficient) {
  check_spectral_norm_backward_inputs(grad_result, grad_sigma, weight, u, v, sigma, coefficient);
  SpectralNormSettings settings;
  settings.coefficient = coefficient.value_or(0);
  const auto call = prepare_spectral_norm_backward(grad_result, grad_sigma, weight, u, v, sigma, settings);
  FLOWOPS_DISPATCH(weight[0].scalar_type(), kSpectralNorm, [&] {
    for_each_layer(call.layers, [&](const SpectralNormLayerBackward& layer) {
      backward_layer<scalar_t>(layer, call.settings);
    });
  });
  return call.grad_weight;
}

}  // namespace flowops
