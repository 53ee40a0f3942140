// What each op does under autocast. The state of a flow stays float32: halves lose whole nats of log-det.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/actnorm.h"
#include "ops/affine_coupling.h"
#include "ops/dequantize_logit.h"
#include "ops/gaussian_log_prob.h"
#include "ops/gaussian_rsample.h"
#include "ops/invertible_conv1x1.h"
#include "ops/invertible_conv1x1_prepare.h"
#include "ops/linear_attention.h"
#include "ops/logistic_mixture_log_prob.h"
#include "ops/mlp.h"
#include "ops/rational_quadratic_spline.h"
#include "ops/spectral_norm.h"

namespace flowops {
namespace {

using at::autocast::CastPolicy;

template <auto* kOp, CastPolicy kPolicy, c10::DeviceType kDevice>
auto* with_policy() {
  using Signature = std::remove_pointer_t<decltype(kOp)>;
  return &at::autocast::WrapFunction<kPolicy, kDevice, Signature, Signature, kOp>::type::call;
}

// As scaled_dot_product_attention in the lower precision; the state and all sums stay wide.
template <c10::DeviceType kDevice>
auto linear_attention_autocast(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const OptionalTensor& initial_kv, const OptionalTensor& initial_z,
                               const OptionalTensor& key_padding_mask, const OptionalTensor& cu_seqlens,
                               int64_t feature_map, bool causal, bool normalize, double eps) {
  const auto key = at::autocast::get_autocast_dispatch_key_from_device_type(kDevice);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(key);
  const auto type = at::autocast::get_autocast_dtype(kDevice);
  const auto lower = [&](const at::Tensor& x) { return at::autocast::cached_cast(type, x, kDevice); };
  return linear_attention(lower(q), lower(k), lower(v), initial_kv, initial_z, key_padding_mask, cu_seqlens,
                          feature_map, causal, normalize, eps);
}

template <c10::DeviceType kDevice>
void register_policies(torch::Library& m) {
  m.impl("actnorm", with_policy<&actnorm, CastPolicy::fp32, kDevice>());
  m.impl("affine_coupling", with_policy<&affine_coupling, CastPolicy::fp32, kDevice>());
  m.impl("dequantize_logit", with_policy<&dequantize_logit, CastPolicy::fp32, kDevice>());
  m.impl("gaussian_log_prob", with_policy<&gaussian_log_prob, CastPolicy::fp32, kDevice>());
  m.impl("gaussian_rsample", with_policy<&gaussian_rsample, CastPolicy::fp32, kDevice>());
  m.impl("invertible_conv1x1", with_policy<&invertible_conv1x1, CastPolicy::fp32, kDevice>());
  m.impl("invertible_conv1x1_lu", with_policy<&invertible_conv1x1_lu, CastPolicy::fp32, kDevice>());
  m.impl("invertible_conv1x1_full", with_policy<&invertible_conv1x1_full, CastPolicy::fp32, kDevice>());
  m.impl("linear_attention", &linear_attention_autocast<kDevice>);
  m.impl("logistic_mixture_log_prob", with_policy<&logistic_mixture_log_prob, CastPolicy::fp32, kDevice>());
  m.impl("mlp", with_policy<&mlp, CastPolicy::lower_precision_fp, kDevice>());
  m.impl("rational_quadratic_spline", with_policy<&rational_quadratic_spline, CastPolicy::fp32, kDevice>());
  m.impl("spectral_norm", with_policy<&spectral_norm, CastPolicy::fp32, kDevice>());
}

}  // namespace

TORCH_LIBRARY_IMPL(flowops, AutocastCPU, m) { register_policies<c10::DeviceType::CPU>(m); }
TORCH_LIBRARY_IMPL(flowops, AutocastCUDA, m) { register_policies<c10::DeviceType::CUDA>(m); }

}  // namespace flowops
