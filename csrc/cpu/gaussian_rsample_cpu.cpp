#if defined(__AVX512F__) && !defined(__clang__)
// GCC 12 takes undefined operands inside its own intrinsics for uses of them (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/dispatch.h"
#include "cpu/gaussian_rsample_tile.h"
#include "cpu/philox.h"
#include "cpu/tile.h"
#include "ops/gaussian_rsample.h"

namespace flowops {
namespace {

// Elements below which a second thread costs more than it brings: a normal number costs more than a load.
constexpr int64_t kNormalGrain = 2048;

PhiloxStream stream_of(const int64_t* key) {
  return {static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])};
}

// How the samples of a call are cut into tasks, each a range of tiles: a chunk of one sample, or several
// whole samples. Neither cut depends on the batch or the number of threads, so neither do the sums.
class SampleTasks {
 public:
  template <typename Params>
  explicit SampleTasks(const Params& p)
      : batch_(p.batch),
        size_(p.outer * p.inner),
        inner_(p.inner),
        grid_(p.outer, p.inner),
        together_(p.outer == 1 && size_ > 0 && size_ <= kTileSize / 2 ? kTileSize / size_ : 0) {}

  int64_t chunks() const { return together_ > 0 ? 1 : grid_.chunks(); }
  int64_t count() const {
    if (size_ == 0) return 0;
    return together_ > 0 ? (batch_ + together_ - 1) / together_ : batch_ * chunks();
  }
  int64_t grain() const {
    const int64_t work = together_ > 0 ? together_ * size_ : std::max<int64_t>(1, size_ / chunks());
    return std::max<int64_t>(1, kNormalGrain / work);
  }

  // A tile, the number of its first element, and the samples whose elements it holds one after another.
  struct Part {
    Tile tile;
    int64_t first, samples, sample, size;
  };

  // Calls body(part) for the tiles of a task in order.
  template <typename Body>
  void for_each_part(int64_t task, const Body& body) const {
    if (together_ > 0) {
      const int64_t sample = task * together_, samples = std::min(together_, batch_ - sample);
      body(Part{{0, sample, 0, samples, size_}, sample * size_, samples, sample, size_});
      return;
    }
    const int64_t sample = task / chunks(), chunk = task % chunks();
    const int64_t end = std::min(grid_.tiles(), (chunk + 1) * kTilesPerChunk);
    for (int64_t index = chunk * kTilesPerChunk; index < end; ++index) {
      const Tile t = grid_.tile(sample, index);
      body(Part{t, sample * size_ + t.outer * inner_ + t.inner, 1, sample, t.size()});
    }
  }

  // How an operand is read at a part: samples that lie one after another are one row of all their elements.
  std::pair<Operand, Tile> place(const Operand& a, const Part& part) const {
    if (together_ == 0) return {a, part.tile};
    if (a.inner == 1 && a.batch == size_) {
      return {{a.data, 0, 0, 1}, {0, 0, part.sample * size_, 1, part.samples * size_}};
    }
    return {{a.data, 0, a.batch, a.inner}, part.tile};
  }

  template <typename scalar_t, typename T>
  const T* load(const Operand& a, const Part& part, T* buffer) const {
    if (a.data == nullptr) return nullptr;
    const auto [at, tile] = place(a, part);
    return load_tile<scalar_t>(at, tile, buffer);
  }

  template <typename scalar_t, typename T>
  T* output(const Operand& a, const Part& part, T* buffer) const {
    if (a.data == nullptr) return nullptr;
    const auto [at, tile] = place(a, part);
    return output_tile<scalar_t>(at, tile, buffer);
  }

  template <typename scalar_t, typename T>
  void store(const Operand& a, const Part& part, const T* buffer) const {
    if (a.data == nullptr) return;
    const auto [at, tile] = place(a, part);
    store_tile<scalar_t>(at, tile, buffer);
  }

 private:
  int64_t batch_, size_, inner_;
  TileGrid grid_;
  int64_t together_;
};

template <typename T>
double row_sum(const T* values, int64_t size) {
  using V = Vec<T>;
  V sum(0);
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes) sum += V::load(values + i);
  if (i < size) sum += V::load(values + i, size - i);
  return double(sum.sum());
}

