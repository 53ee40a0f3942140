#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/dispatch.h"
#include "common/vec.h"
#include "cpu/actnorm_rows.h"
#include "cpu/aligned.h"
#include "cpu/lanes.h"
#include "math/actnorm.h"
#include "ops/actnorm.h"

namespace flowops {
namespace {

// Rows that single-precision partial sums run over before they are added to double-precision ones.
constexpr int64_t kRowsPerFlush = 32;

// bias and factor of every channel, and laid out along a mixed row.
template <typename T>
struct Factors {
  std::vector<T> bias, factor;
  AlignedVector<T> row_bias, row_factor;

  Factors(const Rows& rows, const void* bias_data, const void* log_scale_data, int64_t channels, bool inverse)
      : bias(static_cast<const T*>(bias_data), static_cast<const T*>(bias_data) + channels),
        factor(static_cast<const T*>(log_scale_data), static_cast<const T*>(log_scale_data) + channels) {
    for (T& f : factor) f = actnorm_factor(f, inverse);
    if (!rows.mixed()) return;
    row_bias.resize(rows.length());
    row_factor.resize(rows.length());
    for (int64_t i = 0; i < rows.length(); ++i) {
      row_bias[i] = bias[rows.channel(i)];
      row_factor[i] = factor[rows.channel(i)];
    }
  }

  // Calls body(bias_of, factor_of): functions from an element of the tile and a loader to a vector.
  template <typename Body>
  void visit(const Rows& rows, const Tile& t, const Body& body) const {
    if (rows.mixed()) {
      const T *b = row_bias.data() + t.inner, *f = row_factor.data() + t.inner;
      body([=](int64_t i, auto load) { return load(b + i); },
           [=](int64_t i, auto load) { return load(f + i); });
    } else {
      const Vec<T> b(bias[t.outer]), f(factor[t.outer]);
      body([=](int64_t, auto) { return b; }, [=](int64_t, auto) { return f; });
    }
  }
};

template <typename scalar_t, typename T>
void run_forward(ActnormParams p) {
  const Rows rows(p, {&p.x, &p.z});
  const Factors<T> factors(rows, p.bias, p.log_scale, p.channels, p.inverse);
  at::parallel_for(0, rows.count(), rows.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T in[kTileSize], out[kTileSize];
    for (int64_t row = begin; row < end; ++row) {
      rows.for_each_tile(row, [&](const Tile& t) {
        const T* x = load_tile<scalar_t>(p.x, t, in);
        T* z = output_tile<scalar_t>(p.z, t, out);
        factors.visit(rows, t, [&](auto bias_of, auto factor_of) {
          for_each_lanes<T>(t.columns, [&](int64_t i, auto load, auto store) {
            store(z + i, actnorm_transform(load(x + i), bias_of(i, load), factor_of(i, load), p.inverse));
          });
        });
        store_tile<scalar_t>(p.z, t, z);
      });
    }
  });
  double total = 0;
  for (int64_t c = 0; c < p.channels; ++c) total += static_cast<const T*>(p.log_scale)[c];
  total *= p.inverse ? -double(p.pixels) : double(p.pixels);
  const T* logdet_in = static_cast<const T*>(p.logdet_in);
  for (int64_t b = 0; b < p.batch; ++b) {
    static_cast<T*>(p.logdet)[b] = static_cast<T>(total + (logdet_in ? double(logdet_in[b]) : 0.0));
  }
}

// The two sums of math/actnorm.h.
struct Pair {
  double sum = 0, moment = 0;
};

// The same for every channel, once or several times one after another.
struct PairSums {
  std::vector<double> sum, moment;
  explicit PairSums(int64_t size) : sum(size), moment(size) {}
};

// Writes grad_x of one tile and adds to its sums: one value a tile, or one an element where the row is mixed.
template <typename T, typename BiasOf, typename FactorOf>
void backward_tile(const T* g, const T* x, T* grad_x, int64_t size, bool inverse, BiasOf bias_of,
                   FactorOf factor_of, T* row_sum, T* row_moment, Pair& pair) {
  const Vec<T> zero(0);
  Vec<T> sum(0), moment(0);
  for_each_lanes<T>(size, [&](int64_t i, auto load, auto store) {
    const Vec<T> grad = load(g + i), bias = bias_of(i, load);
    store(grad_x + i, grad * factor_of(i, load));
    const Vec<T> product = grad * (load(x + i) + (inverse ? zero : bias));
    if (row_sum) {
      store(row_sum + i, load(row_sum + i) + grad);
      store(row_moment + i, load(row_moment + i) + product);
    } else {
      sum += grad;
      moment += product;
    }
  });
  if (row_sum) return;
  pair.sum += double(sum.sum());
  pair.moment += double(moment.sum());
}

template <typename scalar_t, typename T>
void backward_row(const ActnormBackwardParams& p, const Rows& rows, const Factors<T>& factors, int64_t row,
                  T* row_sum, T* row_moment, Pair& pair) {
  alignas(64) T g_buffer[kTileSize], x_buffer[kTileSize], out[kTileSize];
  rows.for_each_tile(row, [&](const Tile& t) {
    const T* g = load_tile<scalar_t>(p.grad_z, t, g_buffer);
    const T* x = load_tile<scalar_t>(p.x, t, x_buffer);
    T* grad_x = output_tile<scalar_t>(p.grad_x, t, out);
    factors.visit(rows, t, [&](auto bias_of, auto factor_of) {
      backward_tile(g, x, grad_x, t.columns, p.inverse, bias_of, factor_of,
                    row_sum ? row_sum + t.inner : nullptr, row_moment ? row_moment + t.inner : nullptr, pair);
    });
    store_tile<scalar_t>(p.grad_x, t, grad_x);
  });
}

// What the rows of a mixed walk add up to, element by element.
template <typename T>
struct RowSums {
  AlignedVector<T> sum, moment;
  explicit RowSums(const Rows& rows) : sum(rows.length()), moment(rows.length()) {}

