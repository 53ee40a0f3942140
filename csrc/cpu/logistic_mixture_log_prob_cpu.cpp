#include <ATen/Parallel.h>

#include <algorithm>

#include "common/dispatch.h"
#include "cpu/parameter_lanes.h"
#include "ops/logistic_mixture_log_prob.h"

namespace flowops {
namespace {

// Pixels to a thread: each has some exponentials for every component.
constexpr int64_t kMixtureGrain = 128;

// The values of the colours of a part.
template <int kColours, typename T>
struct ColourTiles {
  alignas(64) T buffers[kColours][kTileSize];
  const T* values[kColours];

  template <typename scalar_t>
  void load(const SampleTasks& tasks, const LogisticMixtureParams& p, const SampleTasks::Part& part) {
    for (int c = 0; c < kColours; ++c) {
      values[c] =
          p.bytes ? load_colour<uint8_t>(tasks, p, part, c) : load_colour<scalar_t>(tasks, p, part, c);
    }
  }

  // 2 x - (L - 1) of `count` pixels from `first` on.
  void get(int64_t first, int64_t count, T top, Vec<T> (&n)[kColours]) const {
    for (int c = 0; c < kColours; ++c) {
      const Vec<T> x = Vec<T>::load(values[c] + first, count);
      n[c] = x + x - Vec<T>(top);
    }
  }

 private:
  template <typename in_t>
  const T* load_colour(const SampleTasks& tasks, const LogisticMixtureParams& p,
                       const SampleTasks::Part& part, int c) {
    Operand colour = p.x.first;
    colour.data = static_cast<in_t*>(colour.data) + c * p.x.step;
    return tasks.load<in_t>(colour, part, buffers[c]);
  }
};

// Calls body(first, count, lane) for the vectors of a group: their first pixel, how many there are, and their
// place among the lanes.
template <typename T, typename Body>
void for_each_vector(int64_t first, int count, const Body& body) {
  for (int lane = 0; lane < count; lane += Vec<T>::kLanes) {
    body(first + lane, std::min(count - lane, Vec<T>::kLanes), lane);
  }
}

// The arithmetic of a vector of pixels, compiled once a type of arithmetic.
template <int kColours, typename T>
[[gnu::noinline]] Vec<T> log_prob_of(const Vec<T> (&n)[kColours], const ParameterLanes<T>& params, int lane,
                                     const MixtureForm<T>& form) {
  return mixture_log_prob(n, [&](int i) { return params.get(i, lane); }, form);
}

template <int kColours, typename T>
[[gnu::noinline]] void gradient_of(Vec<T> upstream, const Vec<T> (&n)[kColours],
                                   const ParameterLanes<T>& params, int lane, const MixtureForm<T>& form,
                                   ParameterLanes<T>& gradients) {
  const auto write = [&](int i, Vec<T> value) { gradients.set(i, lane, value); };
  mixture_gradient(upstream, n, [&](int i) { return params.get(i, lane); }, form, write);
}

template <int kColours, typename T>
int parameters_of(const MixtureForm<T>& form) {
  return form.components * MixtureLayout<kColours>::kParameters;
}

template <int kColours, typename scalar_t, typename T>
void run_forward(const LogisticMixtureForwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const SampleTasks tasks(p, kMixtureGrain);
  SampleSums sums(tasks, p.batch, static_cast<T*>(p.log_prob), [](int64_t, double sum) { return sum; });
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T terms[kTileSize];
    ColourTiles<kColours, T> colours;
    ParameterLanes<T> params(parameters_of<kColours>(form));
    RowOffsets<T> rows;
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        colours.template load<scalar_t>(tasks, p, part);
        rows.find(tasks, p.params.first, part);
        for_each_group<T>(part, [&](int64_t i, int count) {
          params.template load<scalar_t>(p.params, rows.at + i);
          for_each_vector<T>(i, count, [&](int64_t first, int size, int lane) {
            Vec<T> n[kColours];
            colours.get(first, size, form.top, n);
            log_prob_of(n, params, lane, form).store(terms + first, size);
          });
        });
        sums.add(task, part, [&](int64_t at, int64_t size) { return row_sum(terms + at, size); });
      });
    }
  });
  sums.close();
}

template <int kColours, typename scalar_t, typename T>
void run_backward(const LogisticMixtureBackwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const SampleTasks tasks(p, kMixtureGrain);
  const T* grad = static_cast<const T*>(p.grad);
  at::parallel_for(0, tasks.count(), tasks.grain(), [&](int64_t begin, int64_t end) {
    alignas(64) T buffer[kTileSize];
    ColourTiles<kColours, T> colours;
    ParameterLanes<T> params(parameters_of<kColours>(form)), gradients(parameters_of<kColours>(form));
    RowOffsets<T> rows, grad_rows;
    for (int64_t task = begin; task < end; ++task) {
      tasks.for_each_part(task, [&](const SampleTasks::Part& part) {
        colours.template load<scalar_t>(tasks, p, part);
        const T* upstream = tasks.spread(grad, part, buffer);
        rows.find(tasks, p.params.first, part);
        grad_rows.find(tasks, p.grad_params.first, part);
        for_each_group<T>(part, [&](int64_t i, int count) {
          params.template load<scalar_t>(p.params, rows.at + i);
          for_each_vector<T>(i, count, [&](int64_t first, int size, int lane) {
            Vec<T> n[kColours];
            colours.get(first, size, form.top, n);
            gradient_of(Vec<T>::load(upstream + first, size), n, params, lane, form, gradients);
          });
          gradients.template store<scalar_t>(p.grad_params, grad_rows.at + i, count);
        });
      });
    }
  });
}

}  // namespace

at::Tensor logistic_mixture_log_prob_cpu(const at::Tensor& x, const at::Tensor& params, int64_t levels,
                                         double min_log_scale) {
  check_logistic_mixture_inputs(x, params, levels);
  const auto call = prepare_logistic_mixture(x, params, levels, min_log_scale);
  FLOWOPS_DISPATCH(params.scalar_type(), kLogisticMixture, [&] {
    call.p.colours == 3 ? run_forward<3, scalar_t, opmath_t>(call.p)
                        : run_forward<1, scalar_t, opmath_t>(call.p);
  });
  return call.log_prob;
}

at::Tensor logistic_mixture_log_prob_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                                  const at::Tensor& params, int64_t levels,
                                                  double min_log_scale) {
  check_logistic_mixture_backward_inputs(grad, x, params, levels);
  const auto call = prepare_logistic_mixture_backward(grad, x, params, levels, min_log_scale);
  FLOWOPS_DISPATCH(params.scalar_type(), kLogisticMixture, [&] {
    call.p.colours == 3 ? run_backward<3, scalar_t, opmath_t>(call.p)
                        : run_backward<1, scalar_t, opmath_t>(call.p);
  });
  return call.grad_params;
}

}  // namespace flowops
