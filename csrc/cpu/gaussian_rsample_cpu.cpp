#include <ATen/Parallel.h>

#include <algorithm>

#include "common/dispatch.h"
#include "cpu/gaussian_rsample_tile.h"
#include "cpu/philox.h"
#include "cpu/sample_tasks.h"
#include "ops/gaussian_rsample.h"

namespace flowops {
namespace {

// Elements below which a second thread costs more than it brings: a normal number costs more than a load.
constexpr int64_t kNormalGrain = 2048;

template <typename scalar_t, typename T>
void run_forward(const GaussianRsampleParams& p) {
  const SampleTasks tasks(p, kNormalGrain);
  const PhiloxStream stream = stream_of(p.key);
  const auto run = pick_sample<T>(p.form);
  T* kl = static_cast<T*>(p.kl);
  if (!p.with_kl) std::fill_n(kl, p.batch, T(0));
  SampleSums sums(tasks, p.batch, kl, [](int64_t, double sum) { return sum; });
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[5][kTileSize], noise[random_buffer_size<T>(kTileSize)], terms[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        SampleTile<T> tile{};
        tile.mean = tasks.load<scalar_t>(p.mean, part, buffers[0]);
        tile.scale = tasks.load<scalar_t>(p.scale, part, buffers[1]);
        tile.prior_mean = tasks.load<scalar_t>(p.prior_mean, part, buffers[2]);
        tile.prior_scale = tasks.load<scalar_t>(p.prior_scale, part, buffers[3]);
        tile.size = part.samples * part.size;
        tile.noise = normal_range(stream, part.first, tile.size, noise);
        tile.z = tasks.output<scalar_t>(p.z, part, buffers[4]);
        tile.kl = p.with_kl ? terms : nullptr;
        tile.residual = p.residual;
        run(tile);
        tasks.store<scalar_t>(p.z, part, tile.z);
        if (!p.with_kl) return;
        sums.add(task, part, [&](int64_t at, int64_t size) { return row_sum(terms + at, size); });
      });
    }
  });
  if (p.with_kl) sums.close();
}

template <typename scalar_t, typename T>
void run_backward(const GaussianRsampleBackwardParams& p) {
  const SampleTasks tasks(p, kNormalGrain);
  const PhiloxStream stream = stream_of(p.key);
  const auto run = pick_sample_gradient<T>(p.form);
  const T* grad_kl = static_cast<const T*>(p.grad_kl);
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[9][kTileSize], noise[random_buffer_size<T>(kTileSize)], upstream[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        SampleGradientTile<T> tile{};
        tile.grad_z = tasks.load<scalar_t>(p.grad_z, part, buffers[0]);
        tile.mean = tasks.load<scalar_t>(p.mean, part, buffers[1]);
        tile.scale = tasks.load<scalar_t>(p.scale, part, buffers[2]);
        tile.prior_mean = tasks.load<scalar_t>(p.prior_mean, part, buffers[3]);
        tile.prior_scale = tasks.load<scalar_t>(p.prior_scale, part, buffers[4]);
        tile.size = part.samples * part.size;
        tile.noise = normal_range(stream, part.first, tile.size, noise);
        tile.grad_kl = p.with_kl ? tasks.spread(grad_kl, part, upstream) : nullptr;
        tile.grad_mean = tasks.output<scalar_t>(p.grad_mean, part, buffers[5]);
        tile.grad_scale = tasks.output<scalar_t>(p.grad_scale, part, buffers[6]);
        tile.grad_prior_mean = tasks.output<scalar_t>(p.grad_prior_mean, part, buffers[7]);
        tile.grad_prior_scale = tasks.output<scalar_t>(p.grad_prior_scale, part, buffers[8]);
        tile.residual = p.residual;
        run(tile);
        tasks.store<scalar_t>(p.grad_mean, part, tile.grad_mean);
        tasks.store<scalar_t>(p.grad_scale, part, tile.grad_scale);
        tasks.store<scalar_t>(p.grad_prior_mean, part, tile.grad_prior_mean);
        tasks.store<scalar_t>(p.grad_prior_scale, part, tile.grad_prior_scale);
      });
    }
  });
}

template <typename scalar_t, typename T>
void run_noise(const NoiseParams& p) {
  const PhiloxStream stream = stream_of(p.key);
  const int64_t tiles = (p.count + kTileSize - 1) / kTileSize;
  at::parallel_for(0, tiles, kNormalGrain / kTileSize, [&](int64_t begin, int64_t end) {
    alignas(64) T noise[random_buffer_size<T>(kTileSize)];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTileSize, size = std::min(kTileSize, p.count - first);
      store_row(normal_range(stream, first, size, noise), static_cast<scalar_t*>(p.out) + first, size);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gaussian_rsample_cpu(const OptionalTensor& mean,
                                                        const OptionalTensor& scale, const at::Tensor& key,
                                                        const OptionalTensor& prior_mean,
                                                        const OptionalTensor& prior_scale,
                                                        const OptionalTensor& params, int64_t form,
                                                        bool residual, bool with_kl) {
  const auto q = posterior_of(mean, scale, params);
  check_gaussian_rsample_inputs(q, key, prior_mean, prior_scale, form, residual);
  const auto call = prepare_gaussian_rsample(q, key, prior_mean, prior_scale, form, residual, with_kl);
  FLOWOPS_DISPATCH(q.mean.scalar_type(), kGaussianRsample, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return {call.z, call.kl};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_rsample_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const OptionalTensor& mean,
    const OptionalTensor& scale, const at::Tensor& key, const OptionalTensor& prior_mean,
    const OptionalTensor& prior_scale, const OptionalTensor& params, int64_t form, bool residual,
    bool with_kl) {
  const auto q = posterior_of(mean, scale, params);
  check_gaussian_rsample_backward_inputs(grad_z, grad_kl, q, key, prior_mean, prior_scale, form, residual);
  const auto call = prepare_gaussian_rsample_backward(grad_z, grad_kl, q, key, prior_mean, prior_scale, form,
                                                      residual, with_kl);
  FLOWOPS_DISPATCH(q.mean.scalar_type(), kGaussianRsample, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_mean, call.grad_scale, call.grad_prior_mean, call.grad_prior_scale, call.grad_params};
}

at::Tensor gaussian_noise_cpu(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  check_gaussian_noise_inputs(key, dtype);
  const auto words = key.contiguous();
  auto out = key.new_empty(size, key.options().dtype(dtype));
  const NoiseParams p{out.numel(), words.const_data_ptr<int64_t>(), out.mutable_data_ptr()};
  FLOWOPS_DISPATCH(dtype, "randn", [&] { run_noise<scalar_t, opmath_t>(p); });
  return out;
}

}  // namespace flowops
