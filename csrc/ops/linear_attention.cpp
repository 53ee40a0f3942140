#include "ops/linear_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace flowops {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::linear_attention", "")
                             .typed<decltype(linear_attention)>();
  return op.call(q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, feature_map, causal, normalize,
                 eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_attention_backward(
    const at::Tensor& grad_out, const OptionalTensor& grad_kv, const OptionalTensor& grad_z,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& initial_kv,
    const OptionalTensor& initial_z, const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
    const at::Tensor& out, const at::Tensor& kv, const at::Tensor& z, const at::Tensor& denominator,
    int64_t feature_map, bool causal, bool normalize, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::linear_attention_backward", "")
                             .typed<decltype(linear_attention_backward)>();
  return op.call(grad_out, grad_kv, grad_z, q, k, v, initial_kv, initial_z, key_padding_mask, cu_seqlens, out,
                 kv, z, denominator, feature_map, causal, normalize, eps);
}

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def(
      "linear_attention(Tensor q, Tensor k, Tensor v, Tensor? initial_kv, Tensor? initial_z, "
      "Tensor? key_padding_mask, Tensor? cu_seqlens, int feature_map, bool causal, bool normalize, float "
      "eps) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_attention_backward(Tensor grad_out, Tensor? grad_kv, Tensor? grad_z, Tensor q, Tensor k, "
      "Tensor v, Tensor? initial_kv, Tensor? initial_z, Tensor? key_padding_mask, Tensor? cu_seqlens, "
      "Tensor out, Tensor kv, Tensor z, Tensor denominator, int feature_map, bool causal, bool normalize, "
      "float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace flowops
