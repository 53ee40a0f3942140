#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/dispatch.h"
#include "common/vec_pair.h"
#include "cpu/row.h"
#include "cpu/sample_tasks.h"
#include "cpu/transpose.h"
#include "ops/rational_quadratic_spline.h"

namespace flowops {
namespace {

// Elements to a thread: the work of one pays for many of an element-wise op.
constexpr int64_t kSplineGrain = 512;

template <typename T>
using Lanes = Pair<Vec<T>>;

// Where the rows of a part lie; those that fill up the last group are the last one again.
template <typename T>
struct RowOffsets {
  int64_t at[kTileSize + Lanes<T>::kLanes];

  void find(const SampleTasks& tasks, const Operand& a, const SampleTasks::Part& part) {
    const auto [operand, tile] = tasks.place(a, part);
    const int64_t start =
        tile.batch * operand.batch + tile.outer * operand.outer + tile.inner * operand.inner;
    for (int64_t r = 0; r < tile.rows; ++r) {
      int64_t* const row = at + r * tile.columns;
      for (int64_t c = 0; c < tile.columns; ++c) row[c] = start + r * operand.outer + c * operand.inner;
    }
    std::fill_n(at + tile.size(), Lanes<T>::kLanes, at[tile.size() - 1]);
  }
};

// The distance between neighbours where it is the same for all, else -1.
int64_t common_stride(const int64_t* offsets, int count) {
  const int64_t stride = offsets[1] - offsets[0];
  int64_t gaps = 0;
  for (int i = 0; i < count; ++i) gaps |= offsets[i] - offsets[0] - i * stride;
  return gaps == 0 ? stride : -1;
}

// The parameters of a group, lanes for each, and room for as many more.
template <typename T>
class Workspace {
 public:
  static constexpr int kLanes = Lanes<T>::kLanes, kBlock = kColumnBlock<T>;

  explicit Workspace(const SplineParams& p)
      : parameters_(p.parameters),
        padded_((p.parameters + kBlock - 1) / kBlock * kBlock),
        rows_(size_t(kLanes) * padded_),
        logits_(size_t(kLanes) * padded_),
        shares_(size_t(kLanes) * 2 * p.form.bins) {}

  template <typename scalar_t>
  void load(const SplineOperand& a, const int64_t* offsets) {
    const auto* data = static_cast<const scalar_t*>(a.first.data);
    if (a.step == 1) {
      load_rows(data, offsets);
    } else if (common_stride(offsets, kLanes) == 1) {
      for (int i = 0; i < parameters_; ++i) {
        load_row(data + offsets[0] + i * a.step, &logits_[i * kLanes], kLanes);
      }
    } else {
      for (int i = 0; i < parameters_; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
          logits_[i * kLanes + lane] = static_cast<T>(data[offsets[lane] + i * a.step]);
        }
      }
    }
  }

  // Writes what replaced the parameters of the first `count` lanes.
  template <typename scalar_t>
  void store(const SplineOperand& a, const int64_t* offsets, int count) {
    auto* data = static_cast<scalar_t*>(a.first.data);
    if (a.step == 1) {
      store_rows(data, offsets, count);
    } else if (count == kLanes && common_stride(offsets, kLanes) == 1) {
      for (int i = 0; i < parameters_; ++i) {
        store_row(&logits_[i * kLanes], data + offsets[0] + i * a.step, kLanes);
      }
    } else {
      for (int i = 0; i < parameters_; ++i) {
        for (int lane = 0; lane < count; ++lane) {
          data[offsets[lane] + i * a.step] = static_cast<scalar_t>(logits_[i * kLanes + lane]);
        }
      }
    }
  }

  Lanes<T> operator()(int i) const { return Lanes<T>::load(&logits_[i * kLanes]); }
  void replace(int i, Lanes<T> value) { value.store(&logits_[i * kLanes]); }

  struct Shares {
    T* data;
    void start(int, Lanes<T>) {}
    Lanes<T> get(int i) const { return Lanes<T>::load(data + i * kLanes); }
    void set(int i, Lanes<T> value) { value.store(data + i * kLanes); }
  };
  Shares shares() { return {shares_.data()}; }

 private:
  // The stride of rows that can be read and written by blocks of columns where they are, else -1.
  int64_t direct_stride(const int64_t* offsets) const {
    return parameters_ >= kBlock ? common_stride(offsets, kLanes) : -1;
  }

