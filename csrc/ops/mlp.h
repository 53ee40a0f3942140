// mlp: linear layers with ReLU between them, on the rows of x (batch, inputs). Contract, checks and shapes,
// shared by the backends.
//
// Layer i of n has weight[i] (outputs, inputs) and bias[i] (outputs,). With a_0 = x and a_i = relu(p_{i-1}),
//   p_i = weight[i] a_i + bias[i]   (+ p_{i-2} for i = 2, 4, ... where the network is residual),
// and the result is p_{n-1}. The others stand side by side in `hidden` (batch, all their widths), which the
// backward pass reads; it has no columns where it is not kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "common/checks.h"

namespace flowops {

// The result and `hidden`, both like x.
std::tuple<at::Tensor, at::Tensor> mlp(const at::Tensor& x, at::TensorList weight, at::TensorList bias,
                                       bool residual, bool keep_hidden);

// The gradients of x, of the weights and of the biases; all are always computed.
std::tuple<at::Tensor, TensorVector, TensorVector> mlp_backward(const at::Tensor& grad_out,
                                                                const at::Tensor& x, const at::Tensor& hidden,
                                                                at::TensorList weight, bool residual);

inline constexpr const char* kMlp = "mlp";

// Whether layer i of a residual network adds what came before the layer ahead of it.
inline bool has_skip(size_t i, bool residual) { return residual && i >= 2 && i % 2 == 0; }

inline int64_t hidden_width(at::TensorList weight) {
  int64_t width = 0;
  for (size_t i = 0; i + 1 < weight.size(); ++i) width += weight[i].size(0);
  return width;
}

inline void check_mlp_weights(const at::Tensor& x, at::TensorList weight, bool residual) {
  FLOWOPS_CHECK(kMlp, !weight.empty(), "weight must hold at least one layer, got an empty list");
  FLOWOPS_CHECK(kMlp, !residual || weight.size() % 2 == 0,
                "weight must hold an even number of layers for a residual network, got ", weight.size());
  int64_t inputs = x.size(1);
  for (size_t i = 0; i < weight.size(); ++i) {
    const auto& w = weight[i];
    FLOWOPS_CHECK(kMlp, w.dim() == 2 && w.size(1) == inputs, "weight[", i, "] must have shape [outputs, ",
                  inputs, "], got ", w.sizes());
    FLOWOPS_CHECK(kMlp, !has_skip(i, residual) || w.size(0) == weight[i - 2].size(0), "weight[", i,
                  "] must have ", weight[i - 2].size(0), " outputs, to which those of layer ", i - 2,
                  " are added, got ", w.size(0));
    FLOWOPS_CHECK(kMlp, w.scalar_type() == x.scalar_type(), "weight[", i, "] must be ", x.scalar_type(),
                  " (like x), got ", w.scalar_type());
    FLOWOPS_CHECK(kMlp, w.device() == x.device(), "weight[", i, "] must be on ", x.device(),
                  " (like x), got ", w.device());
    inputs = w.size(0);
  }
}

inline void check_mlp_inputs(const at::Tensor& x, at::TensorList weight, at::TensorList bias, bool residual) {
  check_data(kMlp, "x", x);
  FLOWOPS_CHECK(kMlp, x.dim() == 2, "x must have shape (batch, inputs), got ", x.sizes());
  check_mlp_weights(x, weight, residual);
  FLOWOPS_CHECK(kMlp, bias.size() == weight.size(), "bias must have one tensor a layer, ", weight.size(),
                ", got ", bias.size());
  for (size_t i = 0; i < bias.size(); ++i) {
    const auto &b = bias[i], &w = weight[i];
    FLOWOPS_CHECK(kMlp, b.dim() == 1 && b.size(0) == w.size(0), "bias[", i, "] must have shape [", w.size(0),
                  "] (one value an output of weight[", i, "]), got ", b.sizes());
    FLOWOPS_CHECK(kMlp, b.scalar_type() == x.scalar_type(), "bias[", i, "] must be ", x.scalar_type(),
                  " (like x), got ", b.scalar_type());
    FLOWOPS_CHECK(kMlp, b.device() == x.device(), "bias[", i, "] must be on ", x.device(), " (like x), got ",
                  b.device());
  }
}

inline void check_mlp_backward_inputs(const at::Tensor& grad_out, const at::Tensor& x,
                                      const at::Tensor& hidden, at::TensorList weight, bool residual) {
  check_data(kMlp, "x", x);
  FLOWOPS_CHECK(kMlp, x.dim() == 2, "x must have shape (batch, inputs), got ", x.sizes());
  check_mlp_weights(x, weight, residual);
  const int64_t outputs = weight.back().size(0), width = hidden_width(weight);
  for (const auto& [name, t, columns] :
       {std::make_tuple("grad_out", &grad_out, outputs), std::make_tuple("hidden", &hidden, width)}) {
    FLOWOPS_CHECK(kMlp, t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == columns, name,
                  " must have shape [", x.size(0), ", ", columns, "], got ", t->sizes());
    check_same_dtype(kMlp, name, *t, x);
    check_same_device(kMlp, name, *t, x);
  }
}

struct MlpGradients {
  at::Tensor x;
  TensorVector weight, bias;
};

inline MlpGradients new_mlp_gradients(const at::Tensor& x, at::TensorList weight) {
  MlpGradients grads{x.new_empty(x.sizes()), {}, {}};
  for (const auto& w : weight) {
    grads.weight.push_back(w.new_empty(w.sizes()));
    grads.bias.push_back(w.new_empty({w.size(0)}));
  }
  return grads;
}

}  // namespace flowops
