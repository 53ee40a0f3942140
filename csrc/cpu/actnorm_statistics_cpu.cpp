#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/dispatch.h"
#include "cpu/actnorm_rows.h"
#include "math/actnorm.h"
#include "ops/actnorm.h"

namespace flowops {
namespace {

// Rows of a mixed walk whose deviations are taken from one common mean, while they lie in the cache.
constexpr int64_t kRowsPerBlock = 16;

using Moment = Moments<double>;

// Mean, then squared deviations from it: the tile is read twice from the L1 cache, once from memory.
template <typename T>
Moment tile_moment(const T* x, int64_t size) {
  using V = Vec<T>;
  const int64_t whole = size / V::kLanes * V::kLanes;
  V sum(0), squares(0);
  for (int64_t i = 0; i < whole; i += V::kLanes) sum += V::load(x + i);
  T rest = sum.sum();
  for (int64_t i = whole; i < size; ++i) rest += x[i];
  const T mean = rest / T(size);
  for (int64_t i = 0; i < whole; i += V::kLanes) {
    const V deviation = V::load(x + i) - V(mean);
    squares += deviation * deviation;
  }
  T total = squares.sum();
  for (int64_t i = whole; i < size; ++i) total += (x[i] - mean) * (x[i] - mean);
  return {double(size), double(mean), double(total)};
}

// Merges the rows [first, last), all of one length, into the moments of each element of a row.
template <typename scalar_t, typename T>
void add_block(const ActnormStatisticsParams& p, const Rows& rows, int64_t first, int64_t last,
               std::vector<Moment>& moments) {
  alignas(64) T buffer[kTileSize], mean[kTileSize], squares[kTileSize];
  rows.for_each_tile(first, [&](const Tile& t) {
    std::fill_n(mean, t.columns, T(0));
    std::fill_n(squares, t.columns, T(0));
    for (int64_t row = first; row < last; ++row) {
      const T* x = load_tile<scalar_t>(p.x, rows.tile(row, t.inner), buffer);
      for (int64_t i = 0; i < t.columns; ++i) mean[i] += x[i];
    }
    const T scale = T(1) / T(last - first);
    for (int64_t i = 0; i < t.columns; ++i) mean[i] *= scale;
    for (int64_t row = first; row < last; ++row) {
      const T* x = load_tile<scalar_t>(p.x, rows.tile(row, t.inner), buffer);
      for (int64_t i = 0; i < t.columns; ++i) squares[i] += (x[i] - mean[i]) * (x[i] - mean[i]);
    }
    for (int64_t i = 0; i < t.columns; ++i) {
      Moment& moment = moments[t.inner + i];
      moment = merge_moments(moment, Moment{double(last - first), double(mean[i]), double(squares[i])});
    }
  });
}

template <typename scalar_t, typename T>
std::vector<Moment> mixed_moments(const ActnormStatisticsParams& p, const Rows& rows) {
  const int64_t splits = rows.splits();
  std::vector<std::vector<Moment>> partial(splits, std::vector<Moment>(rows.length(), Moment{}));
  at::parallel_for(0, splits, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      auto [row, last] = split_range(rows.count(), splits, s);
      while (row < last) {
        int64_t next = std::min(last, row + kRowsPerBlock);
        if (next - row > 1 && rows.length(next - 1) != rows.length(row)) --next;
        add_block<scalar_t, T>(p, rows, row, next, partial[s]);
        row = next;
      }
    }
  });
  std::vector<Moment> totals(p.channels, Moment{});
  for (const auto& part : partial) {
    for (int64_t i = 0; i < rows.length(); ++i) {
      Moment& total = totals[rows.channel(i)];
      total = merge_moments(total, part[i]);
    }
  }
  return totals;
}

template <typename scalar_t, typename T>
std::vector<Moment> row_moments(const ActnormStatisticsParams& p, const Rows& rows) {
  std::vector<Moment> partial(rows.count(), Moment{}), totals(p.channels, Moment{});
  at::parallel_for(0, rows.count(), rows.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffer[kTileSize];
    for (int64_t row = begin; row < end; ++row) {
      rows.for_each_tile(row, [&](const Tile& t) {
        const T* x = load_tile<scalar_t>(p.x, t, buffer);
        partial[row] = merge_moments(partial[row], tile_moment(x, t.columns));
      });
    }
  });
  for (int64_t row = 0; row < rows.count(); ++row) {
    Moment& total = totals[row % p.channels];
    total = merge_moments(total, partial[row]);
  }
  return totals;
}

template <typename scalar_t, typename T>
void run_statistics(ActnormStatisticsParams p) {
  const Rows rows(p, {&p.x});
  const auto totals = rows.mixed() ? mixed_moments<scalar_t, T>(p, rows) : row_moments<scalar_t, T>(p, rows);
  for (int64_t c = 0; c < p.channels; ++c) {
    const Moment& m = totals[c];
    const double mean = m.count > 0 ? m.mean : std::numeric_limits<double>::quiet_NaN();
    static_cast<T*>(p.mean)[c] = static_cast<T>(mean);
    static_cast<T*>(p.std)[c] = static_cast<T>(std::sqrt(m.squares / m.count));
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> actnorm_statistics_cpu(const at::Tensor& x) {
  check_actnorm_statistics_inputs(x);
  const auto call = prepare_actnorm_statistics(x);
  FLOWOPS_DISPATCH(x.scalar_type(), kActnorm, [&] { run_statistics<scalar_t, opmath_t>(call.p); });
  return {call.mean, call.std};
}

}  // namespace flowops
