// What each op does under autocast. The state of a flow stays float32: halves lose whole nats of log-det.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/actnorm.h"
#include "ops/affine_coupling.h"
#include "ops/gaussian_rsample.h"
#include "ops/invertible_conv1x1.h"
#include "ops/invertible_conv1x1_prepare.h"
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

template <c10::DeviceType kDevice>
void register_policies(torch::Library& m) {
  m.impl("actnorm", with_policy<&actnorm, CastPolicy::fp32, kDevice>());
  m.impl("affine_coupling", with_policy<&affine_coupling, CastPolicy::fp32, kDevice>());
  m.impl("gaussian_rsample", with_policy<&gaussian_rsample, CastPolicy::fp32, kDevice>());
  m.impl("invertible_conv1x1", with_policy<&invertible_conv1x1, CastPolicy::fp32, kDevice>());
  m.impl("invertible_conv1x1_lu", with_policy<&invertible_conv1x1_lu, CastPolicy::fp32, kDevice>());
  m.impl("invertible_conv1x1_full", with_policy<&invertible_conv1x1_full, CastPolicy::fp32, kDevice>());
  m.impl("rational_quadratic_spline", with_policy<&rational_quadratic_spline, CastPolicy::fp32, kDevice>());
  m.impl("spectral_norm", with_policy<&spectral_norm, CastPolicy::fp32, kDevice>());
}

}  // namespace

TORCH_LIBRARY_IMPL(flowops, AutocastCPU, m) { register_policies<c10::DeviceType::CPU>(m); }
TORCH_LIBRARY_IMPL(flowops, AutocastCUDA, m) { register_policies<c10::DeviceType::CUDA>(m); }

}  // namespace flowops
