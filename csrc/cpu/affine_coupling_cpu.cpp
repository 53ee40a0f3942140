#include <ATen/Parallel.h>

#include <cstring>
#include <vector>

#include "common/dispatch.h"
#include "cpu/affine_coupling_tile.h"
#include "cpu/tile.h"
#include "ops/affine_coupling_operands.h"

namespace flowops {
namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 4096;

template <typename scalar_t>
void copy_kept(const KeptBlock (&blocks)[2], int64_t batch) {
  for (const KeptBlock& block : blocks) {
    for (int64_t r = 0; r < block.outer; ++r) {
      const scalar_t* source = static_cast<const scalar_t*>(block.source.data) + batch * block.source.batch +
                               r * block.source.outer;
      scalar_t* target =
          static_cast<scalar_t*>(block.target.data) + batch * block.target.batch + r * block.target.outer;
      if (block.source.inner == 1 && block.target.inner == 1) {
        std::memcpy(target, source, block.inner * sizeof(scalar_t));
      } else {
        for (int64_t c = 0; c < block.inner; ++c)
          target[c * block.target.inner] = source[c * block.source.inner];
      }
    }
  }
}

// Calls body(begin, end) on ranges of tasks, a task being a fixed chunk of a sample, in parallel.
template <typename Params, typename Body>
void for_each_chunk(const Params& p, int64_t chunks, const Body& body) {
  const int64_t work = std::max<int64_t>(1, p.outer * p.inner / chunks);
  at::parallel_for(0, p.batch * chunks, std::max<int64_t>(1, kGrain / work), body);
}

// Samples that are read and written in place, each a contiguous row of one chunk.
template <size_t kCount>
bool direct_samples(const TileGrid& grid, const Operand* const (&operands)[kCount]) {
  const auto contiguous = [](const Operand* a) { return a->data == nullptr || a->inner == 1; };
  return grid.chunks() == 1 && grid.single_row() && std::all_of(operands, operands + kCount, contiguous);
}

// Samples that go through the kernel in one call: short ones spend more on a call than on arithmetic.
constexpr int64_t kMaxSamples = 64;

int64_t samples_at_once(int64_t size) {
  return std::clamp<int64_t>(kTileSize / std::max<int64_t>(size, 1), 1, kMaxSamples);
}

// Null for an operand that is not there.
template <typename scalar_t>
scalar_t* sample_start(const Operand& a, int64_t batch) {
  return a.data == nullptr ? nullptr : static_cast<scalar_t*>(a.data) + batch * a.batch;
}

template <typename scalar_t, typename opmath_t>
double forward_chunk(const AffineCouplingParams& p, const TileGrid& grid, int64_t batch, int64_t chunk,
                     ForwardFunction<scalar_t, opmath_t> run) {
  alignas(64) scalar_t x[kTileSize], raw[kTileSize], shift[kTileSize], z[kTileSize];
  alignas(64) opmath_t amplitude[kTileSize], mask[kTileSize];
  double logdet = 0;
  grid.for_each(batch, chunk, [&](const Tile& t) {
    ForwardTile<scalar_t, opmath_t> tile{};
    tile.x = load_tile<scalar_t>(p.x, t, x);
    tile.shift = load_tile<scalar_t>(p.shift, t, shift);
    if (p.raw.data) tile.raw = load_tile<scalar_t>(p.raw, t, raw);
    if (p.amplitude.data) tile.amplitude = load_tile<opmath_t>(p.amplitude, t, amplitude);
    if (p.mask.data) tile.mask = load_tile<bool>(p.mask, t, mask);
    tile.z = output_tile<scalar_t>(p.z, t, z);
    tile.size = t.size();
    tile.shift_first = p.shift_then_scale != p.inverse;
    tile.constants = p.constants;
    double total = 0;
    run(tile, ForwardStep{}, 1, &total);
    logdet += total;
    store_tile<scalar_t>(p.z, t, tile.z);
  });
  return p.inverse ? -logdet : logdet;
}

template <typename scalar_t, typename opmath_t, typename Finish>
void forward_samples(const AffineCouplingParams& p, int64_t begin, int64_t end,
                     ForwardFunction<scalar_t, opmath_t> run, const Finish& finish) {
  ForwardTile<scalar_t, opmath_t> tile{};
  tile.size = p.inner;
  tile.shift_first = p.shift_then_scale != p.inverse;
  tile.constants = p.constants;
  double totals[kMaxSamples];
  for (int64_t batch = begin, count = samples_at_once(p.inner); batch < end; batch += count) {
    count = std::min(count, end - batch);
    for (int64_t s = 0; s < count; ++s) copy_kept<scalar_t>(p.kept, batch + s);
    tile.x = sample_start<scalar_t>(p.x, batch);
    tile.raw = sample_start<scalar_t>(p.raw, batch);
    tile.shift = sample_start<scalar_t>(p.shift, batch);
    tile.z = sample_start<scalar_t>(p.z, batch);
    run(tile, {p.x.batch, p.raw.batch, p.shift.batch, p.z.batch}, count, totals);
    for (int64_t s = 0; s < count; ++s) finish(batch + s, p.inverse ? -totals[s] : totals[s]);
  }
}

template <typename scalar_t, typename opmath_t>
void run_forward(const AffineCouplingParams& p) {
  const TileGrid grid(p.outer, p.inner);
  const auto run = pick_forward<scalar_t, opmath_t>(p.scale_map, p.inverse);
  const int64_t chunks = grid.chunks();
  auto* logdet = static_cast<opmath_t*>(p.logdet);
  const auto* logdet_in = static_cast<const opmath_t*>(p.logdet_in);
  const auto finish = [&](int64_t batch, double total) {
    logdet[batch] = static_cast<opmath_t>(total + (logdet_in ? double(logdet_in[batch]) : 0.0));
  };
  const bool plain = !p.amplitude.data && !p.mask.data;
  const bool direct = plain && direct_samples(grid, {&p.x, &p.raw, &p.shift, &p.z});
  std::vector<double> partial(chunks > 1 ? p.batch * chunks : 0);
  for_each_chunk(p, chunks, [&](int64_t begin, int64_t end) {
    if (direct) return forward_samples<scalar_t, opmath_t>(p, begin, end, run, finish);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / chunks, chunk = task % chunks;
      if (chunk == 0) copy_kept<scalar_t>(p.kept, batch);
      const double total = forward_chunk<scalar_t, opmath_t>(p, grid, batch, chunk, run);
      if (chunks == 1) {
        finish(batch, total);
      } else {
        partial[task] = total;
      }
    }
  });
  for (int64_t batch = 0; chunks > 1 && batch < p.batch; ++batch) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[batch * chunks + chunk];
    finish(batch, total);
  }
}