template <typename scalar_t, typename T>
void run_forward(const GaussianRsampleParams& p) {
  const SampleTasks tasks(p);
  const PhiloxStream stream = stream_of(p.key);
  const auto run = pick_sample<T>(p.form);
  const int64_t chunks = tasks.chunks();
  T* kl = static_cast<T*>(p.kl);
  std::vector<double> partial(chunks > 1 && p.with_kl ? p.batch * chunks : 0);
  if (!p.with_kl || p.outer * p.inner == 0) std::fill_n(kl, p.batch, T(0));
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[5][kTileSize], noise[normal_buffer_size<T>(kTileSize)], terms[kTileSize];
    for (int64_t task = begin; task < end; ++task) {
      double total = 0;
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
        if (part.samples == 1) total += row_sum(terms, part.size);
        for (int64_t s = 0; part.samples > 1 && s < part.samples; ++s) {
          kl[part.sample + s] = static_cast<T>(row_sum(terms + s * part.size, part.size));
        }
        if (chunks == 1 && part.samples == 1) kl[part.sample] = static_cast<T>(total);
      });
      if (!partial.empty()) partial[task] = total;
    }
  });
  if (partial.empty()) return;
  for (int64_t b = 0; b < p.batch; ++b) {
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += partial[b * chunks + c];
    kl[b] = static_cast<T>(total);
  }
}

template <typename scalar_t, typename T>
void run_backward(const GaussianRsampleBackwardParams& p) {
  const SampleTasks tasks(p);
  const PhiloxStream stream = stream_of(p.key);
  const auto run = pick_sample_gradient<T>(p.form);
  const T* grad_kl = static_cast<const T*>(p.grad_kl);
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[9][kTileSize], noise[normal_buffer_size<T>(kTileSize)], upstream[kTileSize];
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
        for (int64_t s = 0; s < part.samples; ++s) {
          std::fill_n(upstream + s * part.size, part.size, grad_kl[part.sample + s]);
        }
        tile.grad_kl = p.with_kl ? upstream : nullptr;
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
void run_noise(const GaussianNoiseParams& p) {
  const PhiloxStream stream = stream_of(p.key);
  const int64_t tiles = (p.count + kTileSize - 1) / kTileSize;
  at::parallel_for(0, tiles, kNormalGrain / kTileSize, [&](int64_t begin, int64_t end) {
    alignas(64) T noise[normal_buffer_size<T>(kTileSize)];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTileSize, size = std::min(kTileSize, p.count - first);
      store_row(normal_range(stream, first, size, noise), static_cast<scalar_t*>(p.out) + first, size);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gaussian_rsample_cpu(const at::Tensor& mean, const at::Tensor& scale,
                                                        const at::Tensor& key,
                                                        const std::optional<at::Tensor>& prior_mean,
                                                        const std::optional<at::Tensor>& prior_scale,
                                                        int64_t form, bool residual, bool with_kl) {
  check_gaussian_rsample_inputs(mean, scale, key, prior_mean, prior_scale, form, residual);
  const auto call =
      prepare_gaussian_rsample(mean, scale, key, prior_mean, prior_scale, form, residual, with_kl);
  FLOWOPS_DISPATCH(mean.scalar_type(), kGaussianRsample, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return {call.z, call.kl};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_rsample_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const at::Tensor& mean, const at::Tensor& scale,
    const at::Tensor& key, const std::optional<at::Tensor>& prior_mean,
    const std::optional<at::Tensor>& prior_scale, int64_t form, bool residual, bool with_kl) {
  check_gaussian_rsample_backward_inputs(grad_z, grad_kl, mean, scale, key, prior_mean, prior_scale, form,
                                         residual);
  const auto call = prepare_gaussian_rsample_backward(grad_z, grad_kl, mean, scale, key, prior_mean,
                                                      prior_scale, form, residual, with_kl);
  FLOWOPS_DISPATCH(mean.scalar_type(), kGaussianRsample, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_mean, call.grad_scale, call.grad_prior_mean, call.grad_prior_scale};
}

at::Tensor gaussian_noise_cpu(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  check_gaussian_noise_inputs(key, dtype);
  const auto words = key.contiguous();
  auto out = key.new_empty(size, key.options().dtype(dtype));
  const GaussianNoiseParams p{out.numel(), words.const_data_ptr<int64_t>(), out.mutable_data_ptr()};
  FLOWOPS_DISPATCH(dtype, "randn", [&] { run_noise<scalar_t, opmath_t>(p); });
  return out;
}

}  // namespace flowops