  template <typename scalar_t>
  void load_rows(const scalar_t* data, const int64_t* offsets) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      const int64_t stride = direct_stride(offsets);
      if (stride >= 0) return transpose_in(data + offsets[0], stride, parameters_);
    }
    for (int i = 0; i < kLanes; ++i) load_row(data + offsets[i], &rows_[i * padded_], parameters_);
    transpose_in(rows_.data(), padded_, padded_);
  }

  template <typename scalar_t>
  void store_rows(scalar_t* data, const int64_t* offsets, int count) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      const int64_t stride = count == kLanes ? direct_stride(offsets) : -1;
      if (stride >= 0) return transpose_out(data + offsets[0], stride, parameters_);
    }
    transpose_out(rows_.data(), padded_, padded_);
    for (int i = 0; i < count; ++i) store_row(&rows_[i * padded_], data + offsets[i], parameters_);
  }

  void transpose_in(const T* rows, int64_t stride, int columns) {
    for_each_block(columns, [&](int first, int half) {
      Vec<T> block[kBlock];
      load_columns(rows + half * stride + first, stride, block);
      for (int i = 0; i < kBlock; ++i) block[i].store(&logits_[(first + i) * kLanes + half]);
    });
  }

  void transpose_out(T* rows, int64_t stride, int columns) {
    for_each_block(columns, [&](int first, int half) {
      Vec<T> block[kBlock];
      for (int i = 0; i < kBlock; ++i) block[i] = Vec<T>::load(&logits_[(first + i) * kLanes + half]);
      store_columns(block, rows + half * stride + first, stride);
    });
  }

  // The last block may overlap the one before it.
  template <typename Body>
  static void for_each_block(int columns, const Body& body) {
    for (int first = 0; first < columns; first += kBlock) {
      for (int half = 0; half < kLanes; half += kLanes / 2) body(std::min(first, columns - kBlock), half);
    }
  }

  int parameters_, padded_;
  std::vector<T> rows_, logits_, shares_;
};

// The domains of the elements of a part.
template <typename T>
class Domains {
 public:
  explicit Domains(const SplineParams& p) : p_(p) {}

  void find(const SampleTasks& tasks, const SampleTasks::Part& part) {
    if (p_.bounds.data) offsets_.find(tasks, p_.bounds, part);
  }

  SplineDomain<Lanes<T>> get(int64_t at) const {
    if (!p_.bounds.data) {
      const auto& ends = p_.domain;
      return SplineDomain<Lanes<T>>(SplineDomain<T>(T(ends[0]), T(ends[1]), T(ends[2]), T(ends[3])));
    }
    const auto bound = [&](int i) {
      alignas(64) T values[Lanes<T>::kLanes];
      const T* data = static_cast<const T*>(p_.bounds.data) + i * p_.bounds_step;
      for (int lane = 0; lane < Lanes<T>::kLanes; ++lane) values[lane] = data[offsets_.at[at + lane]];
      return Lanes<T>::load(values);
    };
    return {bound(0), bound(1), bound(2), bound(3)};
  }

 private:
  const SplineParams& p_;
  RowOffsets<T> offsets_;
};

// Calls body(first, count) for the groups of a part, each of the elements that fill Lanes, or the rest.
template <typename T, typename Body>
void for_each_group(const SampleTasks::Part& part, const Body& body) {
  const int64_t size = part.samples * part.size;
  for (int64_t i = 0; i < size; i += Lanes<T>::kLanes) {
    body(i, int(std::min<int64_t>(Lanes<T>::kLanes, size - i)));
  }
}

// The arithmetic of a group, compiled once a type of arithmetic.
template <typename T>
[[gnu::noinline]] SplineResult<Lanes<T>> evaluate(const SplineParams& p, const SplineForm<T>& form,
                                                  const SplineDomain<Lanes<T>>& domain, const Lanes<T>& x,
                                                  Workspace<T>& work) {
  auto shares = work.shares();
  return p.inverse ? spline_inverse(x, domain, work, shares, form, form.bins)
                   : spline_transform(x, domain, work, shares, form, form.bins);
}

template <typename T>
struct Upstream {
  Lanes<T> z, logdet;
};

template <typename T>
[[gnu::noinline]] Lanes<T> evaluate_gradient(const SplineParams& p, const SplineForm<T>& form,
                                             const SplineDomain<Lanes<T>>& domain,
                                             const Upstream<T>& upstream, const Lanes<T>& x,
                                             Workspace<T>& work, Workspace<T>& gradients) {
  auto shares = work.shares();
  const auto write = [&](int i, Lanes<T> value) { gradients.replace(i, value); };
  return spline_gradient(upstream.z, upstream.logdet, x, domain, work, shares, form, form.bins, p.inverse,
                         write);
}

