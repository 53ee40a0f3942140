#include <ATen/Parallel.h>

#include <algorithm>

#include "common/dispatch.h"
#include "common/vec_special.h"
#include "cpu/lanes.h"
#include "cpu/philox.h"
#include "cpu/sample_tasks.h"
#include "math/dequantize_logit.h"
#include "ops/dequantize_logit.h"

namespace flowops {
namespace {

// Elements below which a second thread costs more than it brings: two logarithms each.
constexpr int64_t kLogitGrain = 4096;

// Contiguous elements; `noise` is null where there is none.
template <typename T>
struct LogitTile {
  const T *x, *noise;
  T *z, *terms;  // terms: an element's part of the log-determinant
  int64_t size;
};

template <typename T>
struct LogitGradientTile {
  const T *grad_z, *upstream, *x, *noise;  // upstream: that of the log-determinant, an element each
  T* grad_x;
  int64_t size;
};

template <typename T>
void logit_tile(const LogitTile<T>& t, const LogitMap<T>& map) {
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    auto x = load(t.x + i);
    if (t.noise) x = dequantized(x, load(t.noise + i), map);
    const auto image = logit(x, map);
    store(t.z + i, image.value);
    store(t.terms + i, image.log_slope);
  });
}

template <typename T>
void logit_inverse_tile(const LogitTile<T>& t, const LogitMap<T>& map) {
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    const auto image = logit_inverse(load(t.x + i), map);
    store(t.z + i, image.value);
    store(t.terms + i, image.log_slope);
  });
}

template <typename T>
void logit_gradient_tile(const LogitGradientTile<T>& t, const LogitMap<T>& map) {
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    auto x = load(t.x + i);
    if (t.noise) x = dequantized(x, load(t.noise + i), map);
    store(t.grad_x + i, logit_gradient(load(t.grad_z + i), load(t.upstream + i), x, map));
  });
}

template <typename T>
void logit_inverse_gradient_tile(const LogitGradientTile<T>& t, const LogitMap<T>& map) {
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    store(t.grad_x + i, logit_inverse_gradient(load(t.grad_z + i), load(t.upstream + i), load(t.x + i), map));
  });
}

template <typename in_t, typename scalar_t, typename T>
void run_forward(const DequantizeLogitParams& p) {
  const SampleTasks tasks(p, kLogitGrain);
  const LogitMap<T> map(p.alpha, p.levels);
  const T* before = static_cast<const T*>(p.logdet_before);
  const double constant = p.log_slope * double(p.outer * p.inner);
  SampleSums sums(tasks, p.batch, static_cast<T*>(p.logdet), [=](int64_t sample, double sum) {
    return sum + constant + (before ? double(before[sample]) : 0);
  });
  const auto run = p.inverse ? &logit_inverse_tile<T> : &logit_tile<T>;
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[2][kTileSize], noise[random_buffer_size<T>(kTileSize)], terms[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        LogitTile<T> tile{};
        tile.x = tasks.load<in_t>(p.x, part, buffers[0]);
        tile.z = tasks.output<scalar_t>(p.z, part, buffers[1]);
        tile.terms = terms;
        tile.size = part.samples * part.size;
        if (p.key) tile.noise = uniform_range(stream_of(p.key), part.first, tile.size, noise);
        run(tile, map);
        tasks.store<scalar_t>(p.z, part, tile.z);
        sums.add(task, part, [&](int64_t at, int64_t size) { return row_sum(terms + at, size); });
      });
    }
  });
  sums.close();
}

template <typename scalar_t, typename T>
void run_backward(const DequantizeLogitBackwardParams& p) {
  const SampleTasks tasks(p, kLogitGrain);
  const LogitMap<T> map(p.alpha, p.levels);
  const T* grad_logdet = static_cast<const T*>(p.grad_logdet);
  const auto run = p.inverse ? &logit_inverse_gradient_tile<T> : &logit_gradient_tile<T>;
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[3][kTileSize], noise[random_buffer_size<T>(kTileSize)], upstream[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        LogitGradientTile<T> tile{};
        tile.grad_z = tasks.load<scalar_t>(p.grad_z, part, buffers[0]);
        tile.x = tasks.load<scalar_t>(p.x, part, buffers[1]);
        tile.grad_x = tasks.output<scalar_t>(p.grad_x, part, buffers[2]);
        tile.size = part.samples * part.size;
        tile.upstream = tasks.spread(grad_logdet, part, upstream);
        if (p.key) tile.noise = uniform_range(stream_of(p.key), part.first, tile.size, noise);
        run(tile, map);
        tasks.store<scalar_t>(p.grad_x, part, tile.grad_x);
      });
    }
  });
}

template <typename T>
void run_noise(const NoiseParams& p) {
  const int64_t tiles = (p.count + kTileSize - 1) / kTileSize;
  at::parallel_for(0, tiles, kLogitGrain / kTileSize, [&](int64_t begin, int64_t end) {
    alignas(64) T noise[random_buffer_size<T>(kTileSize)];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTileSize, size = std::min(kTileSize, p.count - first);
      store_row(uniform_range(stream_of(p.key), first, size, noise), static_cast<T*>(p.out) + first, size);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> dequantize_logit_cpu(const at::Tensor& x, const OptionalTensor& key,
                                                        const OptionalTensor& logdet, int64_t levels,
                                                        double alpha, bool inverse) {
  check_dequantize_logit_inputs(x, key, logdet, levels, alpha, inverse);
  const auto call = prepare_dequantize_logit(x, key, logdet, levels, alpha, inverse);
  if (call.p.bytes) {
    run_forward<uint8_t, float, float>(call.p);
  } else {
    FLOWOPS_DISPATCH(x.scalar_type(), kDequantizeLogit,
                     [&] { run_forward<scalar_t, scalar_t, opmath_t>(call.p); });
  }
  return {call.z, call.logdet};
}

at::Tensor dequantize_logit_backward_cpu(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                         const at::Tensor& x, const OptionalTensor& key, int64_t levels,
                                         double alpha, bool inverse) {
  check_dequantize_logit_backward_inputs(grad_z, grad_logdet, x, key, levels, alpha, inverse);
  const auto call = prepare_dequantize_logit_backward(grad_z, grad_logdet, x, key, levels, alpha, inverse);
  FLOWOPS_DISPATCH(x.scalar_type(), kDequantizeLogit, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return call.grad_x;
}

at::Tensor uniform_noise_cpu(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  check_uniform_noise_inputs(key, dtype);
  const auto words = key.contiguous();
  auto out = key.new_empty(size, key.options().dtype(dtype));
  const NoiseParams p{out.numel(), words.const_data_ptr<int64_t>(), out.mutable_data_ptr()};
  dtype == at::kDouble ? run_noise<double>(p) : run_noise<float>(p);
  return out;
}

}  // namespace flowops
