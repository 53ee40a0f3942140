// The contracts of all ops in one source, for torch's headers are most of what each costs to compile.
#include "ops/actnorm.cpp"
#include "ops/affine_coupling.cpp"
#include "ops/gaussian_log_prob.cpp"
#include "ops/gaussian_rsample.cpp"
#include "ops/invertible_conv1x1.cpp"
#include "ops/linear_attention.cpp"
#include "ops/rational_quadratic_spline.cpp"
#include "ops/spectral_norm.cpp"