template <typename scalar_t, typename opmath_t>
void backward_chunk(const AffineCouplingBackwardParams& p, const TileGrid& grid, int64_t batch, int64_t chunk,
                    BackwardFunction<scalar_t, opmath_t> run) {
  alignas(64) scalar_t grad_z[kTileSize], saved[kTileSize], raw[kTileSize];
  alignas(64) scalar_t grad_x[kTileSize], grad_raw[kTileSize], grad_shift[kTileSize];
  alignas(64) opmath_t amplitude[kTileSize], mask[kTileSize], grad_amplitude[kTileSize];
  const auto* grad_logdet = static_cast<const opmath_t*>(p.grad_logdet);
  grid.for_each(batch, chunk, [&](const Tile& t) {
    BackwardTile<scalar_t, opmath_t> tile{};
    tile.grad_z = load_tile<scalar_t>(p.grad_z, t, grad_z);
    tile.saved = load_tile<scalar_t>(p.saved, t, saved);
    tile.raw = load_tile<scalar_t>(p.raw, t, raw);
    if (p.amplitude.data) tile.amplitude = load_tile<opmath_t>(p.amplitude, t, amplitude);
    if (p.mask.data) tile.mask = load_tile<bool>(p.mask, t, mask);
    tile.grad_x = output_tile<scalar_t>(p.grad_x, t, grad_x);
    tile.grad_raw = output_tile<scalar_t>(p.grad_raw, t, grad_raw);
    tile.grad_shift = output_tile<scalar_t>(p.grad_shift, t, grad_shift);
    if (p.grad_amplitude.data)
      tile.grad_amplitude = output_tile<opmath_t>(p.grad_amplitude, t, grad_amplitude);
    tile.size = t.size();
    tile.grad_logdet = grad_logdet + batch * p.grad_logdet_stride;
    tile.shift_first = p.shift_then_scale != p.inverse;
    tile.constants = p.constants;
    run(tile, BackwardStep{}, 1);
    store_tile<scalar_t>(p.grad_x, t, tile.grad_x);
    store_tile<scalar_t>(p.grad_raw, t, tile.grad_raw);
    store_tile<scalar_t>(p.grad_shift, t, tile.grad_shift);
    if (p.grad_amplitude.data) store_tile<opmath_t>(p.grad_amplitude, t, tile.grad_amplitude);
  });
}

