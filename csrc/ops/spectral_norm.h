// spectral_norm: sigma by power iteration and the weights it normalises, all layers of a model in one call.
// Contract, checks and operands, shared by the backends. The algebra is in math/spectral_norm.h.
//
// A weight (M, ...) is the matrix W (M, N) of its rows; u (M,) and v (N,) are unit vectors. One iteration is
// u = W v / |W v|, then v = W^T u / |W^T u|; after all of them sigma = u^T W v. The result is W / sigma, or
// W / max(1, sigma / coefficient). u and v are of the type of the weight or the accumulation type, and are
// returned in it; nothing is changed in place.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "ops/spectral_norm_params.h"

namespace flowops {

using SpectralNormResult = std::tuple<TensorVector, TensorVector, TensorVector, at::Tensor>;

// Weights, u, v, and sigma (layers,) in the accumulation type.
SpectralNormResult spectral_norm(at::TensorList weight, at::TensorList u, at::TensorList v,
                                 int64_t n_power_iterations, double eps, std::optional<double> coefficient);

// The gradients of the weights. `u`, `v` and `sigma` are those that the forward pass returned.
TensorVector spectral_norm_backward(at::TensorList grad_result, const at::Tensor& grad_sigma,
                                    at::TensorList weight, at::TensorList u, at::TensorList v,
                                    const at::Tensor& sigma, std::optional<double> coefficient);

inline constexpr const char* kSpectralNorm = "spectral_norm";

inline void check_spectral_vectors(const char* name, at::TensorList vectors, at::TensorList weight,
                                   bool rows) {
  const char* op = kSpectralNorm;
  const auto type = weight[0].scalar_type(), wide = accumulation_type(type);
  FLOWOPS_CHECK(op, vectors.size() == weight.size(), name, " must have one tensor a layer, ", weight.size(),
                ", got ", vectors.size());
  for (size_t i = 0; i < vectors.size(); ++i) {
    const auto& vector = vectors[i];
    const int64_t size = rows ? weight[i].size(0) : weight[i].numel() / weight[i].size(0);
    FLOWOPS_CHECK(op, vector.dim() == 1 && vector.size(0) == size, name, "[", i, "] must have shape [", size,
                  "] (one value a ", rows ? "row" : "column", " of weight[", i, "]), got ", vector.sizes());
    FLOWOPS_CHECK(op, vector.scalar_type() == type || vector.scalar_type() == wide, name, "[", i,
                  "] must be ", type, " (like weight) or ", wide, ", got ", vector.scalar_type());
    FLOWOPS_CHECK(op, vector.device() == weight[0].device(), name, "[", i, "] must be on ",
                  weight[0].device(), ", got ", vector.device());
  }
}

inline void check_spectral_weights(at::TensorList weight, std::optional<double> coefficient) {
  const char* op = kSpectralNorm;
  FLOWOPS_CHECK(op, !weight.empty(), "weight must hold at least one layer, got an empty list");
  const auto type = weight[0].scalar_type();
  for (size_t i = 0; i < weight.size(); ++i) {
    const auto& w = weight[i];
    FLOWOPS_CHECK(op, w.dim() >= 2 && w.numel() > 0, "weight[", i,
                  "] must have at least two dimensions and one element, got shape ", w.sizes());
    FLOWOPS_CHECK(op, w.scalar_type() == type, "weight[", i, "] must be ", type, ", got ", w.scalar_type());
    FLOWOPS_CHECK(op, w.device() == weight[0].device(), "weight[", i, "] must be on ", weight[0].device(),
                  ", got ", w.device());
  }
  FLOWOPS_CHECK(op, type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
                "weight must be float64, float32, float16 or bfloat16, got ", type);
  FLOWOPS_CHECK(op, !coefficient || *coefficient > 0, "coefficient must be positive, got ",
                coefficient.value_or(0));
}

inline void check_spectral_norm_inputs(at::TensorList weight, at::TensorList u, at::TensorList v,
                                       int64_t n_power_iterations, double eps,
                                       std::optional<double> coefficient) {
  check_spectral_weights(weight, coefficient);
  check_spectral_vectors("u", u, weight, true);
  check_spectral_vectors("v", v, weight, false);
  FLOWOPS_CHECK(kSpectralNorm, n_power_iterations >= 0, "n_power_iterations must not be negative, got ",
                n_power_iterations);
  FLOWOPS_CHECK(kSpectralNorm, eps >= 0, "eps must not be negative, got ", eps);
}

inline void check_spectral_norm_backward_inputs(at::TensorList grad_result, const at::Tensor& grad_sigma,
                                                at::TensorList weight, at::TensorList u, at::TensorList v,
                                                const at::Tensor& sigma, std::optional<double> coefficient) {
  const char* op = kSpectralNorm;
  check_spectral_weights(weight, coefficient);
  check_spectral_vectors("u", u, weight, true);
  check_spectral_vectors("v", v, weight, false);
  FLOWOPS_CHECK(op, grad_result.size() == weight.size(), "grad_result must have one tensor a layer, ",
                weight.size(), ", got ", grad_result.size());
  for (size_t i = 0; i < weight.size(); ++i) {
    const auto &grad = grad_result[i], &w = weight[i];
    const bool fits =
        grad.sizes() == w.sizes() && grad.scalar_type() == w.scalar_type() && grad.device() == w.device();
    FLOWOPS_CHECK(op, fits, "grad_result[", i, "] must be like weight[", i, "], ", w.toString(), " ",
                  w.sizes(), ", got ", grad.toString(), " ", grad.sizes());
  }
  const auto wide = accumulation_type(weight[0].scalar_type());
  for (const auto& [name, t] : {std::make_pair("grad_sigma", &grad_sigma), std::make_pair("sigma", &sigma)}) {
    const bool fits = t->dim() == 1 && t->size(0) == int64_t(weight.size()) && t->scalar_type() == wide &&
                      t->device() == weight[0].device();
    FLOWOPS_CHECK(op, fits, name, " must be ", wide, " [", weight.size(), "] on ", weight[0].device(),
                  ", got ", t->toString(), " ", t->sizes());
  }
}

// The rows of `weight` lie in memory one after another, each dense, though its elements may be in another
// order than in the shape, as in channels_last.
inline bool has_dense_rows(const at::Tensor& weight) {
  return weight.is_non_overlapping_and_dense() &&
         (weight.size(0) == 1 || weight.stride(0) * weight.size(0) == weight.numel());
}

// Tensors that must live until the kernels have run, beside the pointers into them.
class SpectralStore {
 public:
  explicit SpectralStore(const at::Tensor& like)
      : wide_(accumulation_type(like.scalar_type())), options_(like.options().dtype(wide_)) {}

