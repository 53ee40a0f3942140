// invertible_conv1x1_lu, invertible_conv1x1_full: weight, bias and log-det of all layers of a model in one
// call. Contract, checks and operands, shared by the backends. The algebra is in math/invertible_conv1x1.h.
//
// LU of the 1x1 convolution (Glow): W = P L (U + diag(sign exp(log_s))), L unit lower, U strictly upper, P
// fixed, given as an index: (P A)[i] = A[permutation[i]]. Strict triangles of lower and upper are read.
// logdet (layers,), nats per pixel. With an actnorm z = (x + b) exp(s) before it, weight W diag(exp(s)), bias
// W (exp(s) b) and log-det sum(s) more. `inverse` gives those of the inverse map x = diag(exp(-s)) W^-1 z -
// b.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "common/checks.h"
#include "ops/invertible_conv1x1_params.h"

namespace flowops {

using PreparedWeights = std::tuple<TensorVector, TensorVector, at::Tensor>;

// Results are in the accumulation type of the parameters: float32 for halves.
PreparedWeights invertible_conv1x1_lu(at::TensorList lower, at::TensorList upper, at::TensorList log_s,
                                      at::TensorList sign, at::TensorList permutation,
                                      at::TensorList actnorm_bias, at::TensorList actnorm_log_scale,
                                      bool inverse);

PreparedWeights invertible_conv1x1_full(at::TensorList weight, at::TensorList actnorm_bias,
                                        at::TensorList actnorm_log_scale, bool inverse);

// `result` is the weight that the forward pass returned. Gradients of lower, upper, log_s, actnorm_bias and
// actnorm_log_scale, each of the shape and type of its parameter.
std::tuple<TensorVector, TensorVector, TensorVector, TensorVector, TensorVector>
invertible_conv1x1_lu_backward(at::TensorList grad_weight, at::TensorList grad_bias,
                               const at::Tensor& grad_logdet, at::TensorList result, at::TensorList lower,
                               at::TensorList upper, at::TensorList log_s, at::TensorList sign,
                               at::TensorList permutation, at::TensorList actnorm_bias,
                               at::TensorList actnorm_log_scale, bool inverse);

std::tuple<TensorVector, TensorVector, TensorVector> invertible_conv1x1_full_backward(
    at::TensorList grad_weight, at::TensorList grad_bias, const at::Tensor& grad_logdet,
    at::TensorList result, at::TensorList weight, at::TensorList actnorm_bias,
    at::TensorList actnorm_log_scale, bool inverse);

inline constexpr const char* kInvertibleConv1x1Lu = "invertible_conv1x1_lu";
inline constexpr const char* kInvertibleConv1x1Full = "invertible_conv1x1_full";

inline void check_layer_list(const char* op, const char* name, at::TensorList list, at::TensorList like,
                             bool matrices) {
  FLOWOPS_CHECK(op, list.size() == like.size(), name, " must have one tensor a layer, ", like.size(),
                ", got ", list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t channels = like[i].size(0);
    const bool fits = matrices
                          ? list[i].dim() == 2 && list[i].size(0) == channels && list[i].size(1) == channels
                          : list[i].dim() == 1 && list[i].size(0) == channels;
    const auto expected =
        matrices ? std::vector<int64_t>{channels, channels} : std::vector<int64_t>{channels};
    FLOWOPS_CHECK(op, fits, name, "[", i, "] must have shape ", at::IntArrayRef(expected), ", got ",
                  list[i].sizes());
  }
}

inline void check_layer_type(const char* op, const char* name, at::TensorList list, at::ScalarType type,
                             const at::Tensor& like) {
  for (size_t i = 0; i < list.size(); ++i) {
    FLOWOPS_CHECK(op, list[i].scalar_type() == type, name, "[", i, "] must be ", type, ", got ",
                  list[i].scalar_type());
    FLOWOPS_CHECK(op, list[i].device() == like.device(), name, "[", i, "] must be on ", like.device(),
                  ", got ", list[i].device());
  }
}

// `matrices` is `lower` or the full weight: what the other lists are compared with.
inline void check_layers(const char* op, const char* name, at::TensorList matrices,
                         at::TensorList actnorm_bias, at::TensorList actnorm_log_scale) {
  FLOWOPS_CHECK(op, !matrices.empty(), name, " must hold at least one layer, got an empty list");
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto& m = matrices[i];
    FLOWOPS_CHECK(op, m.dim() == 2 && m.size(0) == m.size(1), name, "[", i,
                  "] must be a square matrix, got shape ", m.sizes());
    FLOWOPS_CHECK(op, m.is_floating_point(), name, "[", i, "] must be floating-point, got ", m.scalar_type());
  }
  check_layer_type(op, name, matrices, matrices[0].scalar_type(), matrices[0]);
  FLOWOPS_CHECK(op, actnorm_bias.size() == actnorm_log_scale.size(),
                "actnorm_bias and actnorm_log_scale must be given together, got ", actnorm_bias.size(),
                " and ", actnorm_log_scale.size());
  if (actnorm_bias.empty()) return;
  check_layer_list(op, "actnorm_bias", actnorm_bias, matrices, false);
  check_layer_list(op, "actnorm_log_scale", actnorm_log_scale, matrices, false);
  check_layer_type(op, "actnorm_bias", actnorm_bias, matrices[0].scalar_type(), matrices[0]);
  check_layer_type(op, "actnorm_log_scale", actnorm_log_scale, matrices[0].scalar_type(), matrices[0]);
}

