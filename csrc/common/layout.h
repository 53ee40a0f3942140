// How a tensor (batch, channels, *pixels) is walked: planar (NCHW) or channels_last, slices included.
#pragma once

#include <ATen/core/Tensor.h>

#include "common/operand.h"

namespace flowops {

inline int64_t pixel_count(const at::Tensor& x) {
  int64_t pixels = 1;
  for (int64_t d = 2; d < x.dim(); ++d) pixels *= x.size(d);
  return pixels;
}

// The stride that walks all pixels in order, or -1 where no single one does.
inline int64_t pixel_stride(const at::Tensor& x) {
  int64_t stride = -1, span = 0;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) == 1) continue;
    if (stride < 0) {
      stride = x.stride(d);
    } else if (x.stride(d) != span) {
      return -1;
    }
    span = x.stride(d) * x.size(d);
  }
  return stride < 0 ? 1 : stride;
}

// Channels lie next to each other: vectors, and channels_last images with their channel slices.
inline bool channels_inner(const at::Tensor& x) {
  return pixel_count(x) == 1 || (x.stride(1) == 1 && x.size(1) > 1 && pixel_stride(x) != 1);
}

// `x` itself, unless its pixels cannot be walked with one stride: channel slices never copy.
inline at::Tensor walkable(const at::Tensor& x) { return pixel_stride(x) < 0 ? x.contiguous() : x; }

// Channels first, first + step, ... of `x`, without the cost of making a view.
inline Operand operand(const at::Tensor& x, bool inner_channels, int64_t first = 0, int64_t step = 1) {
  const int64_t pixel = pixel_stride(x), channel = x.stride(1);
  auto* data = static_cast<char*>(const_cast<void*>(x.const_data_ptr()));
  if (data != nullptr) data += first * channel * static_cast<int64_t>(x.element_size());
  return {data, x.stride(0), inner_channels ? pixel : channel * step,
          inner_channels ? channel * step : pixel};
}

// Dense, with the channels of `x` innermost where they are in `x`.
inline at::Tensor empty_like_layout(const at::Tensor& x, at::ScalarType type) {
  const auto options = x.options().dtype(type);
  if (x.dim() == 2 || pixel_count(x) == 1 || !channels_inner(x)) return x.new_empty(x.sizes(), options);
  auto sizes = x.sizes().vec();
  sizes.push_back(sizes[1]);
  sizes.erase(sizes.begin() + 1);
  return x.new_empty(sizes, options).movedim(-1, 1);
}

inline at::Tensor empty_like_layout(const at::Tensor& x) { return empty_like_layout(x, x.scalar_type()); }

// Walks samples like `x` planar whatever its layout: rows of pixels, or for vectors, where it returns true,
// one row of channels.
template <typename Params>
bool walk_planar(Params& p, const at::Tensor& x) {
  const int64_t pixels = pixel_count(x);
  const bool vectors = pixels == 1;
  p.batch = x.size(0);
  p.outer = vectors ? 1 : x.size(1);
  p.inner = vectors ? x.size(1) : pixels;
  return vectors;
}

// Makes one row of all rows where every operand allows it.
template <size_t kCount>
void merge_rows(int64_t& outer, int64_t& inner, Operand* const (&operands)[kCount]) {
  for (const Operand* a : operands) {
    if (a->data != nullptr && a->outer != inner * a->inner) return;
  }
  inner *= outer;
  outer = 1;
}

}  // namespace flowops
