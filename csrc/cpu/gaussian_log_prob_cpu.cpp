#include <ATen/Parallel.h>

#include <algorithm>

#include "common/dispatch.h"
#include "cpu/lanes.h"
#include "cpu/sample_tasks.h"
#include "math/gaussian_log_prob.h"
#include "ops/gaussian_log_prob.h"

namespace flowops {
namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kDensityGrain = 8192;

// Contiguous elements; absent operands and gradients not wanted are null.
template <typename T>
struct DensityTile {
  const T *x, *mean, *log_scale;
  T* terms;  // the excess of each element
  int64_t size;
};

template <typename T>
struct DensityGradientTile {
  const T *upstream, *x, *mean, *log_scale;  // upstream: an element each
  T *grad_x, *grad_mean, *grad_log_scale;
  int64_t size;
};

// The distance d of the elements from `i` on, with log_scale and its root.
template <bool kScaled, typename V>
struct Standardised {
  V log_scale = V(0), root = V(1), distance;

  template <typename Tile, typename Load>
  FLOWOPS_INLINE Standardised(const Tile& t, int64_t i, const Load& load) : distance(load(t.x + i)) {
    if (t.mean) distance = distance - load(t.mean + i);
    if constexpr (kScaled) {
      log_scale = load(t.log_scale + i);
      root = gaussian_root(log_scale);
      distance = gaussian_reduced(distance, root);
    }
  }
};

// Returns the sum of the terms if `terms` is null.
template <typename T, bool kScaled>
double density_tile(const DensityTile<T>& t) {
  using V = Vec<T>;
  V sum(0);
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    const Standardised<kScaled, V> at(t, i, load);
    const V excess = gaussian_excess(at.distance, at.log_scale);
    if (t.terms) {
      store(t.terms + i, excess);
    } else {
      sum += excess;
    }
  });
  return double(sum.sum());
}

template <typename T, bool kScaled>
void density_gradient_tile(const DensityGradientTile<T>& t) {
  using V = Vec<T>;
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    const Standardised<kScaled, V> at(t, i, load);
    const V h = load(t.upstream + i);
    const auto grad = gaussian_log_prob_gradient(h, at.distance, at.root);
    if (t.grad_x) store(t.grad_x + i, grad.x);
    if (t.grad_mean) store(t.grad_mean + i, -grad.x);
    if (kScaled && t.grad_log_scale) store(t.grad_log_scale + i, grad.log_scale);
  });
}

template <typename scalar_t, typename T>
void run_forward(const GaussianLogProbParams& p) {
  const SampleTasks tasks(p, kDensityGrain);
  const double constant = kHalfLog2Pi * double(p.outer * p.inner);
  SampleSums sums(tasks, p.batch, static_cast<T*>(p.log_prob),
                  [=](int64_t, double excess) { return 0 - excess - constant; });
  const auto run = p.log_scale.data ? &density_tile<T, true> : &density_tile<T, false>;
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[3][kTileSize], terms[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        DensityTile<T> tile{};
        tile.x = tasks.load<scalar_t>(p.x, part, buffers[0]);
        tile.mean = tasks.load<scalar_t>(p.mean, part, buffers[1]);
        tile.log_scale = tasks.load<scalar_t>(p.log_scale, part, buffers[2]);
        tile.size = part.samples * part.size;
        tile.terms = tasks.together() ? terms : nullptr;
        const double total = run(tile);
        sums.add(task, part,
                 [&](int64_t at, int64_t size) { return tile.terms ? row_sum(terms + at, size) : total; });
      });
    }
  });
  sums.close();
}

template <typename scalar_t, typename T>
void run_backward(const GaussianLogProbBackwardParams& p) {
  const SampleTasks tasks(p, kDensityGrain);
  const T* grad = static_cast<const T*>(p.grad);
  const auto run = p.log_scale.data ? &density_gradient_tile<T, true> : &density_gradient_tile<T, false>;
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[6][kTileSize], upstream[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        DensityGradientTile<T> tile{};
        tile.x = tasks.load<scalar_t>(p.x, part, buffers[0]);
        tile.mean = tasks.load<scalar_t>(p.mean, part, buffers[1]);
        tile.log_scale = tasks.load<scalar_t>(p.log_scale, part, buffers[2]);
        tile.grad_x = tasks.output<scalar_t>(p.grad_x, part, buffers[3]);
        tile.grad_mean = tasks.output<scalar_t>(p.grad_mean, part, buffers[4]);
        tile.grad_log_scale = tasks.output<scalar_t>(p.grad_log_scale, part, buffers[5]);
        tile.size = part.samples * part.size;
        tile.upstream = tasks.spread(grad, part, upstream);
        run(tile);
        tasks.store<scalar_t>(p.grad_x, part, tile.grad_x);
        tasks.store<scalar_t>(p.grad_mean, part, tile.grad_mean);
        tasks.store<scalar_t>(p.grad_log_scale, part, tile.grad_log_scale);
      });
    }
  });
}

}  // namespace

at::Tensor gaussian_log_prob_cpu(const at::Tensor& x, const OptionalTensor& mean,
                                 const OptionalTensor& log_scale, const OptionalTensor& params) {
  check_gaussian_log_prob_inputs(x, mean, log_scale, params);
  const auto call = prepare_gaussian_log_prob(x, mean, log_scale, params);
  FLOWOPS_DISPATCH(x.scalar_type(), kGaussianLogProb, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return call.log_prob;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_log_prob_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
    const OptionalTensor& params, bool wants_x, bool wants_mean, bool wants_log_scale, bool wants_params) {
  check_gaussian_log_prob_backward_inputs(grad, x, mean, log_scale, params);
  const auto call = prepare_gaussian_log_prob_backward(grad, x, mean, log_scale, params, wants_x, wants_mean,
                                                       wants_log_scale, wants_params);
  FLOWOPS_DISPATCH(x.scalar_type(), kGaussianLogProb, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_x, call.grad_mean, call.grad_log_scale, call.grad_params};
}

}  // namespace flowops