inline void check_invertible_conv1x1_lu_inputs(at::TensorList lower, at::TensorList upper,
                                               at::TensorList log_s, at::TensorList sign,
                                               at::TensorList permutation, at::TensorList actnorm_bias,
                                               at::TensorList actnorm_log_scale) {
  const char* op = kInvertibleConv1x1Lu;
  check_layers(op, "lower", lower, actnorm_bias, actnorm_log_scale);
  check_layer_list(op, "upper", upper, lower, true);
  check_layer_list(op, "log_s", log_s, lower, false);
  check_layer_list(op, "sign", sign, lower, false);
  check_layer_list(op, "permutation", permutation, lower, false);
  const auto type = lower[0].scalar_type();
  check_layer_type(op, "upper", upper, type, lower[0]);
  check_layer_type(op, "log_s", log_s, type, lower[0]);
  check_layer_type(op, "sign", sign, type, lower[0]);
  check_layer_type(op, "permutation", permutation, at::kLong, lower[0]);
}

inline void check_invertible_conv1x1_full_inputs(at::TensorList weight, at::TensorList actnorm_bias,
                                                 at::TensorList actnorm_log_scale) {
  check_layers(kInvertibleConv1x1Full, "weight", weight, actnorm_bias, actnorm_log_scale);
}

inline void check_prepared_gradients(const char* op, at::TensorList grad_weight, at::TensorList grad_bias,
                                     const at::Tensor& grad_logdet, at::TensorList result,
                                     at::TensorList matrices, at::TensorList actnorm_bias) {
  const auto wide = accumulation_type(matrices[0].scalar_type());
  check_layer_list(op, "grad_weight", grad_weight, matrices, true);
  check_layer_list(op, "result", result, matrices, true);
  check_layer_list(op, "grad_bias", grad_bias, at::TensorList(matrices.data(), actnorm_bias.size()), false);
  check_layer_type(op, "grad_weight", grad_weight, wide, matrices[0]);
  check_layer_type(op, "result", result, wide, matrices[0]);
  check_layer_type(op, "grad_bias", grad_bias, wide, matrices[0]);
  FLOWOPS_CHECK(op, grad_logdet.dim() == 1 && grad_logdet.size(0) == int64_t(matrices.size()),
                "grad_logdet must have shape [", matrices.size(), "], got ", grad_logdet.sizes());
  FLOWOPS_CHECK(op, grad_logdet.scalar_type() == wide, "grad_logdet must be ", wide, ", got ",
                grad_logdet.scalar_type());
}

// Contiguous tensors of the arithmetic type, kept alive while kernels use pointers into them.
class LayerStore {
 public:
  explicit LayerStore(at::ScalarType type) : type_(type) {}

  const void* input(at::TensorList list, size_t i) {
    if (list.empty()) return nullptr;
    held_.push_back(list[i].to(type_).contiguous());
    return held_.back().const_data_ptr();
  }

  const int64_t* index(at::TensorList list, size_t i) {
    held_.push_back(list[i].contiguous());
    return held_.back().const_data_ptr<int64_t>();
  }

  void* output(TensorVector& list, const at::Tensor& like) {
    list.push_back(like.new_empty(like.sizes(), type_));
    return list.back().data_ptr();
  }

 private:
  at::ScalarType type_;
  TensorVector held_;
};

inline void* element_pointer(const at::Tensor& vector, size_t i) {
  return static_cast<char*>(vector.data_ptr()) + i * vector.element_size();
}

struct PrepareCall {
  LayerStore store;
  TensorVector weight, bias;
  at::Tensor logdet;
  std::vector<PreparedLayer> layers;

