// Elements in the flat order (batch, outer, inner), found in memory by stretches of one stride. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/operand.h"

namespace flowops {

// A sample's sizes.
struct FlatShape {
  int64_t outer, inner;

  int64_t elements() const { return outer * inner; }
};

namespace detail {

// The distance between neighbours of the flat order, where it is the same everywhere; else -1.
inline int64_t single_stride(const Operand& a, const FlatShape& shape) {
  const int64_t stride = shape.inner > 1 ? a.inner : shape.outer > 1 ? a.outer : a.batch;
  const bool rows = shape.outer == 1 || a.outer == shape.inner * stride;
  return rows && a.batch == shape.elements() * stride ? stride : -1;
}

}  // namespace detail

// Calls body(at, offset, length, stride) for the elements [first, first + count), `at` counted from `first`.
template <typename Body>
void for_each_segment(const Operand& a, const FlatShape& shape, int64_t first, int count, const Body& body) {
  if (const int64_t stride = detail::single_stride(a, shape); stride >= 0) {
    return body(0, first * stride, count, stride);
  }
  const int64_t elements = shape.elements();
  int64_t batch = first / elements, row = first % elements / shape.inner, column = first % shape.inner;
  for (int at = 0; at < count;) {
    const int length = int(std::min<int64_t>(shape.inner - column, count - at));
    body(at, batch * a.batch + row * a.outer + column * a.inner, length, a.inner);
    at += length, column = 0;
    if (++row == shape.outer) row = 0, ++batch;
  }
}

}  // namespace flowops
