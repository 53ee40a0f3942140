// linear_attention: contract, checks and operands, shared by the backends. The algebra is in
// math/linear_attention.h.
//
// q (B, Tq, H, D), k (B, Tk, H, D), v (B, Tk, H, Dv) of one type; causal: Tq = Tk. The state, kv (N, H, D,
// Dv) and z (N, H, D), and the denominators are of the accumulation type. N = B, or, with cu_seqlens (N + 1),
// the sequences that lie one after another in a batch of one. A key that key_padding_mask (B, Tk) marks is
// left out: not even a NaN of it is seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "ops/linear_attention_params.h"

namespace flowops {

// out (B, Tq, H, Dv), the last state kv and z, and the denominators (B, Tq, H), or (0) where not normalised.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    int64_t feature_map, bool causal, bool normalize, double eps);

// The gradients of q, k, v and the initial state, the latter (0) where causal and none was given. `out`,
// `kv`, `z` and `denominator` are what the forward pass returned.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_backward(
    const at::Tensor& grad_out, const OptionalTensor& grad_kv, const OptionalTensor& grad_z,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    const at::Tensor& out, const at::Tensor& kv, const at::Tensor& z, const at::Tensor& denominator,
    int64_t feature_map, bool causal, bool normalize, double eps);

inline constexpr const char* kLinearAttention = "linear_attention";

inline void check_attention_rows(const char* name, const at::Tensor& x, at::IntArrayRef sizes,
                                 const at::Tensor& q) {
  const char* op = kLinearAttention;
  FLOWOPS_CHECK(op, x.sizes() == sizes, name, " must have shape ", sizes, ", got ", x.sizes());
  FLOWOPS_CHECK(op, x.scalar_type() == q.scalar_type(), name, " must be ", q.scalar_type(), " (like q), got ",
                x.scalar_type());
  FLOWOPS_CHECK(op, x.device() == q.device(), name, " must be on ", q.device(), " (like q), got ",
                x.device());
}

inline void check_attention_state(const char* name, const OptionalTensor& state, at::IntArrayRef sizes,
                                  const at::Tensor& q) {
  if (!state) return;
  const char* op = kLinearAttention;
  const auto wide = accumulation_type(q.scalar_type());
  FLOWOPS_CHECK(op, state->sizes() == sizes, name, " must have shape ", sizes, ", got ", state->sizes());
  FLOWOPS_CHECK(op, state->scalar_type() == wide, name, " must be ", wide, ", got ", state->scalar_type());
  FLOWOPS_CHECK(op, state->device() == q.device(), name, " must be on ", q.device(), " (like q), got ",
                state->device());
}

inline void check_cu_seqlens(const at::Tensor& offsets, const at::Tensor& q, const at::Tensor& k) {
  const char* op = kLinearAttention;
  FLOWOPS_CHECK(op, offsets.dim() == 1 && offsets.size(0) >= 1, "cu_seqlens must have shape (sequences + 1),",
                " got ", offsets.sizes());
  FLOWOPS_CHECK(op, offsets.scalar_type() == at::kLong || offsets.scalar_type() == at::kInt,
                "cu_seqlens must be int64 or int32, got ", offsets.scalar_type());
  FLOWOPS_CHECK(op, offsets.device() == q.device(), "cu_seqlens must be on ", q.device(), " (like q), got ",
                offsets.device());
  FLOWOPS_CHECK(op, q.size(0) == 1 && q.size(1) == k.size(1),
                "q and k must have a batch of 1 and equal times where cu_seqlens is given, got ", q.sizes(),
                " and ", k.sizes());
  if (!offsets.is_cpu()) return;  // reading them elsewhere would wait for the device
  const at::Tensor on_cpu = offsets.to(at::kLong).contiguous();
  const auto* values = on_cpu.const_data_ptr<int64_t>();
  int64_t last = 0;
  bool ordered = values[0] == 0;
  for (int64_t i = 1; i < on_cpu.size(0); ++i) ordered &= values[i] >= last, last = values[i];
  FLOWOPS_CHECK(op, ordered && last == q.size(1), "cu_seqlens must rise from 0 to the length of q, ",
                q.size(1), ", got ", values[0], " to ", last, ordered ? "" : ", not rising");
}