  const void* hold(at::Tensor tensor) {
    held_.push_back(std::move(tensor));
    return held_.back().const_data_ptr();
  }

  const void* rows(const at::Tensor& vector) { return hold(vector.to(wide_).contiguous()); }

  // A vector over the columns, in the order that they have in the rows of `weight`.
  const void* columns(const at::Tensor& vector, const at::Tensor& weight) {
    if (weight.is_contiguous()) return rows(vector);
    return hold(new_columns(weight).copy_(vector.reshape(weight.sizes().slice(1))));
  }

  at::Tensor new_columns(const at::Tensor& weight) const {
    if (weight.is_contiguous()) return weight.new_empty({weight.numel() / weight.size(0)}, options_);
    return weight.new_empty_strided(weight.sizes().slice(1), weight.strides().slice(1), options_);
  }

  at::Tensor new_vector(const at::Tensor& like, int64_t size) const {
    return like.new_empty({size}, options_);
  }

  // `tensor` in the memory order of `weight`.
  const void* arranged(const at::Tensor& tensor, const at::Tensor& weight) {
    return hold(tensor.strides() == weight.strides() ? tensor : new_weight(weight).copy_(tensor));
  }

  static at::Tensor new_weight(const at::Tensor& like) {
    return like.new_empty_strided(like.sizes(), like.strides());
  }

