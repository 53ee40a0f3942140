#include "common/cuda_host.h"
#include "cuda/linear_attention_launch.h"
#include "ops/linear_attention.h"

namespace flowops {
namespace {

void check_columns(const at::Tensor& q, const at::Tensor& v) {
  FLOWOPS_CHECK(kLinearAttention, q.size(3) <= kMaxAttentionColumns && v.size(3) <= kMaxAttentionColumns,
                "q and v must have at most ", kMaxAttentionColumns, " columns on CUDA, got ", q.size(3),
                " and ", v.size(3));
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_cuda(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  check_linear_attention_inputs(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map,
                                causal, eps);
  check_columns(q, v);
  const DeviceGuard guard(q);
  const auto call = prepare_linear_attention(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens,
                                             feature_map, causal, normalize, eps);
  check_launch(launch_linear_attention_scan(storage_type(q.scalar_type()), call.scan, current_stream()),
               kLinearAttention);
  return {call.out, call.kv, call.z, call.denominator};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_backward_cuda(
    const at::Tensor& grad_out, const OptionalTensor& grad_kv, const OptionalTensor& grad_z,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    const at::Tensor& out, const at::Tensor& kv, const at::Tensor& z, const at::Tensor& denominator,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  check_linear_attention_inputs(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map,
                                causal, eps);
  check_linear_attention_backward_inputs(grad_out, grad_kv, grad_z, q, v, cu_seqlens, out, kv, z, denominator,
                                         normalize);
  check_columns(q, v);
  const DeviceGuard guard(q);
  const auto call = prepare_linear_attention_backward(grad_out, grad_kv, grad_z, q, k, v, initial_kv,
                                                      initial_z, key_padding_mask, cu_seqlens, out, kv, z,
                                                      denominator, feature_map, causal, normalize, eps);
  for (const AttentionScan& scan : call.scans) {
    check_launch(launch_linear_attention_scan(storage_type(q.scalar_type()), scan, current_stream()),
                 kLinearAttention);
  }
  return {call.grad_q, call.grad_k, call.grad_v, call.grad_initial_kv, call.grad_initial_z};
}

}  // namespace flowops