inline int64_t attention_sequences(const at::Tensor& q, const OptionalTensor& cu_seqlens) {
  return cu_seqlens ? cu_seqlens->size(0) - 1 : q.size(0);
}

inline void check_linear_attention_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const OptionalTensor& initial_kv, const OptionalTensor& initial_z,
                                          const OptionalTensor& key_padding_mask,
                                          const OptionalTensor& cu_seqlens, int64_t feature_map, bool causal,
                                          double eps) {
  const char* op = kLinearAttention;
  FLOWOPS_CHECK(op, q.dim() == 4 && q.size(3) > 0, "q must have shape (batch, time, heads, dim), got ",
                q.sizes());
  const auto type = q.scalar_type();
  FLOWOPS_CHECK(op, type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
                "q must be float64, float32, float16 or bfloat16, got ", type);
  FLOWOPS_CHECK(op, k.dim() == 4, "k must have shape (batch, time, heads, dim), got ", k.sizes());
  const int64_t time = causal ? q.size(1) : k.size(1);
  check_attention_rows("k", k, {q.size(0), time, q.size(2), q.size(3)}, q);
  FLOWOPS_CHECK(op, v.dim() == 4 && v.size(3) > 0, "v must have shape (batch, time, heads, dim), got ",
                v.sizes());
  check_attention_rows("v", v, {q.size(0), k.size(1), q.size(2), v.size(3)}, q);
  if (cu_seqlens) check_cu_seqlens(*cu_seqlens, q, k);
  const int64_t sequences = attention_sequences(q, cu_seqlens);
  FLOWOPS_CHECK(op, initial_kv.has_value() == initial_z.has_value(),
                "initial_state must have both kv and z, got one");
  check_attention_state("initial kv", initial_kv, {sequences, q.size(2), q.size(3), v.size(3)}, q);
  check_attention_state("initial z", initial_z, {sequences, q.size(2), q.size(3)}, q);
  if (key_padding_mask) {
    const auto& mask = *key_padding_mask;
    FLOWOPS_CHECK(op, mask.dim() == 2 && mask.size(0) == k.size(0) && mask.size(1) == k.size(1),
                  "key_padding_mask must have shape [", k.size(0), ", ", k.size(1), "], got ", mask.sizes());
    FLOWOPS_CHECK(op, mask.scalar_type() == at::kBool, "key_padding_mask must be bool, got ",
                  mask.scalar_type());
    FLOWOPS_CHECK(op, mask.device() == q.device(), "key_padding_mask must be on ", q.device(),
                  " (like q), got ", mask.device());
  }
  FLOWOPS_CHECK(op, feature_map >= 0 && feature_map < kFeatureMaps, "feature_map must be in [0, ",
                kFeatureMaps, "), got ", feature_map);
  FLOWOPS_CHECK(op, eps >= 0, "eps must not be negative, got ", eps);
}

inline void check_linear_attention_backward_inputs(const at::Tensor& grad_out, const OptionalTensor& grad_kv,
                                                   const OptionalTensor& grad_z, const at::Tensor& q,
                                                   const at::Tensor& v, const OptionalTensor& cu_seqlens,
                                                   const at::Tensor& out, const at::Tensor& kv,
                                                   const at::Tensor& z, const at::Tensor& denominator,
                                                   bool normalize) {
  const int64_t sequences = attention_sequences(q, cu_seqlens);
  const std::array<int64_t, 4> sizes{q.size(0), q.size(1), q.size(2), v.size(3)};
  check_attention_rows("grad_out", grad_out, sizes, q);
  check_attention_rows("out", out, sizes, q);
  const std::array<int64_t, 4> state_sizes{sequences, q.size(2), q.size(3), v.size(3)};
  const auto z_sizes = at::IntArrayRef(state_sizes).slice(0, 3);
  check_attention_state("grad_kv", grad_kv, state_sizes, q);
  check_attention_state("grad_z", grad_z, z_sizes, q);
  check_attention_state("kv", kv, state_sizes, q);
  check_attention_state("z", z, z_sizes, q);
  if (normalize) check_attention_state("denominator", denominator, at::IntArrayRef(sizes).slice(0, 3), q);
}

