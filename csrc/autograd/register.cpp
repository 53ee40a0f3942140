// The autograd rules that the dispatcher calls, each defined in <op>_autograd.cpp: torch/library.h is
// compiled once.
#include <torch/library.h>

#include "ops/actnorm.h"
#include "ops/affine_coupling.h"
#include "ops/gaussian_rsample.h"
#include "ops/invertible_conv1x1.h"
#include "ops/invertible_conv1x1_prepare.h"
#include "ops/spectral_norm.h"

namespace flowops {

decltype(actnorm) actnorm_autograd;
decltype(actnorm_statistics) actnorm_statistics_autograd;
decltype(affine_coupling) affine_coupling_autograd;
decltype(gaussian_rsample) gaussian_rsample_autograd;
decltype(invertible_conv1x1) invertible_conv1x1_autograd;
decltype(invertible_conv1x1_lu) invertible_conv1x1_lu_autograd;
decltype(invertible_conv1x1_full) invertible_conv1x1_full_autograd;
decltype(spectral_norm) spectral_norm_autograd;

TORCH_LIBRARY_IMPL(flowops, Autograd, m) {
  m.impl("actnorm", &actnorm_autograd);
  m.impl("actnorm_statistics", &actnorm_statistics_autograd);
  m.impl("affine_coupling", &affine_coupling_autograd);
  m.impl("gaussian_rsample", &gaussian_rsample_autograd);
  m.impl("invertible_conv1x1", &invertible_conv1x1_autograd);
  m.impl("invertible_conv1x1_lu", &invertible_conv1x1_lu_autograd);
  m.impl("invertible_conv1x1_full", &invertible_conv1x1_full_autograd);
  m.impl("spectral_norm", &spectral_norm_autograd);
}

}  // namespace flowops
