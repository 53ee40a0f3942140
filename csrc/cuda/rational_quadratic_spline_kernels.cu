#include <type_traits>

#include "common/cuda_split.cuh"
#include "cuda/rational_quadratic_spline_launch.h"
#include "math/rational_quadratic_spline.h"

namespace flowops {
namespace {

// The raw parameters of one element.
template <typename scalar_t>
struct Logits {
  const scalar_t* data;
  int step;

  __device__ opmath_type<scalar_t> operator()(int i) const {
    return static_cast<opmath_type<scalar_t>>(data[i * step]);
  }
};

// Exponentials in registers, for a number of bins known to the compiler.
template <typename scalar_t, int kBins>
struct Shares {
  using T = opmath_type<scalar_t>;
  T values[2 * kBins];

  __device__ Shares(const Logits<scalar_t>&, const SplineForm<T>&) {}
  __device__ void start(int, T) {}
  __device__ void set(int i, T value) { values[i] = value; }
  __device__ T get(int i) const { return values[i]; }
};

// Exponentials taken anew each time, for any number of bins.
template <typename scalar_t>
struct Shares<scalar_t, 0> {
  using T = opmath_type<scalar_t>;
  Logits<scalar_t> logits;
  T clip, highest_width = 0, highest_height = 0;
  int bins;

  __device__ Shares(const Logits<scalar_t>& logits, const SplineForm<T>& form)
      : logits(logits), clip(2 * form.clip), bins(form.bins) {}
  __device__ void start(int first, T highest) {
    if (first == 0) {
      highest_width = highest;
    } else {
      highest_height = highest;
    }
  }
  __device__ void set(int, T) {}
  __device__ T get(int i) const {
    return exp(soft_clip(logits(i), clip) - (i < bins ? highest_width : highest_height));
  }
};

// Blocks a multiprocessor, chosen so that nothing is spilled.
template <int kBins>
constexpr int blocks_of() {
  return kBins < 16 ? 2 : 1;
}

template <typename T>
__device__ SplineDomain<T> domain_of(const SplineParams& p, int row, int column) {
  if (!p.bounds.data) return {T(p.domain[0]), T(p.domain[1]), T(p.domain[2]), T(p.domain[3])};
  const T* left = static_cast<const T*>(p.bounds.data) + row * p.bounds.outer + column * p.bounds.inner;
  return {left[0], left[p.bounds_step], left[2 * p.bounds_step], left[3 * p.bounds_step]};
}

template <typename scalar_t, int kBins>
__global__ void __launch_bounds__(kSplitThreads, blocks_of<kBins>())
    spline_kernel(const SplineForwardParams p, const SampleSplit split, double* partial) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  const Rows<const scalar_t> x(p.x, share.sample), params(p.params.first, share.sample);
  const Rows<scalar_t> z(p.z, share.sample);
  const Rows<T> logdet(p.logdet, share.sample);
  const auto form = convert_form<T>(p.form);
  const int bins = kBins > 0 ? kBins : form.bins;
  double total = 0;
  for_each_element<1>(split, share, p.outer, p.inner, [&](int row, int column) {
    const Logits<scalar_t> logits{params.at(row, column), int(p.params.step)};
    Shares<scalar_t, kBins> shares(logits, form);
    const T value = static_cast<T>(*x.at(row, column));
    const auto domain = domain_of<T>(p, row, column);
    const auto result = p.inverse ? spline_inverse(value, domain, logits, shares, form, bins)
                                  : spline_transform(value, domain, logits, shares, form, bins);
    *z.at(row, column) = static_cast<scalar_t>(result.value);
    if (p.summed) {
      total += result.logdet;
    } else {
      *logdet.at(row, column) = result.logdet;
    }
  });
  if (p.summed) store_sample_sum<T>(split, share, total, p.logdet.data, p.logdet_in, partial);
}

template <typename scalar_t, int kBins>
__global__ void __launch_bounds__(kSplitThreads, blocks_of<kBins>())
    spline_backward_kernel(const SplineBackwardParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  const Rows<const scalar_t> x(p.x, share.sample), params(p.params.first, share.sample);
  const Rows<const scalar_t> grad_z(p.grad_z, share.sample);
  const Rows<const T> grad_logdet(p.grad_logdet, share.sample);
  const Rows<scalar_t> grad_x(p.grad_x, share.sample), grad_params(p.grad_params.first, share.sample);
  const auto form = convert_form<T>(p.form);
  const int bins = kBins > 0 ? kBins : form.bins;
  for_each_element<1>(split, share, p.outer, p.inner, [&](int row, int column) {
    const Logits<scalar_t> logits{params.at(row, column), int(p.params.step)};
    Shares<scalar_t, kBins> shares(logits, form);
    scalar_t* target = grad_params.at(row, column);
    const int step = int(p.grad_params.step);
    const auto write = [&](int i, T value) { target[i * step] = static_cast<scalar_t>(value); };
    const T upstream = static_cast<T>(*grad_z.at(row, column));
    const T grad =
        spline_gradient(upstream, *grad_logdet.at(row, column), static_cast<T>(*x.at(row, column)),
                        domain_of<T>(p, row, column), logits, shares, form, bins, p.inverse, write);
    *grad_x.at(row, column) = static_cast<scalar_t>(grad);
  });
}

// Calls `body` with the number of bins as a constant where kernels are compiled for it, else with 0. In
// double the exponentials of many bins would not fit into registers.
template <typename scalar_t, typename Body>
cudaError_t dispatch_bins(int bins, const Body& body) {
  if constexpr (std::is_same_v<scalar_t, double>) {
    return body(std::integral_constant<int, 0>());
  } else {
    switch (bins) {
      case 4: return body(std::integral_constant<int, 4>());
      case 8: return body(std::integral_constant<int, 8>());
      case 10: return body(std::integral_constant<int, 10>());
      case 16: return body(std::integral_constant<int, 16>());
      case 32: return body(std::integral_constant<int, 32>());
      default: return body(std::integral_constant<int, 0>());
    }
  }
}

}  // namespace

cudaError_t launch_spline(StorageType type, const SplineForwardParams& p, const SampleSplit& split,
                          double* partial, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const cudaError_t error = dispatch_bins<scalar_t>(p.form.bins, [&](auto bins) {
      return launch(spline_kernel<scalar_t, bins.value>, split.blocks(), kSplitThreads, 0, stream, p, split,
                    partial);
    });
    if (error != cudaSuccess || split.chunks == 1 || !p.summed) return error;
    return launch_chunk_totals<opmath_type<scalar_t>>(p.logdet.data, p.logdet_in, split, partial, stream);
  });
}

cudaError_t launch_spline_backward(StorageType type, const SplineBackwardParams& p, const SampleSplit& split,
                                   cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    return dispatch_bins<scalar_t>(p.form.bins, [&](auto bins) {
      return launch(spline_backward_kernel<scalar_t, bins.value>, split.blocks(), kSplitThreads, 0, stream, p,
                    split);
    });
  });
}

}  // namespace flowops
