#include "common/cuda_split.cuh"
#include "cuda/actnorm_channels.cuh"
#include "cuda/actnorm_launch.h"
#include "math/actnorm.h"

namespace flowops {
namespace {

// The log-det of every sample that begins in this block, which all threads of the block enter.
template <typename T>
__device__ void write_logdet(const ActnormParams& p, const ThreadShare& share) {
  double total = 0;
  for (int c = threadIdx.x; c < p.channels; c += kSplitThreads) {
    total += static_cast<const T*>(p.log_scale)[c];
  }
  total = block_sum<kSplitThreads>(total) * double(p.pixels);
  if (share.lane != 0 || !share.active) return;
  const double before = p.logdet_in ? static_cast<const T*>(p.logdet_in)[share.sample] : T(0);
  static_cast<T*>(p.logdet)[share.sample] = static_cast<T>(p.inverse ? before - total : before + total);
}

template <typename scalar_t, int kLanes>
__global__ void __launch_bounds__(kSplitThreads)
    actnorm_kernel(const ActnormParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  if (share.chunk == 0) write_logdet<T>(p, share);
  const Rows<const scalar_t> x(p.x, share.sample);
  const Rows<scalar_t> z(p.z, share.sample);
  const T* bias = static_cast<const T*>(p.bias);
  const T* log_scale = static_cast<const T*>(p.log_scale);
  const int rows = p.inner_channels ? p.pixels : p.channels;
  const int columns = p.inner_channels ? p.channels : p.pixels;
  for_each_element<kLanes>(split, share, rows, columns, [&](int row, int column) {
    T values[kLanes];
    load_lanes(x, row, column, values);
    T factor = actnorm_factor(log_scale[p.inner_channels ? column : row], p.inverse);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int channel = p.inner_channels ? column + i : row;
      if (i > 0 && p.inner_channels) factor = actnorm_factor(log_scale[channel], p.inverse);
      values[i] = actnorm_transform(values[i], bias[channel], factor, p.inverse);
    }
    store_lanes(z, row, column, values);
  });
}

struct GradientSums {
  double sum, moment;
};

__device__ __forceinline__ GradientSums add_sums(const GradientSums& a, const GradientSums& b) {
  return {a.sum + b.sum, a.moment + b.moment};
}

template <typename scalar_t>
__global__ void __launch_bounds__(kChannelThreads)
    actnorm_backward_kernel(const ActnormBackwardParams p, const ChannelSplit split, GradientSums* partial) {
  using T = opmath_type<scalar_t>;
  const ChannelShare share(split);
  T sum = 0, moment = 0;
  if (share.active) {
    const T bias = static_cast<const T*>(p.bias)[share.channel];
    const T factor = actnorm_factor(static_cast<const T*>(p.log_scale)[share.channel], p.inverse);
    const T shift = actnorm_gradient_shift(bias, p.inverse);
    const auto visit = [&](int, int64_t sample, int pixel) {
      const auto at = [&](const Operand& a) {
        return channel_element<scalar_t>(a, p.inner_channels, sample, share.channel, pixel);
      };
      const T grad = static_cast<T>(*at(p.grad_z)), x = static_cast<T>(*at(p.x));
      *at(p.grad_x) = static_cast<scalar_t>(grad * factor);
      sum += grad;
      moment += grad * (x + shift);
    };
    for_each_position(split, share, p.pixels, 0, kChannelPositions, visit);
  }
  const auto total = reduce_rows(split, share, GradientSums{sum, moment}, add_sums);
  if (share.active && share.row == 0) {
    partial[int64_t(share.channel) * split.splits + share.split] = total;
  }
}

// Adds the splits of a channel in a fixed order, a warp a channel, and writes its two gradients.
template <typename T>
__global__ void __launch_bounds__(kChannelThreads)
    actnorm_parameter_gradient_kernel(const ActnormBackwardParams p, const ChannelSplit split,
                                      const GradientSums* partial) {
  const int channel = blockIdx.x * kChannelsPerBlock + threadIdx.x / kWarpThreads;
  if (channel >= split.channels) return;
  const int lane = threadIdx.x % kWarpThreads;
  double sum = 0, moment = 0, logdet = 0;
  for (int s = lane; s < split.splits; s += kWarpThreads) {
    sum += partial[int64_t(channel) * split.splits + s].sum;
    moment += partial[int64_t(channel) * split.splits + s].moment;
  }
  for (int64_t b = lane; b < p.batch; b += kWarpThreads) {
    logdet += static_cast<const T*>(p.grad_logdet)[b];
  }
  sum = warp_sum(sum);
  moment = warp_sum(moment);
  logdet = warp_sum(logdet) * double(p.pixels);
  if (lane != 0) return;
  const double log_scale = static_cast<const T*>(p.log_scale)[channel];
  const auto grad =
      actnorm_parameter_gradient(sum, moment, logdet, actnorm_factor(log_scale, p.inverse), p.inverse);
  static_cast<T*>(p.grad_bias)[channel] = static_cast<T>(grad.bias);
  static_cast<T*>(p.grad_log_scale)[channel] = static_cast<T>(grad.log_scale);
}

template <typename scalar_t>
cudaError_t launch_forward(const ActnormParams& p, cudaStream_t stream) {
  // Two doubles at a time would spill registers and gain little.
  constexpr int kLanes = sizeof(scalar_t) == 8 ? 1 : Vector<scalar_t>::kSize;
  const int64_t columns = p.inner_channels ? p.channels : p.pixels;
  const bool vectors = take_vectors({&p.x, &p.z}, columns, sizeof(scalar_t));
  const auto split = split_samples(p.batch, p.channels * p.pixels, vectors ? kLanes : 1);
  return launch(vectors ? actnorm_kernel<scalar_t, kLanes> : actnorm_kernel<scalar_t, 1>, split.blocks(),
                kSplitThreads, 0, stream, p, split);
}

template <typename scalar_t>
cudaError_t launch_backward(const ActnormBackwardParams& p, const ChannelSplit& split, GradientSums* partial,
                            cudaStream_t stream) {
  if (split.splits > 0) {
    const cudaError_t error = launch(actnorm_backward_kernel<scalar_t>, channel_blocks(split),
                                     kChannelThreads, 0, stream, p, split, partial);
    if (error != cudaSuccess) return error;
  }
  return launch(actnorm_parameter_gradient_kernel<opmath_type<scalar_t>>, second_stage_blocks(split),
                kChannelThreads, 0, stream, p, split, partial);
}

}  // namespace

ChannelSplit split_channels(int64_t batch, int64_t channels, int64_t pixels, bool inner_channels) {
  ChannelSplit s;
  s.positions = batch * pixels;
  s.channels = static_cast<int>(channels);
  s.width = inner_channels ? std::min<int>(s.channels, kChannelThreads) : 1;
  s.height = kChannelThreads / s.width;
  const int64_t positions = int64_t{s.height} * kChannelPositions;
  s.splits = static_cast<int>((s.positions + positions - 1) / positions);
  s.column_blocks = (s.channels + s.width - 1) / s.width;
  return s;
}

cudaError_t launch_actnorm(StorageType type, const ActnormParams& p, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) { return launch_forward<decltype(zero)>(p, stream); });
}

cudaError_t launch_actnorm_backward(StorageType type, const ActnormBackwardParams& p,
                                    const ChannelSplit& split, double* partial, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    return launch_backward<decltype(zero)>(p, split, reinterpret_cast<GradientSums*>(partial), stream);
  });
}

}  // namespace flowops
