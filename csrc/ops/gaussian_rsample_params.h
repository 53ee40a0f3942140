// What the kernels of gaussian_rsample get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"
#include "ops/noise_params.h"

namespace flowops {

// How the raw scale gives the standard deviation, see math/gaussian_rsample.h.
enum class GaussianScaleForm : int { kLogVariance, kLogStd, kStd, kSoftplus };
inline constexpr int64_t kGaussianScaleForms = 4;

// Element (row, column) of sample b takes normal number (b outer + row) inner + column of the stream, so the
// samples are walked planar whatever their layout. The prior's operands are null for the standard prior.
struct GaussianRsampleParams {
  int64_t batch = 0, outer = 0, inner = 0;
  GaussianScaleForm form = GaussianScaleForm::kLogVariance;
  bool residual = false, with_kl = false;
  const int64_t* key = nullptr;  // seed and offset, in the memory of the device
  Operand mean, scale, prior_mean, prior_scale, z;
  void* kl = nullptr;  // (batch,), zeros unless with_kl
};

struct GaussianRsampleBackwardParams {
  int64_t batch = 0, outer = 0, inner = 0;
  GaussianScaleForm form = GaussianScaleForm::kLogVariance;
  bool residual = false, with_kl = false;
  const int64_t* key = nullptr;
  Operand grad_z, mean, scale, prior_mean, prior_scale;
  Operand grad_mean, grad_scale, grad_prior_mean, grad_prior_scale;  // the last two null like the prior's
  const void* grad_kl = nullptr;                                     // (batch,)
};

}  // namespace flowops
