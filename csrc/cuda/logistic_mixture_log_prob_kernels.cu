#include "common/cuda_split.cuh"
#include "cuda/logistic_mixture_log_prob_launch.h"
#include "math/logistic_mixture_log_prob.h"

namespace flowops {
namespace {

// Blocks a multiprocessor: left to itself the compiler spills a register for one block more.
template <typename scalar_t>
constexpr int kBlocks = sizeof(opmath_type<scalar_t>) == 4 ? 2 : 1;

// The parameters of one pixel; threads next to each other read pixels next to each other.
template <typename scalar_t>
struct PixelParams {
  const scalar_t* data;
  int step;

  __device__ opmath_type<scalar_t> operator()(int i) const {
    return static_cast<opmath_type<scalar_t>>(data[i * step]);
  }
};

// 2 x - (L - 1) of each colour of a pixel.
template <typename scalar_t, int kColours, typename T>
__device__ __forceinline__ void load_colours(const LogisticMixtureParams& p, int64_t sample, int column,
                                             T top, T (&n)[kColours]) {
  const Operand& x = p.x.first;
  const int64_t start = sample * x.batch + column * x.inner;
#pragma unroll
  for (int c = 0; c < kColours; ++c) {
    const int64_t at = start + c * p.x.step;
    const T value = p.bytes ? static_cast<T>(static_cast<const uint8_t*>(x.data)[at])
                            : static_cast<T>(static_cast<const scalar_t*>(x.data)[at]);
    n[c] = value + value - top;
  }
}

template <typename scalar_t, int kColours>
__global__ void __launch_bounds__(kSplitThreads, kBlocks<scalar_t>)
    logistic_mixture_kernel(const LogisticMixtureForwardParams p, const SampleSplit split, double* partial) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  const auto form = convert_form<T>(p.form);
  const Rows<const scalar_t> params(p.params.first, share.sample);
  double total = 0;
  for_each_element<1>(split, share, 1, p.inner, [&](int row, int column) {
    T n[kColours];
    load_colours<scalar_t>(p, share.sample, column, form.top, n);
    total += mixture_log_prob(n, PixelParams<scalar_t>{params.at(row, column), int(p.params.step)}, form);
  });
  store_sample_sum<T>(split, share, total, p.log_prob, nullptr, partial);
}

template <typename scalar_t, int kColours>
__global__ void __launch_bounds__(kSplitThreads, kBlocks<scalar_t>)
    logistic_mixture_backward_kernel(const LogisticMixtureBackwardParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  if (!share.active) return;
  const auto form = convert_form<T>(p.form);
  const Rows<const scalar_t> params(p.params.first, share.sample);
  const Rows<scalar_t> grads(p.grad_params.first, share.sample);
  const T upstream = static_cast<const T*>(p.grad)[share.sample];
  for_each_element<1>(split, share, 1, p.inner, [&](int row, int column) {
    T n[kColours];
    load_colours<scalar_t>(p, share.sample, column, form.top, n);
    scalar_t* target = grads.at(row, column);
    const int step = int(p.grad_params.step);
    const auto write = [&](int i, T value) { target[i * step] = static_cast<scalar_t>(value); };
    mixture_gradient(upstream, n, PixelParams<scalar_t>{params.at(row, column), int(p.params.step)}, form,
                     write);
  });
}

}  // namespace

cudaError_t launch_logistic_mixture(StorageType type, const LogisticMixtureForwardParams& p,
                                    const SampleSplit& split, double* partial, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto kernel =
        p.colours == 3 ? logistic_mixture_kernel<scalar_t, 3> : logistic_mixture_kernel<scalar_t, 1>;
    const cudaError_t error = launch(kernel, split.blocks(), kSplitThreads, 0, stream, p, split, partial);
    if (error != cudaSuccess || split.chunks == 1) return error;
    return launch_chunk_totals<opmath_type<scalar_t>>(p.log_prob, nullptr, split, partial, stream);
  });
}

cudaError_t launch_logistic_mixture_backward(StorageType type, const LogisticMixtureBackwardParams& p,
                                             const SampleSplit& split, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto kernel = p.colours == 3 ? logistic_mixture_backward_kernel<scalar_t, 3>
                                       : logistic_mixture_backward_kernel<scalar_t, 1>;
    return launch(kernel, split.blocks(), kSplitThreads, 0, stream, p, split);
  });
}

}  // namespace flowops