template <typename scalar_t, typename opmath_t>
void backward_samples(const AffineCouplingBackwardParams& p, int64_t begin, int64_t end,
                      BackwardFunction<scalar_t, opmath_t> run) {
  BackwardTile<scalar_t, opmath_t> tile{};
  tile.size = p.inner;
  tile.shift_first = p.shift_then_scale != p.inverse;
  tile.constants = p.constants;
  const BackwardStep step{p.grad_z.batch,   p.saved.batch,      p.raw.batch,         p.grad_x.batch,
                          p.grad_raw.batch, p.grad_shift.batch, p.grad_logdet_stride};
  for (int64_t batch = begin, count = samples_at_once(p.inner); batch < end; batch += count) {
    count = std::min(count, end - batch);
    for (int64_t s = 0; s < count; ++s) copy_kept<scalar_t>(p.kept, batch + s);
    tile.grad_z = sample_start<scalar_t>(p.grad_z, batch);
    tile.saved = sample_start<scalar_t>(p.saved, batch);
    tile.raw = sample_start<scalar_t>(p.raw, batch);
    tile.grad_x = sample_start<scalar_t>(p.grad_x, batch);
    tile.grad_raw = sample_start<scalar_t>(p.grad_raw, batch);
    tile.grad_shift = sample_start<scalar_t>(p.grad_shift, batch);
    tile.grad_logdet = static_cast<const opmath_t*>(p.grad_logdet) + batch * p.grad_logdet_stride;
    run(tile, step, count);
  }
}

template <typename scalar_t, typename opmath_t>
void run_backward(const AffineCouplingBackwardParams& p) {
  const TileGrid grid(p.outer, p.inner);
  const auto run = pick_backward<scalar_t, opmath_t>(p.scale_map, p.inverse);
  const int64_t chunks = grid.chunks();
  const bool plain = !p.amplitude.data && !p.mask.data;
  const bool direct =
      plain && direct_samples(grid, {&p.grad_z, &p.saved, &p.raw, &p.grad_x, &p.grad_raw, &p.grad_shift});
  for_each_chunk(p, chunks, [&](int64_t begin, int64_t end) {
    if (direct) return backward_samples<scalar_t, opmath_t>(p, begin, end, run);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / chunks, chunk = task % chunks;
      if (chunk == 0) copy_kept<scalar_t>(p.kept, batch);
      backward_chunk<scalar_t, opmath_t>(p, grid, batch, chunk, run);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> affine_coupling_cpu(
    const at::Tensor& x, const at::Tensor& params, const OptionalTensor& amplitude,
    const OptionalTensor& mask, const OptionalTensor& logdet, int64_t start, int64_t scale, int64_t order,
    int64_t layout, bool inverse, double gain, double limit, double floor) {
  const CouplingOptions options{start, scale, order, layout, inverse, {gain, limit, floor}};
  check_affine_coupling_inputs(x, params, amplitude, mask, logdet, options);
  const auto call = prepare_affine_coupling(x, params, amplitude, mask, logdet, options);
  FLOWOPS_DISPATCH(x.scalar_type(), kAffineCoupling, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return {call.z, call.logdet};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> affine_coupling_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& amplitude, const OptionalTensor& mask, int64_t start,
    int64_t scale, int64_t order, int64_t layout, bool inverse, double gain, double limit, double floor) {
  const CouplingOptions options{start, scale, order, layout, inverse, {gain, limit, floor}};
  check_affine_coupling_backward_inputs(grad_z, grad_logdet, saved, params, amplitude, mask, options);
  const auto call =
      prepare_affine_coupling_backward(grad_z, grad_logdet, saved, params, amplitude, mask, options);
  FLOWOPS_DISPATCH(saved.scalar_type(), kAffineCoupling, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_x, call.grad_params, reduce_grad_amplitude(call.grad_amplitude, amplitude, saved)};
}

}  // namespace flowops
