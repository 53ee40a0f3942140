#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/dispatch.h"
#include "common/vec_special.h"
#include "cpu/row.h"
#include "cpu/transpose.h"
#include "ops/rational_quadratic_spline.h"

namespace flowops {
namespace {

// Elements to a thread: the work of one pays for many of an element-wise op.
constexpr int64_t kGrain = 512;

int64_t offset(const Operand& a, int64_t batch, int64_t row, int64_t column) {
  return batch * a.batch + row * a.outer + column * a.inner;
}

// Up to kLanes elements in a row of the flat order (batch, outer, inner).
template <typename T>
struct Group {
  static constexpr int kLanes = Vec<T>::kLanes;
  int64_t batch[kLanes], row[kLanes], column[kLanes];
  int count = 0;
  bool same_row = false;  // one stretch of a row

  Group(const SplineParams& p, int64_t first, int64_t end)
      : count(int(std::min<int64_t>(kLanes, end - first))) {
    const int64_t elements = p.elements();
    int64_t b = first / elements, r = first % elements / p.inner, c = first % p.inner;
    for (int i = 0; i < kLanes; ++i) {
      batch[i] = b, row[i] = r, column[i] = c;
      if (i >= count - 1) continue;
      if (++c < p.inner) continue;
      c = 0;
      if (++r < p.outer) continue;
      r = 0, ++b;
    }
    same_row = batch[0] == batch[kLanes - 1] && row[0] == row[kLanes - 1] && count == kLanes;
  }

  int64_t at(const Operand& a, int lane) const { return offset(a, batch[lane], row[lane], column[lane]); }
};

template <typename scalar_t, typename T>
Vec<T> gather(const Operand& a, const Group<T>& g) {
  alignas(64) T values[Group<T>::kLanes];
  const auto* data = static_cast<const scalar_t*>(a.data);
  if (g.same_row && a.inner == 1) {
    load_row(data + g.at(a, 0), values, Group<T>::kLanes);
  } else {
    for (int i = 0; i < Group<T>::kLanes; ++i) values[i] = static_cast<T>(data[g.at(a, i)]);
  }
  return Vec<T>::load(values);
}

template <typename scalar_t, typename T>
void scatter(const Operand& a, const Group<T>& g, Vec<T> value) {
  alignas(64) T values[Group<T>::kLanes];
  value.store(values);
  auto* data = static_cast<scalar_t*>(a.data);
  if (g.same_row && a.inner == 1) return store_row(values, data + g.at(a, 0), Group<T>::kLanes);
  for (int i = 0; i < g.count; ++i) data[g.at(a, i)] = static_cast<scalar_t>(values[i]);
}

// The parameters of a group, a vector of lanes for each, and room for as many more.
template <typename T>
class Workspace {
 public:
  static constexpr int kLanes = Vec<T>::kLanes;

  explicit Workspace(const SplineParams& p)
      : parameters_(p.parameters),
        padded_((p.parameters + kLanes - 1) / kLanes * kLanes),
        rows_(size_t(kLanes) * padded_),
        logits_(size_t(kLanes) * padded_),
        shares_(size_t(kLanes) * 2 * p.form.bins) {}

  template <typename scalar_t>
  void load(const SplineOperand& a, const Group<T>& g) {
    const auto* data = static_cast<const scalar_t*>(a.first.data);
    if (a.step == 1) {
      for (int i = 0; i < kLanes; ++i) load_row(data + g.at(a.first, i), &rows_[i * padded_], parameters_);
      for (int i = 0; i < padded_; i += kLanes)
        transpose_square(&rows_[i], padded_, &logits_[i * kLanes], kLanes);
    } else if (g.same_row && a.first.inner == 1) {
      const auto* start = data + g.at(a.first, 0);
      for (int i = 0; i < parameters_; ++i) load_row(start + i * a.step, &logits_[i * kLanes], kLanes);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) {
        const auto* start = data + g.at(a.first, lane);
        for (int i = 0; i < parameters_; ++i) logits_[i * kLanes + lane] = static_cast<T>(start[i * a.step]);
      }
    }
  }

  // Writes what replaced the parameters.
  template <typename scalar_t>
  void store(const SplineOperand& a, const Group<T>& g) {
    auto* data = static_cast<scalar_t*>(a.first.data);
    if (a.step == 1) {
      for (int i = 0; i < padded_; i += kLanes)
        transpose_square(&logits_[i * kLanes], kLanes, &rows_[i], padded_);
      for (int i = 0; i < g.count; ++i) store_row(&rows_[i * padded_], data + g.at(a.first, i), parameters_);
    } else if (g.same_row && a.first.inner == 1) {
      auto* start = data + g.at(a.first, 0);
      for (int i = 0; i < parameters_; ++i) store_row(&logits_[i * kLanes], start + i * a.step, kLanes);
    } else {
      for (int lane = 0; lane < g.count; ++lane) {
        auto* start = data + g.at(a.first, lane);
        for (int i = 0; i < parameters_; ++i) {
          start[i * a.step] = static_cast<scalar_t>(logits_[i * kLanes + lane]);
        }
      }
    }
  }

