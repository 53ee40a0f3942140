// The algebra of the 1x1 convolution, its parameterisations and their gradients. Torch-free.
//
// Product: z = W x + b per pixel. dL/dx = W^T g, dL/dW = sum over pixels g x^T, dL/db = sum over pixels g.
//
// LU of the 1x1 convolution (Glow): W = P L (U + diag(d)), d = sign exp(log_s), L unit lower, U strictly
// upper, P fixed, given as an index: (P A)[i] = A[permutation[i]]. log|det W| = sum(log_s) per pixel, since
// |det P| = det L = 1.
//
// Folded actnorm y = (x + b) e^s before it: W y = (W diag(e^s)) x + W diag(e^s) b, log-det sum(s) more. With
// V = (U + diag(d)) diag(e^s) the folded weight is R = P L V and the bias R b.
//
// Gradients, from G = dL/dR, h = dL/dbias and l = dL/dlogdet:
//   G' = G + h b^T,  dL/db = R^T h,  dL/ds_j = sum_i G'_ij R_ij + l           (R_ij is proportional to e^s_j)
//   M = L V, dL/dM = P^T G': row permutation[i] of dL/dM is row i of G'
//   dL/dL = tril(dL/dM V^T, -1),  dL/dV = L^T dL/dM
//   dL/dU = triu(dL/dV diag(e^s), 1),  dL/dlog_s_i = (dL/dV)_ii V_ii + l      (V_ii = d_i e^s_i)
// A full W has dL/dW = G' diag(e^s) + l W^-T.
//
// Inverse: R = diag(e^-s) W^-1, bias -b, log-det negated. dR = -R dW W^-1 - diag(ds) R, so with T = R^T G:
//   dL/dW = -T (W^-1)^T = -T R^T diag(e^s),  dL/ds_i = -sum_j G_ij R_ij - l,  dL/db = -h
// and dL/dW goes on through the factors as above with s = 0; the full W adds -l W^-T = -l R^T diag(e^s).
#pragma once

#include <cstdint>

#include "math/scalar.h"

namespace flowops {

// d = sign exp(log_s), the diagonal of the upper factor.
template <typename T>
FLOWOPS_HOST_DEVICE T lu_diagonal(T sign, T log_s) {
  return sign * exp(log_s);
}

// Element (row, column) of V = (U + diag(d)) diag(column_scale), from the stored square matrix.
template <typename T>
FLOWOPS_HOST_DEVICE T lu_upper_factor(const T* upper, int64_t channels, int64_t row, int64_t column,
                                      T diagonal, T column_scale) {
  if (column < row) return T(0);
  return (column == row ? diagonal : upper[row * channels + column]) * column_scale;
}

// Element (row, column) of the unit lower factor, from the stored square matrix.
template <typename T>
FLOWOPS_HOST_DEVICE T lu_lower_factor(const T* lower, int64_t channels, int64_t row, int64_t column) {
  if (column > row) return T(0);
  return column == row ? T(1) : lower[row * channels + column];
}

}  // namespace flowops
