#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/diag.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_inv.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/wants_graph.h"
#include "ops/invertible_conv1x1_prepare.h"

namespace flowops {
namespace invertible_conv1x1_prepare_rule {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Takes lists of tensors, one after another, from the flat list that autograd keeps.
class ListReader {
 public:
  explicit ListReader(const variable_list& all) : all_(all) {}
  TensorList take(size_t count) {
    const TensorList result(all_.data() + position_, count);
    position_ += count;
    return result;
  }

 private:
  const variable_list& all_;
  size_t position_ = 0;
};

void append(variable_list& target, TensorList source) {
  target.insert(target.end(), source.begin(), source.end());
}

// The flat results of a forward pass as lists again.
PreparedWeights unflatten(const variable_list& flat, size_t layers) {
  return {TensorVector(flat.begin(), flat.begin() + layers),
          TensorVector(flat.begin() + layers, flat.end() - 1), flat.back()};
}

variable_list flatten(const PreparedWeights& prepared) {
  const auto& [weight, bias, logdet] = prepared;
  variable_list flat = weight;
  append(flat, bias);
  flat.push_back(logdet);
  return flat;
}

// One layer's upstream gradients (bias undefined without actnorm), forward result and actnorm.
struct FoldInputs {
  Tensor grad_weight, grad_bias, grad_logdet, result, bias, log_scale;
  bool inverse;
};

struct FoldGradients {
  Tensor weight, logdet, actnorm_bias, actnorm_log_scale;
};

// dL/dW without the log-det's part, dL/d(log|det W|), and the actnorm's gradients, as
// math/invertible_conv1x1.h derives them, in differentiable ops.
FoldGradients composed_fold_backward(const FoldInputs& in) {
  const Tensor& r = in.result;
  const bool folded = in.log_scale.defined();
  if (in.inverse) {
    const Tensor flow = -at::matmul(at::matmul(r.t(), in.grad_weight), r.t());
    if (!folded) return {flow, -in.grad_logdet, {}, {}};
    return {flow * in.log_scale.exp(), -in.grad_logdet, -in.grad_bias,
            -(in.grad_weight * r).sum(1) - in.grad_logdet};
  }
  if (!folded) return {in.grad_weight, in.grad_logdet, {}, {}};
  const Tensor total = in.grad_weight + at::outer(in.grad_bias, in.bias);
  return {total * in.log_scale.exp(), in.grad_logdet, at::matmul(r.t(), in.grad_bias),
          (total * r).sum(0) + in.grad_logdet};
}

struct SavedLayers {
  TensorList grad_weight, grad_bias, result, actnorm_bias, actnorm_log_scale;
  Tensor grad_logdet;
  bool inverse;

  FoldGradients fold(size_t i) const {
    FoldInputs in{grad_weight[i], {}, grad_logdet[i], result[i], {}, {}, inverse};
    const auto wide = grad_logdet.scalar_type();
    if (!actnorm_bias.empty()) {
      in.grad_bias = grad_bias[i];
      in.bias = actnorm_bias[i].to(wide);
      in.log_scale = actnorm_log_scale[i].to(wide);
    }
    return composed_fold_backward(in);
  }

  void append_actnorm(const FoldGradients& grads, size_t i, TensorVector& bias,
                      TensorVector& log_scale) const {
    if (actnorm_bias.empty()) return;
    bias.push_back(grads.actnorm_bias.to(actnorm_bias[i].scalar_type()));
    log_scale.push_back(grads.actnorm_log_scale.to(actnorm_log_scale[i].scalar_type()));
  }
};

SavedLayers saved_layers(const variable_list& grads, TensorList result, TensorList actnorm_bias,
                         TensorList actnorm_log_scale, bool inverse) {
  ListReader reader(grads);
  const TensorList grad_weight = reader.take(result.size());
  return {
      grad_weight, reader.take(actnorm_bias.size()), result, actnorm_bias, actnorm_log_scale, grads.back(),
      inverse};
}

class InvertibleConv1x1Lu : public torch::autograd::Function<InvertibleConv1x1Lu> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList lower, TensorList upper, TensorList log_s,
                               TensorList sign, TensorList permutation, TensorList actnorm_bias,
                               TensorList actnorm_log_scale, bool inverse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto flat = flatten(invertible_conv1x1_lu(lower, upper, log_s, sign, permutation, actnorm_bias,
                                                    actnorm_log_scale, inverse));
    variable_list saved(flat.begin(), flat.begin() + lower.size());
    for (const TensorList& list : {lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale}) {
      append(saved, list);
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["layers"] = int64_t(lower.size());
    ctx->saved_data["actnorms"] = int64_t(actnorm_bias.size());
    ctx->saved_data["inverse"] = inverse;
    return flat;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const size_t layers = ctx->saved_data["layers"].toInt(), actnorms = ctx->saved_data["actnorms"].toInt();
    const bool inverse = ctx->saved_data["inverse"].toBool();
    ListReader reader(saved);
    const TensorList result = reader.take(layers), lower = reader.take(layers), upper = reader.take(layers),
                     log_s = reader.take(layers), sign = reader.take(layers),
                     permutation = reader.take(layers), bias = reader.take(actnorms),
                     log_scale = reader.take(actnorms);
    const SavedLayers s = saved_layers(grads, result, bias, log_scale, inverse);
    TensorVector grad_lower, grad_upper, grad_log_s, grad_bias, grad_log_scale;
    if (at::GradMode::is_enabled()) {
      for (size_t i = 0; i < layers; ++i) {
        const FoldGradients fold = s.fold(i);
        s.append_actnorm(fold, i, grad_bias, grad_log_scale);
        composed_factors(fold, lower[i], upper[i], log_s[i], sign[i], permutation[i], grad_lower, grad_upper,
                         grad_log_s);
      }
    } else {
      std::tie(grad_lower, grad_upper, grad_log_s, grad_bias, grad_log_scale) =
          invertible_conv1x1_lu_backward(s.grad_weight, s.grad_bias, s.grad_logdet, result, lower, upper,
                                         log_s, sign, permutation, bias, log_scale, inverse);
    }
    variable_list flat = grad_lower;
    append(flat, grad_upper);
    append(flat, grad_log_s);
    flat.resize(flat.size() + 2 * layers);  // sign and permutation are fixed
    append(flat, grad_bias);
    append(flat, grad_log_scale);
    flat.emplace_back();
    return flat;
  }

