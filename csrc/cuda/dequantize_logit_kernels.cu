#include <type_traits>

#include "common/cuda_random.cuh"
#include "common/cuda_split.cuh"
#include "cuda/dequantize_logit_launch.h"
#include "math/dequantize_logit.h"

namespace flowops {
namespace {

// Elements of x with their noise; bytes are met one by one, for 16 bytes of z are fewer of x.
template <typename in_t, int kLanes, typename Params, typename T>
__device__ __forceinline__ void load_values(const Params& p, const Rows<const in_t>& x, int64_t first,
                                            int row, int column, const LogitMap<T>& map,
                                            T (&values)[kLanes]) {
  if constexpr (std::is_same_v<in_t, uint8_t>) {
    load_each(x, row, column, values);
  } else {
    load_lanes(x, row, column, values);
  }
  if (p.key == nullptr) return;
  T noise[kLanes];
  load_random<UniformNumbers>(stream_of(p.key), first + int64_t(row) * p.inner + column, noise);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) values[i] = dequantized(values[i], noise[i], map);
}

template <typename in_t, typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kSplitThreads)
    dequantize_logit_kernel(const DequantizeLogitParams p, const SampleSplit split, double* partial) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  const LogitMap<T> map(p.alpha, p.levels);
  const T constant = T(p.log_slope);
  const Rows<const in_t> x(p.x, share.sample);
  const Rows<scalar_t> z(p.z, share.sample);
  const int64_t first = share.sample * p.outer * p.inner;
  T sum = 0;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T values[kLanes];
    load_values<in_t>(p, x, first, row, column, map, values);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const auto image = p.inverse ? logit_inverse(values[i], map) : logit(values[i], map);
      values[i] = image.value;
      sum += image.log_slope + constant;
    }
    store_lanes(z, row, column, values);
  });
  store_sample_sum<T>(split, share, sum, p.logdet, p.logdet_before, partial);
}

template <typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kSplitThreads)
    dequantize_logit_backward_kernel(const DequantizeLogitBackwardParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  if (!share.active) return;
  const LogitMap<T> map(p.alpha, p.levels);
  const Rows<const scalar_t> grad_z(p.grad_z, share.sample), x(p.x, share.sample);
  const Rows<scalar_t> grad_x(p.grad_x, share.sample);
  const T upstream = static_cast<const T*>(p.grad_logdet)[share.sample];
  const int64_t first = share.sample * p.outer * p.inner;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T grads[kLanes], values[kLanes];
    load_lanes(grad_z, row, column, grads);
    load_values<scalar_t>(p, x, first, row, column, map, values);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      grads[i] = p.inverse ? logit_inverse_gradient(grads[i], upstream, values[i], map)
                           : logit_gradient(grads[i], upstream, values[i], map);
    }
    store_lanes(grad_x, row, column, grads);
  });
}

template <typename in_t, typename scalar_t>
cudaError_t launch_forward(const DequantizeLogitParams& p, const VectorSplit& split, double* partial,
                           cudaStream_t stream) {
  const SampleSplit& samples = split.samples;
  const auto kernel = split.vectors ? dequantize_logit_kernel<in_t, scalar_t, Vector<scalar_t>::kSize>
                                    : dequantize_logit_kernel<in_t, scalar_t, 1>;
  const cudaError_t error = launch(kernel, samples.blocks(), kSplitThreads, 0, stream, p, samples, partial);
  if (error != cudaSuccess || samples.chunks == 1) return error;
  return launch_chunk_totals<opmath_type<scalar_t>>(p.logdet, p.logdet_before, samples, partial, stream);
}

template <typename scalar_t>
cudaError_t launch_backward(const DequantizeLogitBackwardParams& p, const VectorSplit& split,
                            cudaStream_t stream) {
  const auto kernel = split.vectors ? dequantize_logit_backward_kernel<scalar_t, Vector<scalar_t>::kSize>
                                    : dequantize_logit_backward_kernel<scalar_t, 1>;
  return launch(kernel, split.samples.blocks(), kSplitThreads, 0, stream, p, split.samples);
}

}  // namespace

VectorSplit split_dequantize_logit(StorageType type, const DequantizeLogitParams& p) {
  return p.bytes ? split_vectors(type, p, {&p.z}) : split_vectors(type, p, {&p.x, &p.z});
}

VectorSplit split_dequantize_logit(StorageType type, const DequantizeLogitBackwardParams& p) {
  return split_vectors(type, p, {&p.grad_z, &p.x, &p.grad_x});
}

cudaError_t launch_dequantize_logit(StorageType type, const DequantizeLogitParams& p,
                                    const VectorSplit& split, double* partial, cudaStream_t stream) {
  if (p.bytes) return launch_forward<uint8_t, float>(p, split, partial, stream);
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch_forward<scalar_t, scalar_t>(p, split, partial, stream);
  });
}

cudaError_t launch_dequantize_logit_backward(StorageType type, const DequantizeLogitBackwardParams& p,
                                             const VectorSplit& split, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) { return launch_backward<decltype(zero)>(p, split, stream); });
}

cudaError_t launch_uniform_noise(StorageType type, const NoiseParams& p, cudaStream_t stream) {
  if (type == StorageType::kDouble)
    return launch_random<UniformNumbers, double>(p.key, p.count, p.out, stream);
  return launch_random<UniformNumbers, float>(p.key, p.count, p.out, stream);
}

}  // namespace flowops