  Vec<T> operator()(int i) const { return Vec<T>::load(&logits_[i * kLanes]); }
  void replace(int i, Vec<T> value) { value.store(&logits_[i * kLanes]); }

  struct Shares {
    T* data;
    void start(int, Vec<T>) {}
    Vec<T> get(int i) const { return Vec<T>::load(data + i * kLanes); }
    void set(int i, Vec<T> value) { value.store(data + i * kLanes); }
  };
  Shares shares() { return {shares_.data()}; }

 private:
  int parameters_, padded_;
  std::vector<T> rows_, logits_, shares_;
};

template <typename T>
SplineDomain<Vec<T>> domain_of(const SplineParams& p, const Group<T>& g) {
  if (!p.bounds.data) return {T(p.domain[0]), T(p.domain[1]), T(p.domain[2]), T(p.domain[3])};
  const auto bound = [&](int i) {
    Operand row = p.bounds;
    row.data = static_cast<T*>(row.data) + i * p.bounds_step;
    return gather<T>(row, g);
  };
  return {bound(0), bound(1), bound(2), bound(3)};
}

// Whole samples to a thread, so that a sum over a sample is taken in one order.
template <typename Body>
void for_each_sample_range(const SplineParams& p, const Body& body) {
  if (p.elements() == 0) return;
  at::parallel_for(0, p.batch, std::max<int64_t>(1, kGrain / p.elements()), body);
}

// The arithmetic of a group, compiled once a type of arithmetic.
template <typename T>
[[gnu::noinline]] SplineResult<Vec<T>> evaluate(const SplineParams& p, const SplineForm<T>& form,
                                                const SplineDomain<Vec<T>>& domain, const Vec<T>& x,
                                                Workspace<T>& work) {
  auto shares = work.shares();
  return p.inverse ? spline_inverse(x, domain, work, shares, form, form.bins)
                   : spline_transform(x, domain, work, shares, form, form.bins);
}

template <typename T>
struct Upstream {
  Vec<T> z, logdet;
};

template <typename T>
[[gnu::noinline]] Vec<T> evaluate_gradient(const SplineParams& p, const SplineForm<T>& form,
                                           const SplineDomain<Vec<T>>& domain, const Upstream<T>& upstream,
                                           const Vec<T>& x, Workspace<T>& work, Workspace<T>& gradients) {
  auto shares = work.shares();
  const auto write = [&](int i, Vec<T> value) { gradients.replace(i, value); };
  return spline_gradient(upstream.z, upstream.logdet, x, domain, work, shares, form, form.bins, p.inverse,
                         write);
}

template <typename scalar_t, typename T>
void run_forward(const SplineForwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const int64_t elements = p.elements();
  const auto* logdet_in = static_cast<const T*>(p.logdet_in);
  auto* sums = static_cast<T*>(p.logdet.data);
  const auto start = [&](int64_t batch) { return logdet_in ? double(logdet_in[batch]) : 0.0; };
  if (elements == 0 && p.summed) {
    for (int64_t b = 0; b < p.batch; ++b) sums[b] = static_cast<T>(start(b));
  }
  for_each_sample_range(p, [&](int64_t begin, int64_t end) {
    Workspace<T> work(p);
    double total = start(begin);
    int64_t left = elements;
    for (int64_t first = begin * elements; first < end * elements; first += Vec<T>::kLanes) {
      const Group<T> g(p, first, end * elements);
      work.template load<scalar_t>(p.params, g);
      const Vec<T> x = gather<scalar_t>(p.x, g);
      const auto domain = domain_of<T>(p, g);
      const auto result = evaluate<T>(p, form, domain, x, work);
      scatter<scalar_t>(p.z, g, result.value);
      if (!p.summed) {
        scatter<T>(p.logdet, g, result.logdet);
        continue;
      }
      alignas(64) T values[Vec<T>::kLanes];
      result.logdet.store(values);
      for (int i = 0; i < g.count; ++i) {
        total += double(values[i]);
        if (--left > 0) continue;
        const int64_t batch = g.batch[i];
        sums[batch] = static_cast<T>(total);
        left = elements;
        if (batch + 1 < end) total = start(batch + 1);
      }
    }
  });
}

template <typename scalar_t, typename T>
void run_backward(const SplineBackwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const int64_t elements = p.elements();
  for_each_sample_range(p, [&](int64_t begin, int64_t end) {
    Workspace<T> work(p), gradients(p);
    for (int64_t first = begin * elements; first < end * elements; first += Vec<T>::kLanes) {
      const Group<T> g(p, first, end * elements);
      work.template load<scalar_t>(p.params, g);
      const Upstream<T> upstream{gather<scalar_t>(p.grad_z, g), gather<T>(p.grad_logdet, g)};
      const Vec<T> x = gather<scalar_t>(p.x, g);
      const Vec<T> grad_x = evaluate_gradient<T>(p, form, domain_of<T>(p, g), upstream, x, work, gradients);
      scatter<scalar_t>(p.grad_x, g, grad_x);
      gradients.template store<scalar_t>(p.grad_params, g);
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
