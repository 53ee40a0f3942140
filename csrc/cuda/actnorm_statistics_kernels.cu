#include "cuda/actnorm_channels.cuh"
#include "cuda/actnorm_launch.h"
#include "math/actnorm.h"

namespace flowops {
namespace {

// Values that stay in registers while their mean and the deviations from it are taken.
constexpr int kHeld = 8;
static_assert(kChannelPositions % kHeld == 0);

template <typename scalar_t>
__global__ void __launch_bounds__(kChannelThreads)
    actnorm_statistics_kernel(const ActnormStatisticsParams p, const ChannelSplit split,
                              Moments<double>* partial) {
  using T = opmath_type<scalar_t>;
  const ChannelShare share(split);
  Moments<T> moments{};
  for (int begin = 0; share.active && begin < kChannelPositions; begin += kHeld) {
    T values[kHeld] = {};
    int count = 0;
    for_each_position(split, share, p.pixels, begin, begin + kHeld, [&](int step, int64_t sample, int pixel) {
      values[step - begin] = static_cast<T>(
          *channel_element<const scalar_t>(p.x, p.inner_channels, sample, share.channel, pixel));
      ++count;
    });
    T sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) sum += values[i];
    const T mean = count > 0 ? sum / T(count) : T(0);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const T deviation = i < count ? values[i] - mean : T(0);
      squares += deviation * deviation;
    }
    moments = merge_moments(moments, Moments<T>{T(count), mean, squares});
  }
  const Moments<double> own{moments.count, moments.mean, moments.squares};
  const auto total = reduce_rows(split, share, own, merge_moments<double>);
  if (share.active && share.row == 0) {
    partial[int64_t(share.channel) * split.splits + share.split] = total;
  }
}

// Merges the splits of a channel in a fixed order, a warp a channel.
template <typename T>
__global__ void __launch_bounds__(kChannelThreads)
    actnorm_moments_kernel(const ActnormStatisticsParams p, const ChannelSplit split,
                           const Moments<double>* partial) {
  const int channel = blockIdx.x * kChannelsPerBlock + threadIdx.x / kWarpThreads;
  if (channel >= split.channels) return;
  const int lane = threadIdx.x % kWarpThreads;
  Moments<double> total{};
  for (int s = lane; s < split.splits; s += kWarpThreads) {
    total = merge_moments(total, partial[int64_t(channel) * split.splits + s]);
  }
  for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) {
    const Moments<double> other{__shfl_xor_sync(kFullWarp, total.count, lanes),
                                __shfl_xor_sync(kFullWarp, total.mean, lanes),
                                __shfl_xor_sync(kFullWarp, total.squares, lanes)};
    total = merge_moments(total, other);
  }
  if (lane != 0) return;
  // No values have no mean: 0 / 0.
  const double present = total.count > 0 ? 0.0 : 0.0 / total.count;
  static_cast<T*>(p.mean)[channel] = static_cast<T>(total.mean + present);
  static_cast<T*>(p.std)[channel] = static_cast<T>(::sqrt(total.squares / total.count));
}

template <typename scalar_t>
cudaError_t launch_statistics(const ActnormStatisticsParams& p, const ChannelSplit& split,
                              Moments<double>* partial, cudaStream_t stream) {
  if (split.splits > 0) {
    const cudaError_t error = launch(actnorm_statistics_kernel<scalar_t>, channel_blocks(split),
                                     kChannelThreads, 0, stream, p, split, partial);
    if (error != cudaSuccess) return error;
  }
  return launch(actnorm_moments_kernel<opmath_type<scalar_t>>, second_stage_blocks(split), kChannelThreads, 0,
                stream, p, split, partial);
}

}  // namespace

cudaError_t launch_actnorm_statistics(StorageType type, const ActnormStatisticsParams& p,
                                      const ChannelSplit& split, double* partial, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    return launch_statistics<decltype(zero)>(p, split, reinterpret_cast<Moments<double>*>(partial), stream);
  });
}

}  // namespace flowops
