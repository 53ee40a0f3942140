// The random stream of the sampling ops, see math/philox.h: two int64, seed and offset.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/checks.h"

namespace flowops {

// A new stream, drawn from the default generator of the device of `like`.
at::Tensor random_key(const at::Tensor& like);

inline void check_key(const char* op, const at::Tensor& key) {
  FLOWOPS_CHECK(op, key.dim() == 1 && key.size(0) == 2 && key.scalar_type() == at::kLong,
                "key must be two int64 (seed and offset), got ", key.scalar_type(), " of shape ",
                key.sizes());
}

}  // namespace flowops
