// A tensor as the element-wise kernels see it. Torch-free.
#pragma once

#include <cstdint>

namespace flowops {

// (batch, outer, inner): channels by pixels, or pixels by channels where channels lie next to each other.
// Strides are in elements; a stride of 0 repeats.
struct Operand {
  void* data = nullptr;
  int64_t batch = 0, outer = 0, inner = 0;
};

// One with an axis more, over the several numbers of an element.
struct ParameterOperand {
  Operand first;
  int64_t step = 0;
};

}  // namespace flowops
