#include <ATen/Parallel.h>

#include <algorithm>

#include "common/dispatch.h"
#include "cpu/parameter_lanes.h"
#include "ops/rational_quadratic_spline.h"

namespace flowops {
namespace {

// Elements to a thread: the work of one pays for many of an element-wise op.
constexpr int64_t kSplineGrain = 512;

// The raw parameters of a group, and room for the exponentials of its bins.
template <typename T>
struct Workspace {
  ParameterLanes<T> logits;
  AlignedVector<T> exponentials;

  explicit Workspace(const SplineParams& p)
      : logits(p.parameters), exponentials(size_t(Lanes<T>::kLanes) * 2 * p.form.bins) {}

  struct Shares {
    T* data;
    void start(int, Lanes<T>) {}
    Lanes<T> get(int i) const { return Lanes<T>::load(data + i * Lanes<T>::kLanes); }
    void set(int i, Lanes<T> value) { value.store(data + i * Lanes<T>::kLanes); }
  };
  Shares shares() { return {exponentials.data()}; }
};

// The domains of the elements of a part.
template <typename T>
class Domains {
 public:
  using Domain = SplineDomain<Lanes<T>>;

  explicit Domains(const SplineParams& p)
      : p_(p), domain_(SplineDomain<T>(T(p.domain[0]), T(p.domain[1]), T(p.domain[2]), T(p.domain[3]))) {}

  void find(const SampleTasks& tasks, const SampleTasks::Part& part) {
    if (p_.bounds.data) offsets_.find(tasks, p_.bounds, part);
  }

  const Domain& get(int64_t at) {
    if (p_.bounds.data) domain_ = Domain(bound(at, 0), bound(at, 1), bound(at, 2), bound(at, 3));
    return domain_;
  }

 private:
  Lanes<T> bound(int64_t at, int i) const {
    alignas(64) T values[Lanes<T>::kLanes];
    const T* data = static_cast<const T*>(p_.bounds.data) + i * p_.bounds_step;
    for (int lane = 0; lane < Lanes<T>::kLanes; ++lane) values[lane] = data[offsets_.at[at + lane]];
    return Lanes<T>::load(values);
  }

  const SplineParams& p_;
  RowOffsets<T> offsets_;
  Domain domain_;
};

// The arithmetic of a group, compiled once a type of arithmetic.
template <typename T>
[[gnu::noinline]] SplineResult<Lanes<T>> evaluate(const SplineParams& p, const SplineForm<T>& form,
                                                  const SplineDomain<Lanes<T>>& domain, const Lanes<T>& x,
                                                  Workspace<T>& work) {
  auto shares = work.shares();
  return p.inverse ? spline_inverse(x, domain, work.logits, shares, form, form.bins)
                   : spline_transform(x, domain, work.logits, shares, form, form.bins);
}

template <typename T>
struct Upstream {
  Lanes<T> z, logdet;
};

template <typename T>
[[gnu::noinline]] Lanes<T> evaluate_gradient(const SplineParams& p, const SplineForm<T>& form,
                                             const SplineDomain<Lanes<T>>& domain,
                                             const Upstream<T>& upstream, const Lanes<T>& x,
                                             Workspace<T>& work, ParameterLanes<T>& gradients) {
  auto shares = work.shares();
  const auto write = [&](int i, Lanes<T> value) { gradients.replace(i, value); };
  return spline_gradient(upstream.z, upstream.logdet, x, domain, work.logits, shares, form, form.bins,
                         p.inverse, write);
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
          work.logits.template load<scalar_t>(p.params, rows.at + i);
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
    Workspace<T> work(p);
    ParameterLanes<T> gradients(p.parameters);
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
          work.logits.template load<scalar_t>(p.params, rows.at + i);
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
    const at::Tensor& x, const at::Tensor& params, const OptionalTensor& bounds, const OptionalTensor& logdet,
    at::ArrayRef<double> form, int64_t tails, bool exp_slope, bool elementwise, bool inverse) {
  const SplineOptions options{form, tails, exp_slope, inverse};
  check_spline_inputs(x, params, bounds, options);
  if (logdet) check_spline_logdet("logdet", *logdet, x, elementwise);
  const auto call = prepare_spline(x, params, bounds, logdet, options, elementwise);
  FLOWOPS_DISPATCH(x.scalar_type(), kSpline, [&] { run_forward<scalar_t, opmath_t>(call.p); });
  return {call.z, finish_spline_logdet(call)};
}

std::tuple<at::Tensor, at::Tensor> rational_quadratic_spline_backward_cpu(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& bounds, at::ArrayRef<double> form, int64_t tails,
    bool exp_slope, bool inverse) {
  const SplineOptions options{form, tails, exp_slope, inverse};
  check_spline_backward_inputs(grad_z, grad_logdet, saved, params, bounds, options);
  const auto call = prepare_spline_backward(grad_z, grad_logdet, saved, params, bounds, options);
  FLOWOPS_DISPATCH(saved.scalar_type(), kSpline, [&] { run_backward<scalar_t, opmath_t>(call.p); });
  return {call.grad_x, call.grad_params};
}

}  // namespace flowops