  // Adds to the sums of the channels, and begins anew.
  void flush(const Rows& rows, double* channel_sum, double* channel_moment) {
    rows.add_to_channels(sum.data(), channel_sum);
    rows.add_to_channels(moment.data(), channel_moment);
    std::fill(sum.begin(), sum.end(), T(0));
    std::fill(moment.begin(), moment.end(), T(0));
  }
};

// The sums of all channels, several times one after another: of each split of a mixed walk, or of each
// sample.
template <typename scalar_t, typename T>
PairSums partial_sums(const ActnormBackwardParams& p, const Rows& rows, const Factors<T>& factors) {
  if (!rows.mixed()) {
    PairSums partial(rows.count());
    at::parallel_for(0, rows.count(), rows.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        Pair pair;
        backward_row<scalar_t, T>(p, rows, factors, row, nullptr, nullptr, pair);
        partial.sum[row] = pair.sum;
        partial.moment[row] = pair.moment;
      }
    });
    return partial;
  }
  const int64_t splits = rows.splits();
  PairSums partial(splits * p.channels);
  at::parallel_for(0, splits, 1, [&](int64_t begin, int64_t end) {
    RowSums<T> sums(rows);
    Pair unused;
    for (int64_t s = begin; s < end; ++s) {
      const auto [first, last] = split_range(rows.count(), splits, s);
      for (int64_t row = first; row < last; ++row) {
        backward_row<scalar_t, T>(p, rows, factors, row, sums.sum.data(), sums.moment.data(), unused);
        if ((row - first) % kRowsPerFlush != kRowsPerFlush - 1 && row != last - 1) continue;
        sums.flush(rows, partial.sum.data() + s * p.channels, partial.moment.data() + s * p.channels);
      }
    }
  });
  return partial;
}

template <typename scalar_t, typename T>
void run_backward(ActnormBackwardParams p) {
  const Rows rows(p, {&p.grad_z, &p.x, &p.grad_x});
  const Factors<T> factors(rows, p.bias, p.log_scale, p.channels, p.inverse);
  const auto partial = partial_sums<scalar_t, T>(p, rows, factors);
  PairSums totals(p.channels);
  for (size_t first = 0; first < partial.sum.size(); first += p.channels) {
    for (int64_t c = 0; c < p.channels; ++c) {
      totals.sum[c] += partial.sum[first + c];
      totals.moment[c] += partial.moment[first + c];
    }
  }
  double logdet = 0;
  for (int64_t b = 0; b < p.batch; ++b) logdet += static_cast<const T*>(p.grad_logdet)[b];
  for (int64_t c = 0; c < p.channels; ++c) {
    const auto grad = actnorm_parameter_gradient(totals.sum[c], totals.moment[c], logdet * double(p.pixels),
                                                 double(factors.factor[c]), p.inverse);
    static_cast<T*>(p.grad_bias)[c] = static_cast<T>(grad.bias);
    static_cast<T*>(p.grad_log_scale)[c] = static_cast<T>(grad.log_scale);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> actnorm_cpu(const at::Tensor& x, const at::Tensor& bias,
                                               const at::Tensor& log_scale, const OptionalTensor& logdet,
                                               bool inverse) {
  check_actnorm_inputs(x, bias, log_scale, logdet);
  const auto call = prepare_actnorm(x, bias, log_scale, logdet, inverse);
  FLOWOPS_DISPATCH(x.scalar_type(), kActnorm, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return {call.z, call.logdet};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> actnorm_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& x, const at::Tensor& bias,
    const at::Tensor& log_scale, bool inverse) {
  check_actnorm_backward_inputs(grad_z, grad_logdet, x, bias, log_scale);
  const auto call = prepare_actnorm_backward(grad_z, grad_logdet, x, bias, log_scale, inverse);
  FLOWOPS_DISPATCH(x.scalar_type(), kActnorm, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_x, call.grad_bias.to(bias.scalar_type()),
          call.grad_log_scale.to(log_scale.scalar_type())};
}

}  // namespace flowops