  explicit PrepareCall(at::ScalarType type) : store(type) {}
  PreparedWeights result() const { return {weight, bias, logdet}; }
};

inline void add_actnorm(LayerStore& store, PreparedLayer& layer, at::TensorList actnorm_bias,
                        at::TensorList actnorm_log_scale, size_t i) {
  layer.actnorm_bias = store.input(actnorm_bias, i);
  layer.actnorm_log_scale = store.input(actnorm_log_scale, i);
}

inline PreparedLayer lu_layer(LayerStore& store, at::TensorList lower, at::TensorList upper,
                              at::TensorList log_s, at::TensorList sign, at::TensorList permutation,
                              size_t i) {
  PreparedLayer layer;
  layer.channels = lower[i].size(0);
  layer.lower = store.input(lower, i);
  layer.upper = store.input(upper, i);
  layer.log_s = store.input(log_s, i);
  layer.sign = store.input(sign, i);
  layer.permutation = store.index(permutation, i);
  return layer;
}

inline PreparedLayer full_layer(LayerStore& store, at::TensorList weight, size_t i) {
  PreparedLayer layer;
  layer.channels = weight[i].size(0);
  layer.full = store.input(weight, i);
  return layer;
}

// `make_layer(store, i)` gives the inputs of layer i; the outputs are added here.
template <typename MakeLayer>
PrepareCall prepare_layers(at::TensorList matrices, at::TensorList actnorm_bias,
                           at::TensorList actnorm_log_scale, const MakeLayer& make_layer) {
  const auto wide = accumulation_type(matrices[0].scalar_type());
  PrepareCall call(wide);
  call.logdet = matrices[0].new_empty({int64_t(matrices.size())}, wide);
  for (size_t i = 0; i < matrices.size(); ++i) {
    PreparedLayer layer = make_layer(call.store, i);
    add_actnorm(call.store, layer, actnorm_bias, actnorm_log_scale, i);
    layer.weight = call.store.output(call.weight, matrices[i]);
    if (!actnorm_bias.empty()) layer.bias = call.store.output(call.bias, actnorm_bias[i]);
    layer.logdet = element_pointer(call.logdet, i);
    call.layers.push_back(layer);
  }
  return call;
}

struct PrepareBackwardCall {
  LayerStore store;
  TensorVector lower, upper, log_s, full, actnorm_bias, actnorm_log_scale;
  at::Tensor grad_logdet;
  std::vector<PreparedLayerBackward> layers;

  explicit PrepareBackwardCall(at::ScalarType type) : store(type) {}
};

template <typename MakeLayer>
PrepareBackwardCall prepare_layers_backward(at::TensorList grad_weight, at::TensorList grad_bias,
                                            const at::Tensor& grad_logdet, at::TensorList result,
                                            at::TensorList log_s, at::TensorList actnorm_bias,
                                            at::TensorList actnorm_log_scale, const MakeLayer& make_layer) {
  PrepareBackwardCall call(result[0].scalar_type());
  call.grad_logdet = grad_logdet.contiguous();
  for (size_t i = 0; i < result.size(); ++i) {
    PreparedLayerBackward layer;
    layer.forward = make_layer(call.store, i);
    add_actnorm(call.store, layer.forward, actnorm_bias, actnorm_log_scale, i);
    layer.forward.weight = const_cast<void*>(call.store.input(result, i));
    layer.grad_weight = call.store.input(grad_weight, i);
    layer.grad_bias = call.store.input(grad_bias, i);
    layer.grad_logdet = element_pointer(call.grad_logdet, i);
    if (log_s.empty()) {
      layer.grad_full = call.store.output(call.full, result[i]);
    } else {
      layer.grad_lower = call.store.output(call.lower, result[i]);
      layer.grad_upper = call.store.output(call.upper, result[i]);
      layer.grad_log_s = call.store.output(call.log_s, log_s[i]);
    }
    if (!actnorm_bias.empty()) {
      layer.grad_actnorm_bias = call.store.output(call.actnorm_bias, actnorm_bias[i]);
      layer.grad_actnorm_log_scale = call.store.output(call.actnorm_log_scale, actnorm_log_scale[i]);
    }
    call.layers.push_back(layer);
  }
  return call;
}

// The gradients in the type of the parameters.
inline TensorVector cast_all(const TensorVector& list, at::ScalarType type) {
  TensorVector result;
  for (const auto& tensor : list) result.push_back(tensor.to(type));
  return result;
}

}  // namespace flowops
