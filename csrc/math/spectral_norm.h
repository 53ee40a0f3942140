// Scalars of spectral normalisation. Torch-free.
//
// With unit vectors u, v held fixed, sigma = u^T W v, and the result is f W, where f = 1 / sigma, or, given a
// coefficient c, f = 1 / max(1, sigma / c): 1 for sigma <= c, else c / sigma. As dsigma/dW = u v^T, upstream
// gradients g of the result and h of sigma give
//   dL/dW = f g + (<g, W> df/dsigma + h) u v^T,   df/dsigma = -f / sigma, or 0 where f = 1 by the bound.
#pragma once

#include "math/scalar.h"

namespace flowops {

// Whether a product of this length gives the power iteration a new direction. A zero matrix gives none, one
// with a NaN or an infinity neither: then the vector stays as it is and can be used when the matrix is well
// again.
template <typename T>
FLOWOPS_HOST_DEVICE bool gives_direction(T norm, T eps) {
  return norm > eps && norm - norm == T(0);
}

template <typename T>
struct SpectralScale {
  T factor, slope;  // f and df/dsigma
};

// `coefficient` <= 0 stands for none. A NaN sigma gives a NaN factor with a bound too.
template <typename T>
FLOWOPS_HOST_DEVICE SpectralScale<T> spectral_scale(T sigma, T coefficient) {
  if (coefficient > T(0) && sigma <= coefficient) return {T(1), T(0)};
  const T factor = (coefficient > T(0) ? coefficient : T(1)) / sigma;
  return {factor, -factor / sigma};
}

// What u v^T is multiplied by in the gradient; `product` = <g, W>.
template <typename T>
FLOWOPS_HOST_DEVICE T spectral_direction_gradient(T product, T grad_sigma, T slope) {
  return slope == T(0) ? grad_sigma : product * slope + grad_sigma;
}

}  // namespace flowops
