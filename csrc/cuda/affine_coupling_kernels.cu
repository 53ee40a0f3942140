#include "common/cuda_split.cuh"
#include "cuda/affine_coupling_launch.h"
#include "math/affine_coupling.h"

namespace flowops {
namespace {

static_assert(kSplitThreadElements <= kMaxLogFactors);

template <int kLanes, typename Map, typename T>
__device__ __forceinline__ void evaluate_map(const ScaleInput<T> (&in)[kLanes],
                                             ScaleTerms<T> (&terms)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) terms[i] = Map::evaluate(in[i]);
}

// One branch for all lanes, so that their exponentials overlap.
template <int kLanes, typename T>
__device__ __forceinline__ void evaluate_scale(ScaleMap map, const ScaleInput<T> (&in)[kLanes],
                                               ScaleTerms<T> (&terms)[kLanes]) {
  switch (map) {
    case ScaleMap::kAdditive: return evaluate_map<kLanes, AdditiveScale>(in, terms);
    case ScaleMap::kExp: return evaluate_map<kLanes, ExpScale>(in, terms);
    case ScaleMap::kTanhExp: return evaluate_map<kLanes, TanhExpScale>(in, terms);
    case ScaleMap::kSigmoid: return evaluate_map<kLanes, SigmoidScale>(in, terms);
    case ScaleMap::kReciprocalSigmoid: return evaluate_map<kLanes, ReciprocalSigmoidScale>(in, terms);
    case ScaleMap::kAtanExp: return evaluate_map<kLanes, AtanExpScale>(in, terms);
    case ScaleMap::kSoftsignExp: return evaluate_map<kLanes, SoftsignExpScale>(in, terms);
    case ScaleMap::kSoftplus: return evaluate_map<kLanes, SoftplusScale>(in, terms);
    case ScaleMap::kFlooredSigmoid: return evaluate_map<kLanes, FlooredSigmoidScale>(in, terms);
  }
}

template <int kLanes, typename scalar_t>
__device__ __forceinline__ void copy_kept(const KeptBlock& kept, const SampleSplit& split,
                                          const ThreadShare& share) {
  const Rows<const scalar_t> source(kept.source, share.sample);
  const Rows<scalar_t> target(kept.target, share.sample);
  for_each_element<kLanes>(split, share, kept.outer, kept.inner, [&](int row, int column) {
    scalar_t values[kLanes];
    load_lanes(source, row, column, values);
    store_lanes(target, row, column, values);
  });
}

// Scale terms and mask of the elements from (row, column) on; raw, amplitude and mask may be
// absent.
template <int kLanes, typename scalar_t>
struct ScaleOperands {
  using T = opmath_type<scalar_t>;
  Rows<const scalar_t> raw;
  Rows<const T> amplitude;
  Rows<const bool> mask;
  ScaleMap map;
  ScaleInput<T> constant;

  template <typename Params>
  __device__ ScaleOperands(const Params& p, int64_t sample)
      : raw(p.raw, sample),
        amplitude(p.amplitude, sample),
        mask(p.mask, sample),
        map(p.scale_map),
        constant{T(0), T(p.constants.limit), T(p.constants.gain), T(p.constants.floor)} {}

  __device__ void evaluate(int row, int column, ScaleTerms<T> (&terms)[kLanes], bool (&kept)[kLanes]) const {
    ScaleInput<T> in[kLanes];
    T values[kLanes] = {};
    if (raw.data) load_lanes(raw, row, column, values);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) in[i] = {values[i], constant.limit, constant.gain, constant.floor};
    if (amplitude.data) {
      load_each(amplitude, row, column, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) in[i].limit = values[i];
    }
    evaluate_scale(map, in, terms);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) kept[i] = mask.data && *mask.at(row, column + i);
  }
};

template <typename scalar_t, int kLanes, bool kInverse>
__global__ void __launch_bounds__(kSplitThreads)
    affine_coupling_kernel(const AffineCouplingParams p, const SampleSplit split, double* partial) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  copy_kept<kLanes, scalar_t>(p.kept[0], split, share);
  copy_kept<kLanes, scalar_t>(p.kept[1], split, share);
  const Rows<const scalar_t> x(p.x, share.sample), shift(p.shift, share.sample);
  const Rows<scalar_t> z(p.z, share.sample);
  const ScaleOperands<kLanes, scalar_t> scale(p, share.sample);
  const bool shift_first = p.shift_then_scale != kInverse;
  T log_sum = 0, log_product = 1;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T values[kLanes], shifts[kLanes];
    load_lanes(x, row, column, values);
    load_lanes(shift, row, column, shifts);
    ScaleTerms<T> terms[kLanes];
    bool kept[kLanes];
    scale.evaluate(row, column, terms, kept);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const T factor = kInverse ? terms[i].reciprocal : terms[i].value;
      const T moved = affine_coupling_transform(values[i], factor, shifts[i], shift_first, kInverse);
      values[i] = select(kept[i], values[i], moved);
      log_sum += select(kept[i], T(0), terms[i].log_sum);
      log_product *= select(kept[i], T(1), terms[i].log_product);
    }
    store_lanes(z, row, column, values);
  });
  const double total = log_sum - log(log_product);
  store_sample_sum<T>(split, share, kInverse ? -total : total, p.logdet, p.logdet_in, partial);
}

