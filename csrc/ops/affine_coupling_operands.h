// From tensors to the kernels' params: the same for the CPU and CUDA backends.
#pragma once

#include "ops/affine_coupling.h"

namespace flowops {

// Tensors that must live until the kernel has run, beside the params that point into them.
struct AffineCouplingCall {
  at::Tensor x, params, amplitude, mask, z, logdet_in, logdet;
  AffineCouplingParams p;
};

struct AffineCouplingBackwardCall {
  at::Tensor grad_z, saved, params, amplitude, mask, grad_logdet;
  at::Tensor grad_x, grad_params, grad_amplitude;  // grad_amplitude element by element, or undefined
  AffineCouplingBackwardParams p;
};

namespace detail {

inline at::Tensor amplitude_operand(const at::Tensor& amplitude, const at::Tensor& x, bool inner_channels,
                                    Operand& out) {
  auto wide = amplitude.to(accumulation_type(x.scalar_type()));
  const int64_t step = wide.dim() == 0 ? 0 : wide.stride(0);
  out = {wide.data_ptr(), 0, inner_channels ? 0 : step, inner_channels ? step : 0};
  return wide;
}

inline at::Tensor mask_operand(const at::Tensor& mask, const at::Tensor& x, int64_t moved,
                               bool inner_channels, Operand& out) {
  auto sizes = x.sizes().vec();
  sizes[0] = 1;
  sizes[1] = moved;
  const auto full = walkable(mask.expand(sizes));
  out = operand(full, inner_channels);
  out.batch = 0;
  return full;
}

inline void keep(const at::Tensor& source, const at::Tensor& target, int64_t moved, int64_t start,
                 bool inner_channels, KeptBlock (&kept)[2]) {
  const int64_t first[2] = {0, start + moved}, count[2] = {start, source.size(1) - start - moved};
  const int64_t pixels = pixel_count(source);
  for (int i = 0; i < 2; ++i) {
    if (count[i] == 0) continue;
    KeptBlock& block = kept[i];
    block.source = operand(source, inner_channels, first[i]);
    block.target = operand(target, inner_channels, first[i]);
    block.outer = inner_channels ? pixels : count[i];
    block.inner = inner_channels ? count[i] : pixels;
    merge_rows(block.outer, block.inner, {&block.source, &block.target});
  }
}

template <typename Params>
void set_geometry(Params& p, const at::Tensor& x, int64_t moved, const CouplingOptions& options,
                  bool inner_channels) {
  p.batch = x.size(0);
  p.outer = inner_channels ? pixel_count(x) : moved;
  p.inner = inner_channels ? moved : pixel_count(x);
  p.scale_map = options.scale_map();
  p.constants = options.constants;
  p.shift_then_scale = options.shift_then_scale();
  p.inverse = options.inverse;
}

inline Operand part(const at::Tensor& params, bool of_scale, int64_t moved, const CouplingOptions& options,
                    bool inner_channels) {
  return operand(params, inner_channels, options.first_channel(of_scale, moved), options.channel_step());
}

}  // namespace detail

inline AffineCouplingCall prepare_affine_coupling(const at::Tensor& x, const at::Tensor& params,
                                                  const OptionalTensor& amplitude, const OptionalTensor& mask,
                                                  const OptionalTensor& logdet,
                                                  const CouplingOptions& options) {
  AffineCouplingCall call;
  call.x = walkable(x);
  call.params = walkable(params);
  call.z = empty_like_layout(call.x);
  const auto wide = accumulation_type(x.scalar_type());
  call.logdet = x.new_empty({x.size(0)}, wide);
  const bool inner_channels = channels_inner(call.x);
  const int64_t n = options.moved(params);
  AffineCouplingParams& p = call.p;
  detail::set_geometry(p, call.x, n, options, inner_channels);
  p.x = operand(call.x, inner_channels, options.start);
  p.z = operand(call.z, inner_channels, options.start);
  p.shift = detail::part(call.params, false, n, options, inner_channels);
  if (!options.additive()) p.raw = detail::part(call.params, true, n, options, inner_channels);
  if (amplitude) call.amplitude = detail::amplitude_operand(*amplitude, x, inner_channels, p.amplitude);
  if (mask) call.mask = detail::mask_operand(*mask, call.x, n, inner_channels, p.mask);
  if (logdet) call.logdet_in = logdet->contiguous(), p.logdet_in = call.logdet_in.const_data_ptr();
  p.logdet = call.logdet.data_ptr();
  detail::keep(call.x, call.z, n, options.start, inner_channels, p.kept);
  merge_rows(p.outer, p.inner, {&p.x, &p.raw, &p.shift, &p.z, &p.amplitude, &p.mask});
  return call;
}

inline AffineCouplingBackwardCall prepare_affine_coupling_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& amplitude, const OptionalTensor& mask,
    const CouplingOptions& options) {
  AffineCouplingBackwardCall call;
  call.grad_z = walkable(grad_z);
  call.saved = walkable(saved);
  call.params = walkable(params);
  call.grad_logdet = grad_logdet;
  call.grad_x = empty_like_layout(call.saved);
  call.grad_params = empty_like_layout(call.params);
  const bool inner_channels = channels_inner(call.saved);
  const int64_t n = options.moved(params);
  AffineCouplingBackwardParams& p = call.p;
  detail::set_geometry(p, call.saved, n, options, inner_channels);
  p.grad_z = operand(call.grad_z, inner_channels, options.start);
  p.saved = operand(call.saved, inner_channels, options.start);
  p.grad_x = operand(call.grad_x, inner_channels, options.start);
  p.raw = detail::part(call.params, true, n, options, inner_channels);
  p.grad_raw = detail::part(call.grad_params, true, n, options, inner_channels);
  p.grad_shift = detail::part(call.grad_params, false, n, options, inner_channels);
  if (amplitude) {
    call.amplitude = detail::amplitude_operand(*amplitude, saved, inner_channels, p.amplitude);
    auto sizes = saved.sizes().vec();
    sizes[1] = n;
    const auto wide = accumulation_type(saved.scalar_type());
    call.grad_amplitude = saved.new_empty(sizes, wide);
    p.grad_amplitude = operand(call.grad_amplitude, inner_channels);
  }
  if (mask) call.mask = detail::mask_operand(*mask, call.saved, n, inner_channels, p.mask);
  p.grad_logdet = call.grad_logdet.const_data_ptr();
  p.grad_logdet_stride = call.grad_logdet.stride(0);
  detail::keep(call.grad_z, call.grad_x, n, options.start, inner_channels, p.kept);
  merge_rows(p.outer, p.inner,
             {&p.grad_z, &p.saved, &p.raw, &p.amplitude, &p.mask, &p.grad_x, &p.grad_raw, &p.grad_shift,
              &p.grad_amplitude});
  return call;
}

// The gradient of the amplitude as given, from its element-wise contributions.
inline at::Tensor reduce_grad_amplitude(const at::Tensor& elements, const OptionalTensor& amplitude,
                                        const at::Tensor& like) {
  if (!amplitude) return like.new_empty({0});
  if (amplitude->dim() == 0) return elements.sum().to(amplitude->scalar_type());
  return elements.transpose(0, 1).flatten(1).sum(1).to(amplitude->scalar_type());
}

}  // namespace flowops