 private:
  static void composed_factors(const FoldGradients& fold, const Tensor& lower, const Tensor& upper,
                               const Tensor& log_s, const Tensor& sign, const Tensor& permutation,
                               TensorVector& grad_lower, TensorVector& grad_upper, TensorVector& grad_log_s) {
    const auto wide = fold.weight.scalar_type(), type = lower.scalar_type();
    const Tensor diagonal = sign.to(wide) * log_s.to(wide).exp();
    const Tensor v = upper.to(wide).triu(1) + at::diag(diagonal);
    const Tensor l = lower.to(wide).tril(-1) + at::eye(lower.size(0), fold.weight.options());
    const Tensor grad_m = at::zeros_like(fold.weight).index_copy(0, permutation, fold.weight);
    const Tensor grad_v = at::matmul(l.t(), grad_m);
    grad_lower.push_back(at::matmul(grad_m, v.t()).tril(-1).to(type));
    grad_upper.push_back(grad_v.triu(1).to(type));
    grad_log_s.push_back((grad_v.diagonal() * diagonal + fold.logdet).to(type));
  }
};

class InvertibleConv1x1Full : public torch::autograd::Function<InvertibleConv1x1Full> {
 public:
  static variable_list forward(AutogradContext* ctx, TensorList weight, TensorList actnorm_bias,
                               TensorList actnorm_log_scale, bool inverse) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto flat = flatten(invertible_conv1x1_full(weight, actnorm_bias, actnorm_log_scale, inverse));
    variable_list saved(flat.begin(), flat.begin() + weight.size());
    for (const TensorList& list : {weight, actnorm_bias, actnorm_log_scale}) append(saved, list);
    ctx->save_for_backward(saved);
    ctx->saved_data["layers"] = int64_t(weight.size());
    ctx->saved_data["actnorms"] = int64_t(actnorm_bias.size());
    ctx->saved_data["inverse"] = inverse;
    return flat;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const size_t layers = ctx->saved_data["layers"].toInt(), actnorms = ctx->saved_data["actnorms"].toInt();
    const bool inverse = ctx->saved_data["inverse"].toBool();
    ListReader reader(saved);
    const TensorList result = reader.take(layers), weight = reader.take(layers), bias = reader.take(actnorms),
                     log_scale = reader.take(actnorms);
    const SavedLayers s = saved_layers(grads, result, bias, log_scale, inverse);
    TensorVector grad_weight, grad_bias, grad_log_scale;
    if (at::GradMode::is_enabled()) {
      for (size_t i = 0; i < layers; ++i) {
        const FoldGradients fold = s.fold(i);
        s.append_actnorm(fold, i, grad_bias, grad_log_scale);
        const Tensor inverse_weight = at::linalg_inv(weight[i].to(fold.weight.scalar_type()));
        grad_weight.push_back((fold.weight + fold.logdet * inverse_weight.t()).to(weight[i].scalar_type()));
      }
    } else {
      std::tie(grad_weight, grad_bias, grad_log_scale) = invertible_conv1x1_full_backward(
          s.grad_weight, s.grad_bias, s.grad_logdet, result, weight, bias, log_scale, inverse);
    }
    variable_list flat = grad_weight;
    append(flat, grad_bias);
    append(flat, grad_log_scale);
    flat.emplace_back();
    return flat;
  }
};

}  // namespace invertible_conv1x1_prepare_rule

PreparedWeights invertible_conv1x1_lu_autograd(at::TensorList lower, at::TensorList upper,
                                               at::TensorList log_s, at::TensorList sign,
                                               at::TensorList permutation, at::TensorList actnorm_bias,
                                               at::TensorList actnorm_log_scale, bool inverse) {
  if (!wants_graph(lower, upper, log_s, actnorm_bias, actnorm_log_scale)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return invertible_conv1x1_lu(lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale,
                                 inverse);
  }
  return invertible_conv1x1_prepare_rule::unflatten(
      invertible_conv1x1_prepare_rule::InvertibleConv1x1Lu::apply(lower, upper, log_s, sign, permutation,
                                                                  actnorm_bias, actnorm_log_scale, inverse),
      lower.size());
}

PreparedWeights invertible_conv1x1_full_autograd(at::TensorList weight, at::TensorList actnorm_bias,
                                                 at::TensorList actnorm_log_scale, bool inverse) {
  if (!wants_graph(weight, actnorm_bias, actnorm_log_scale)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return invertible_conv1x1_full(weight, actnorm_bias, actnorm_log_scale, inverse);
  }
  return invertible_conv1x1_prepare_rule::unflatten(
      invertible_conv1x1_prepare_rule::InvertibleConv1x1Full::apply(weight, actnorm_bias, actnorm_log_scale,
                                                                    inverse),
      weight.size());
}

}  // namespace flowops