// Tensors that must live until the kernels have run.
struct AttentionInputs {
  at::Tensor q, k, v, kv, z, padding, offsets;
};

inline at::Tensor with_dense_columns(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

inline AttentionRows attention_rows(const at::Tensor& x) {
  return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

inline AttentionState attention_state(const at::Tensor& kv, const at::Tensor& z) {
  const auto pointer = [](const at::Tensor& t) {
    return t.defined() ? const_cast<void*>(t.const_data_ptr()) : nullptr;
  };
  return {pointer(kv), pointer(z)};
}

inline AttentionInputs hold_attention_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const OptionalTensor& kv, const OptionalTensor& z,
                                             const OptionalTensor& key_padding_mask,
                                             const OptionalTensor& cu_seqlens) {
  AttentionInputs held{with_dense_columns(q), with_dense_columns(k), with_dense_columns(v), {}, {}, {}, {}};
  if (kv) held.kv = kv->contiguous();
  if (z) held.z = z->contiguous();
  if (key_padding_mask) held.padding = key_padding_mask->contiguous();
  if (cu_seqlens) held.offsets = cu_seqlens->to(at::kLong).contiguous();
  return held;
}

// All that the four scans share; that of the forward pass, but for what it writes.
inline AttentionScan attention_scan(const AttentionInputs& held, FeatureMap map, bool causal, bool normalize,
                                    double eps) {
  AttentionScan scan;
  const auto &q = held.q, &k = held.k, &v = held.v;
  scan.sequences = held.offsets.defined() ? held.offsets.size(0) - 1 : q.size(0);
  scan.heads = q.size(2), scan.query_time = q.size(1), scan.key_time = k.size(1);
  scan.dim = q.size(3), scan.value_dim = v.size(3);
  if (held.offsets.defined()) scan.offsets = held.offsets.const_data_ptr<int64_t>();
  if (held.padding.defined()) scan.padding = held.padding.const_data_ptr<bool>();
  scan.padding_time = k.size(1);
  scan.map = map, scan.causal = causal, scan.normalize = normalize, scan.eps = eps;
  scan.query = {AttentionKind::kFeature, attention_rows(q), scan.dim, false, false};
  scan.key = {AttentionKind::kFeature, attention_rows(k), scan.dim, false, true};
  scan.value = {AttentionKind::kPlain, attention_rows(v), scan.value_dim, true, true};
  scan.initial = attention_state(held.kv, held.z);
  return scan;
}

struct AttentionCall {
  AttentionInputs held;
  at::Tensor out, kv, z, denominator;
  AttentionScan scan;
};

inline AttentionCall prepare_linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                              const OptionalTensor& initial_kv,
                                              const OptionalTensor& initial_z,
                                              const OptionalTensor& key_padding_mask,
                                              const OptionalTensor& cu_seqlens, int64_t feature_map,
                                              bool causal, bool normalize, double eps) {
  AttentionCall call;
  call.held = hold_attention_inputs(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens);
  AttentionScan& scan = call.scan;
  scan = attention_scan(call.held, static_cast<FeatureMap>(feature_map), causal, normalize, eps);
  const auto wide = q.options().dtype(accumulation_type(q.scalar_type()));
  call.out = q.new_empty({q.size(0), q.size(1), q.size(2), v.size(3)});
  call.kv = q.new_empty({scan.sequences, q.size(2), q.size(3), v.size(3)}, wide);
  call.z = q.new_empty({scan.sequences, q.size(2), q.size(3)}, wide);
  call.denominator =
      normalize ? q.new_empty({q.size(0), q.size(1), q.size(2)}, wide) : q.new_empty({0}, wide);
  scan.target = attention_rows(call.out);
  scan.final = attention_state(call.kv, call.z);
  if (normalize) scan.new_denominator = attention_rows(call.denominator);
  return call;
}

