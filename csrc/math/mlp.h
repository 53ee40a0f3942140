// The activation of mlp. Torch-free; V is a scalar or a Vec.
//
// As torch.relu and its gradient: a NaN stays one, and lets the gradient pass; the gradient at 0 is 0.
#pragma once

#include "math/scalar.h"

namespace flowops {

template <typename V>
FLOWOPS_HOST_DEVICE V relu(V x) {
  return select(x < V(0), V(0), x);
}

template <typename V>
FLOWOPS_HOST_DEVICE V relu_gradient(V g, V x) {
  return select(V(0) >= x, V(0), g);
}

}  // namespace flowops