 private:
  at::ScalarType wide_;
  at::TensorOptions options_;
  TensorVector held_;
};

inline at::Tensor with_dense_rows(const at::Tensor& weight) {
  return has_dense_rows(weight) ? weight : weight.contiguous();
}

struct SpectralNormCall {
  SpectralStore store;
  SpectralNormSettings settings;
  TensorVector result, u, v;
  at::Tensor sigma;
  std::vector<SpectralNormLayer> layers;

  // The vectors in the types in which they came.
  SpectralNormResult finish(at::TensorList old_u, at::TensorList old_v) const {
    TensorVector new_u(u.size()), new_v(v.size());
    for (size_t i = 0; i < u.size(); ++i) {
      new_u[i] = u[i].to(old_u[i].scalar_type());
      new_v[i] = (v[i].dim() == 1 ? v[i] : v[i].reshape({-1})).to(old_v[i].scalar_type());
    }
    return {result, new_u, new_v, sigma};
  }
};

struct SpectralNormBackwardCall {
  SpectralStore store;
  SpectralNormSettings settings;
  TensorVector grad_weight;
  std::vector<SpectralNormLayerBackward> layers;
};

inline void* element_of(const at::Tensor& vector, size_t i) {
  return static_cast<char*>(vector.data_ptr()) + i * vector.element_size();
}

inline SpectralNormCall prepare_spectral_norm(at::TensorList weight, at::TensorList u, at::TensorList v,
                                              const SpectralNormSettings& settings) {
  SpectralNormCall call{SpectralStore(weight[0]), settings, {}, {}, {}, {}, {}};
  call.sigma = call.store.new_vector(weight[0], weight.size());
  for (size_t i = 0; i < weight.size(); ++i) {
    const at::Tensor w = with_dense_rows(weight[i]);
    call.result.push_back(SpectralStore::new_weight(w));
    call.u.push_back(call.store.new_vector(w, w.size(0)));
    call.v.push_back(call.store.new_columns(w));
    SpectralNormLayer layer;
    layer.rows = w.size(0), layer.columns = w.numel() / w.size(0);
    layer.weight = call.store.hold(w);
    layer.u = call.store.rows(u[i]);
    layer.v = call.store.columns(v[i], w);
    layer.result = call.result.back().data_ptr();
    layer.new_u = call.u.back().data_ptr();
    layer.new_v = call.v.back().data_ptr();
    layer.sigma = element_of(call.sigma, i);
    call.layers.push_back(layer);
  }
  return call;
}

inline SpectralNormBackwardCall prepare_spectral_norm_backward(at::TensorList grad_result,
                                                               const at::Tensor& grad_sigma,
                                                               at::TensorList weight, at::TensorList u,
                                                               at::TensorList v, const at::Tensor& sigma,
                                                               const SpectralNormSettings& settings) {
  SpectralNormBackwardCall call{SpectralStore(weight[0]), settings, {}, {}};
  const at::Tensor grad_sigmas = grad_sigma.contiguous(), sigmas = sigma.contiguous();
  call.store.hold(grad_sigmas), call.store.hold(sigmas);
  for (size_t i = 0; i < weight.size(); ++i) {
    const at::Tensor w = with_dense_rows(weight[i]);
    call.grad_weight.push_back(SpectralStore::new_weight(w));
    SpectralNormLayerBackward layer;
    layer.rows = w.size(0), layer.columns = w.numel() / w.size(0);
    layer.weight = call.store.hold(w);
    layer.grad_result = call.store.arranged(grad_result[i], w);
    layer.u = call.store.rows(u[i]);
    layer.v = call.store.columns(v[i], w);
    layer.sigma = element_of(sigmas, i);
    layer.grad_sigma = element_of(grad_sigmas, i);
    layer.grad_weight = call.grad_weight.back().data_ptr();
    call.layers.push_back(layer);
  }
  return call;
}

}  // namespace flowops
