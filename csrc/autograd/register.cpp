// All rules of differentiation in one source, and what the dispatcher calls: torch's autograd headers and
// templates would otherwise cost 13 s for each op. Every file keeps its names in a namespace of its own.
#include <torch/library.h>

#include "autograd/actnorm_autograd.cpp"
#include "autograd/affine_coupling_autograd.cpp"
#include "autograd/dequantize_logit_autograd.cpp"
#include "autograd/gaussian_log_prob_autograd.cpp"
#include "autograd/gaussian_rsample_autograd.cpp"
#include "autograd/invertible_conv1x1_autograd.cpp"
#include "autograd/invertible_conv1x1_prepare_autograd.cpp"
#include "autograd/linear_attention_autograd.cpp"
#include "autograd/logistic_mixture_log_prob_autograd.cpp"
#include "autograd/mlp_autograd.cpp"
#include "autograd/rational_quadratic_spline_autograd.cpp"
#include "autograd/spectral_norm_autograd.cpp"

namespace flowops {

TORCH_LIBRARY_IMPL(flowops, Autograd, m) {
  m.impl("actnorm", &actnorm_autograd);
  m.impl("actnorm_statistics", &actnorm_statistics_autograd);
  m.impl("affine_coupling", &affine_coupling_autograd);
  m.impl("dequantize_logit", &dequantize_logit_autograd);
  m.impl("gaussian_log_prob", &gaussian_log_prob_autograd);
  m.impl("gaussian_rsample", &gaussian_rsample_autograd);
  m.impl("invertible_conv1x1", &invertible_conv1x1_autograd);
  m.impl("invertible_conv1x1_lu", &invertible_conv1x1_lu_autograd);
  m.impl("invertible_conv1x1_full", &invertible_conv1x1_full_autograd);
  m.impl("linear_attention", &linear_attention_autograd);
  m.impl("logistic_mixture_log_prob", &logistic_mixture_log_prob_autograd);
  m.impl("mlp", &mlp_autograd);
  m.impl("rational_quadratic_spline", &rational_quadratic_spline_autograd);
  m.impl("spectral_norm", &spectral_norm_autograd);
}

}  // namespace flowops
