#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "autograd/optional.h"
#include "autograd/wants_graph.h"
#include "ops/linear_attention.h"

namespace flowops {
namespace linear_attention_rule {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor features(const Tensor& x, FeatureMap map) {
  switch (map) {
    case FeatureMap::kElu: return at::where(x > 0, x + 1, x.clamp_max(0).exp());
    case FeatureMap::kRelu: return x.relu();
    case FeatureMap::kExp: return x.exp();
    default: return x;
  }
}

Tensor times_feature_gradient(const Tensor& grad, const Tensor& x, FeatureMap map) {
  switch (map) {
    case FeatureMap::kElu: return grad * at::where(x > 0, at::ones_like(x), x.clamp_max(0).exp());
    case FeatureMap::kRelu: return grad * (x > 0);
    case FeatureMap::kExp: return grad * x.exp();
    default: return grad;
  }
}

// The scan of math/linear_attention.h as a differentiable op: no features, not normalised.
struct Scan {
  OptionalTensor offsets;
  bool causal;

  // The target and the last state.
  std::pair<Tensor, Tensor> operator()(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const Tensor& initial) const {
    OptionalTensor z;
    if (initial.defined()) z = initial.new_zeros(initial.sizes().slice(0, 3));
    auto result = linear_attention(query, key, value, optional(initial), z, {}, offsets,
                                   static_cast<int64_t>(FeatureMap::kIdentity), causal, false, 0);
    return {std::get<0>(result), std::get<1>(result)};
  }

  // The same in reversed time, which makes no difference where every row sees all others.
  std::pair<Tensor, Tensor> reversed(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const Tensor& initial) const {
    if (!causal) return (*this)(query, key, value, initial);
    if (!offsets) {
      const auto [target, last] = (*this)(query.flip({1}), key.flip({1}), value.flip({1}), initial);
      return {target.flip({1}), last};
    }
    const Scan flipped{query.size(1) - offsets->flip({0}), true};
    const auto [target, last] = flipped(query.flip({1}), key.flip({1}), value.flip({1}),
                                        initial.defined() ? initial.flip({0}) : initial);
    return {target.flip({1}), last.flip({0})};
  }
};

// kv and z as one state, undefined where neither is there; one that is not counts as zeros.
Tensor joined_state(const Tensor& kv, const Tensor& z, int64_t columns) {
  if (!kv.defined() && !z.defined()) return {};
  if (!z.defined()) return at::cat({kv, at::zeros_like(kv.narrow(3, 0, 1))}, 3);
  const Tensor column = z.unsqueeze(3);
  return at::cat({kv.defined() ? kv : at::zeros_like(column).expand({-1, -1, -1, columns}), column}, 3);
}

struct Settings {
  FeatureMap map;
  bool causal, normalize;
  double eps;
};

// As math/linear_attention.h derives it, in differentiable ops. `saved`: q, k, v, initial kv and z, mask,
// offsets; `grads`: of out, kv and z.
variable_list composed_backward(const variable_list& grads, const variable_list& saved, const Settings& s) {
  const auto type = saved[0].scalar_type(), wide = accumulation_type(type);
  const Tensor q = saved[0].to(wide), k = saved[1].to(wide);
  const Tensor &kv = saved[3], &mask = saved[5];
  const auto without_padding = [&](const Tensor& keys) {
    return mask.defined() ? keys.masked_fill(mask.unsqueeze(-1).unsqueeze(-1), 0) : keys;
  };
  const Scan scan{optional(saved[6]), s.causal};
  const Tensor query = features(q, s.map), key = without_padding(features(k, s.map));
  const Tensor value = without_padding(saved[2].to(wide));
  const int64_t columns = value.size(3);
  const Tensor values = at::cat({value, at::ones_like(value.narrow(3, 0, 1))}, 3);
  const Tensor initial = joined_state(kv, saved[4], columns);
  const Tensor upstream = joined_state(grads[1], grads[2], columns);

  Tensor grad = grads[0].to(wide), tail = at::zeros_like(grad.narrow(3, 0, 1));
  if (s.normalize) {
    const Tensor sums = scan(query, key, values, initial).first;
    const Tensor r = 1 / (sums.narrow(3, columns, 1) + s.eps);
    tail = -r * (grad * sums.narrow(3, 0, columns) * r).sum(3, true);
    grad = grad * r;
  }
  const Tensor gradient = at::cat({grad, tail}, 3);
  const auto transposed = [](const Tensor& state) { return state.defined() ? state.transpose(2, 3) : state; };
  const Tensor grad_query = scan(gradient, values, key, transposed(initial)).first;
  const Tensor grad_key = scan.reversed(values, gradient, query, transposed(upstream)).first;
  const auto [grad_values, grad_initial] = scan.reversed(key, query, gradient, upstream);
  variable_list result(11);
  result[0] = times_feature_gradient(grad_query, q, s.map).to(type);
  result[1] = without_padding(times_feature_gradient(grad_key, k, s.map)).to(type);
  result[2] = without_padding(grad_values.narrow(3, 0, columns)).to(type);
  if (kv.defined()) {
    result[3] = grad_initial.narrow(3, 0, columns);
    result[4] = grad_initial.select(3, columns);
  }
  return result;
}

class LinearAttention : public torch::autograd::Function<LinearAttention> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& initial_kv, const OptionalTensor& initial_z,
                               const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
                               int64_t feature_map, bool causal, bool normalize, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, kv, z, denominator] = linear_attention(q, k, v, initial_kv, initial_z, key_padding_mask,
                                                      cu_seqlens, feature_map, causal, normalize, eps);
    const auto or_none = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
    ctx->save_for_backward({q, k, v, or_none(initial_kv), or_none(initial_z), or_none(key_padding_mask),
                            or_none(cu_seqlens), out, kv, z, denominator});
    ctx->saved_data["options"] = std::vector<int64_t>{feature_map, causal, normalize};
    ctx->saved_data["eps"] = eps;
    ctx->mark_non_differentiable({denominator});
    ctx->set_materialize_grads(false);
    return {out, kv, z, denominator};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto options = ctx->saved_data["options"].toIntVector();
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool causal = options[1] != 0, normalize = options[2] != 0;
    if (!grads[0].defined()) grads[0] = at::zeros_like(saved[7]);
    if (at::GradMode::is_enabled()) {
      return composed_backward(grads, saved, {static_cast<FeatureMap>(options[0]), causal, normalize, eps});
    }
    auto [q, k, v, kv, z] = linear_attention_backward(
        grads[0], optional(grads[1]), optional(grads[2]), saved[0], saved[1], saved[2], optional(saved[3]),
        optional(saved[4]), optional(saved[5]), optional(saved[6]), saved[7], saved[8], saved[9], saved[10],
        options[0], causal, normalize, eps);
    variable_list result{q, k, v};
    if (saved[3].defined()) result.insert(result.end(), {kv, z});
    result.resize(11);
    return result;
  }
};

}  // namespace linear_attention_rule

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_autograd(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  if (!wants_graph(q, k, v, initial_kv, initial_z)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_attention(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map, causal,
                            normalize, eps);
  }
  const auto result = linear_attention_rule::LinearAttention::apply(
      q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map, causal, normalize, eps);
  return {result[0], result[1], result[2], result[3]};
}

}  // namespace flowops