template <typename scalar_t, int kLanes, bool kInverse>
__global__ void __launch_bounds__(kSplitThreads)
    affine_coupling_backward_kernel(const AffineCouplingBackwardParams p, const SampleSplit split) {
  using T = opmath_type<scalar_t>;
  const ThreadShare share(split);
  if (!share.active) return;
  copy_kept<kLanes, scalar_t>(p.kept[0], split, share);
  copy_kept<kLanes, scalar_t>(p.kept[1], split, share);
  const Rows<const scalar_t> grad_z(p.grad_z, share.sample), saved(p.saved, share.sample);
  const Rows<scalar_t> grad_x(p.grad_x, share.sample), grad_raw(p.grad_raw, share.sample);
  const Rows<scalar_t> grad_shift(p.grad_shift, share.sample);
  const Rows<T> grad_amplitude(p.grad_amplitude, share.sample);
  const ScaleOperands<kLanes, scalar_t> scale(p, share.sample);
  const T grad_logdet = static_cast<const T*>(p.grad_logdet)[share.sample * p.grad_logdet_stride];
  const bool shift_first = p.shift_then_scale != kInverse;
  for_each_element<kLanes>(split, share, p.outer, p.inner, [&](int row, int column) {
    T upstream[kLanes], held[kLanes], raw[kLanes], shift[kLanes], amplitude[kLanes];
    load_lanes(grad_z, row, column, upstream);
    load_lanes(saved, row, column, held);
    ScaleTerms<T> terms[kLanes];
    bool kept[kLanes];
    scale.evaluate(row, column, terms, kept);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const auto grad =
          affine_coupling_gradient(upstream[i], grad_logdet, held[i], terms[i], shift_first, kInverse);
      upstream[i] = select(kept[i], upstream[i], grad.x);
      raw[i] = select(kept[i], T(0), grad.raw);
      shift[i] = select(kept[i], T(0), grad.shift);
      amplitude[i] = select(kept[i], T(0), grad.limit);
    }
    store_lanes(grad_x, row, column, upstream);
    store_lanes(grad_raw, row, column, raw);
    store_lanes(grad_shift, row, column, shift);
    if (grad_amplitude.data) store_each(grad_amplitude, row, column, amplitude);
  });
}

template <typename Params>
VectorSplit split_params(StorageType type, const Params& p, std::initializer_list<const Operand*> operands) {
  const int bytes = storage_bytes(type);
  bool vectors = take_vectors(operands, p.inner, bytes);
  int64_t elements = p.outer * p.inner;
  for (const KeptBlock& kept : p.kept) {
    elements = std::max(elements, kept.outer * kept.inner);
    vectors = vectors && take_vectors({&kept.source, &kept.target}, kept.inner, bytes);
  }
  return {split_samples(p.batch, elements, vectors ? 16 / bytes : 1), vectors};
}

template <typename scalar_t, int kLanes>
cudaError_t launch_lanes(const AffineCouplingParams& p, const SampleSplit& split, double* partial,
                         cudaStream_t stream) {
  const auto kernel = p.inverse ? affine_coupling_kernel<scalar_t, kLanes, true>
                                : affine_coupling_kernel<scalar_t, kLanes, false>;
  return launch(kernel, split.blocks(), kSplitThreads, 0, stream, p, split, partial);
}

template <typename scalar_t>
cudaError_t launch_forward(const AffineCouplingParams& p, const VectorSplit& split, double* partial,
                           cudaStream_t stream) {
  const SampleSplit& samples = split.samples;
  const cudaError_t error = split.vectors
                                ? launch_lanes<scalar_t, Vector<scalar_t>::kSize>(p, samples, partial, stream)
                                : launch_lanes<scalar_t, 1>(p, samples, partial, stream);
  if (error != cudaSuccess || samples.chunks == 1) return error;
  return launch_chunk_totals<opmath_type<scalar_t>>(p.logdet, p.logdet_in, samples, partial, stream);
}

template <typename scalar_t, int kLanes>
cudaError_t launch_lanes(const AffineCouplingBackwardParams& p, const SampleSplit& split,
                         cudaStream_t stream) {
  const auto kernel = p.inverse ? affine_coupling_backward_kernel<scalar_t, kLanes, true>
                                : affine_coupling_backward_kernel<scalar_t, kLanes, false>;
  return launch(kernel, split.blocks(), kSplitThreads, 0, stream, p, split);
}

template <typename scalar_t>
cudaError_t launch_backward(const AffineCouplingBackwardParams& p, const VectorSplit& split,
                            cudaStream_t stream) {
  return split.vectors ? launch_lanes<scalar_t, Vector<scalar_t>::kSize>(p, split.samples, stream)
                       : launch_lanes<scalar_t, 1>(p, split.samples, stream);
}

}  // namespace

VectorSplit split_affine_coupling(StorageType type, const AffineCouplingParams& p) {
  return split_params(type, p, {&p.x, &p.raw, &p.shift, &p.z});
}

VectorSplit split_affine_coupling(StorageType type, const AffineCouplingBackwardParams& p) {
  return split_params(type, p, {&p.grad_z, &p.saved, &p.raw, &p.grad_x, &p.grad_raw, &p.grad_shift});
}

cudaError_t launch_affine_coupling(StorageType type, const AffineCouplingParams& p, const VectorSplit& split,
                                   double* partial, cudaStream_t stream) {
  return dispatch_storage(
      type, [&](auto zero) { return launch_forward<decltype(zero)>(p, split, partial, stream); });
}

cudaError_t launch_affine_coupling_backward(StorageType type, const AffineCouplingBackwardParams& p,
                                            const VectorSplit& split, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) { return launch_backward<decltype(zero)>(p, split, stream); });
}

}  // namespace flowops