template <typename scalar_t, typename T>
void run_forward(const SplineForwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const SampleTasks tasks(p, kSplineGrain);
  const T* start = static_cast<const T*>(p.logdet_in);
  SampleSums sums(tasks, p.batch, static_cast<T*>(p.logdet.data),
                  [=](int64_t sample, double sum) { return start ? sum + double(start[sample]) : sum; });
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[3][kTileSize];
    Workspace<T> work(p);
    RowOffsets<T> rows;
    Domains<T> domains(p);
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        const T* x = tasks.load<scalar_t>(p.x, part, buffers[0]);
        T* z = tasks.output<scalar_t>(p.z, part, buffers[1]);
        T* logdet = p.summed ? buffers[2] : tasks.output<T>(p.logdet, part, buffers[2]);
        rows.find(tasks, p.params.first, part);
        domains.find(tasks, part);
        for_each_group<T>(part, [&](int64_t i, int count) {
          work.template load<scalar_t>(p.params, rows.at + i);
          const auto result = evaluate<T>(p, form, domains.get(i), Lanes<T>::load(x + i, count), work);
          result.value.store(z + i, count);
          result.logdet.store(logdet + i, count);
        });
        tasks.store<scalar_t>(p.z, part, z);
        if (!p.summed) return tasks.store<T>(p.logdet, part, logdet);
        sums.add(task, part, [&](int64_t at, int64_t size) { return row_sum(logdet + at, size); });
      });
    }
  });
  if (p.summed) sums.close();
}

template <typename scalar_t, typename T>
void run_backward(const SplineBackwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const SampleTasks tasks(p, kSplineGrain);
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffers[4][kTileSize];
    Workspace<T> work(p), gradients(p);
    RowOffsets<T> rows, grad_rows;
    Domains<T> domains(p);
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        const T* x = tasks.load<scalar_t>(p.x, part, buffers[0]);
        const T* grad_z = tasks.load<scalar_t>(p.grad_z, part, buffers[1]);
        const T* grad_logdet = tasks.load<T>(p.grad_logdet, part, buffers[2]);
        T* grad_x = tasks.output<scalar_t>(p.grad_x, part, buffers[3]);
        rows.find(tasks, p.params.first, part);
        grad_rows.find(tasks, p.grad_params.first, part);
        domains.find(tasks, part);
        for_each_group<T>(part, [&](int64_t i, int count) {
          const auto get = [&](const T* data) { return Lanes<T>::load(data + i, count); };
          work.template load<scalar_t>(p.params, rows.at + i);
          const Upstream<T> upstream{get(grad_z), get(grad_logdet)};
          const auto grad = evaluate_gradient<T>(p, form, domains.get(i), upstream, get(x), work, gradients);
          grad.store(grad_x + i, count);
          gradients.template store<scalar_t>(p.grad_params, grad_rows.at + i, count);
        });
        tasks.store<scalar_t>(p.grad_x, part, grad_x);
      });
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_cpu(
    const at::Tensor& x, const at::Tensor& params, const std::optional<at::Tensor>& bounds,
    const std::optional<at::Tensor>& logdet, at::ArrayRef<double> form, int64_t tails, bool exp_slope,
    bool elementwise, bool inverse) {
  const SplineOptions options{form, tails, exp_slope, inverse};
  check_spline_inputs(x, params, bounds, options);
  if (logdet) check_spline_logdet("logdet", *logdet, x, elementwise);
  const auto call = prepare_spline(x, params, bounds, logdet, options, elementwise);
  FLOWOPS_DISPATCH(x.scalar_type(), kSpline, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return {call.z, finish_spline_logdet(call)};
}

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const std::optional<at::Tensor>& bounds, at::ArrayRef<double> form,
    int64_t tails, bool exp_slope, bool inverse) {
  const SplineOptions options{form, tails, exp_slope, inverse};
  check_spline_backward_inputs(grad_z, grad_logdet, saved, params, bounds, options);
  const auto call = prepare_spline_backward(grad_z, grad_logdet, saved, params, bounds, options);
  FLOWOPS_DISPATCH(saved.scalar_type(), kSpline, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_x, call.grad_params};
}

}  // namespace flowops