struct AttentionBackwardCall {
  AttentionInputs held;
  at::Tensor grad_out, grad_kv, grad_z, out, kv, z, denominator;
  at::Tensor grad_q, grad_k, grad_v, grad_initial_kv, grad_initial_z;
  std::vector<AttentionScan> scans;
};

inline AttentionBackwardCall prepare_linear_attention_backward(
    const at::Tensor& grad_out, const OptionalTensor& grad_kv, const OptionalTensor& grad_z,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    const at::Tensor& out, const at::Tensor& kv, const at::Tensor& z, const at::Tensor& denominator,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  AttentionBackwardCall call;
  call.held = hold_attention_inputs(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens);
  call.grad_out = with_dense_columns(grad_out), call.out = with_dense_columns(out);
  if (grad_kv) call.grad_kv = grad_kv->contiguous();
  if (grad_z) call.grad_z = grad_z->contiguous();
  call.kv = kv.contiguous(), call.z = z.contiguous(), call.denominator = denominator.contiguous();
  call.grad_q = q.new_empty(q.sizes()), call.grad_k = k.new_empty(k.sizes());
  call.grad_v = v.new_empty(v.sizes());
  const auto wide = q.options().dtype(accumulation_type(q.scalar_type()));
  // What all queries give the keys and values is the gradient of an initial state, wanted or not.
  const bool of_state = initial_kv.has_value() || !causal;
  call.grad_initial_kv = of_state ? q.new_empty(kv.sizes(), wide) : q.new_empty({0}, wide);
  call.grad_initial_z = of_state ? q.new_empty(z.sizes(), wide) : q.new_empty({0}, wide);

  AttentionScan common =
      attention_scan(call.held, static_cast<FeatureMap>(feature_map), causal, normalize, eps);
  common.out = attention_rows(call.out);
  if (normalize) common.denominator = attention_rows(call.denominator);
  const AttentionFactor query = common.query, key = common.key, value = common.value;
  const AttentionFactor grad{AttentionKind::kGradient, attention_rows(call.grad_out), common.value_dim, true,
                             false};
  AttentionScan of_q = common, of_k = common, of_v = common;

  of_q.query = grad, of_q.key = value, of_q.value = key;
  of_q.transposed = true;
  of_q.target = attention_rows(call.grad_q), of_q.features = query.rows;

  of_k.query = value, of_k.key = grad, of_k.value = query;
  of_k.transposed = true;
  of_k.target = attention_rows(call.grad_k), of_k.features = key.rows;

  of_v.query = key, of_v.key = query, of_v.value = grad;
  of_v.target = attention_rows(call.grad_v);

  for (AttentionScan* scan : {&of_k, &of_v}) {
    scan->reverse = causal;
    scan->initial = attention_state(call.grad_kv, call.grad_z);
    std::swap(scan->query_time, scan->key_time);
  }
  const AttentionState of_initial = attention_state(call.grad_initial_kv, call.grad_initial_z);
  if (causal) {
    if (initial_kv) of_v.final = of_initial;
    call.scans = {of_q, of_k, of_v};
    return call;
  }
  // Every row sees the last state: that of the keys is there, and that of the queries is made once.
  AttentionScan gather = of_v;
  gather.target = {}, gather.final = of_initial;
  of_q.complete = of_k.complete = of_v.complete = true;
  of_q.initial = attention_state(call.kv, call.z);
  of_k.initial = of_v.initial = of_initial;
  call.scans = {of_q, gather, of_k, of_v};
  return call;
}

}  // namespace flowops
