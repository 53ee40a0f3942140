#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "common/dispatch.h"
#include "common/vec_pair.h"
#include "cpu/row.h"
#include "cpu/segments.h"
#include "cpu/transpose.h"
#include "ops/rational_quadratic_spline.h"

namespace flowops {
namespace {

// Elements to a thread: the work of one pays for many of an element-wise op.
constexpr int64_t kGrain = 512;
// Elements whose operands are gathered together.
constexpr int kTile = 512;

template <typename T>
using Lanes = Pair<Vec<T>>;

// A tile of one operand, in arithmetic type.
template <typename T>
struct Values {
  alignas(64) T data[kTile] = {};

  template <typename scalar_t>
  void gather(const Operand& a, const FlatShape& shape, int64_t first, int count) {
    const auto* source = static_cast<const scalar_t*>(a.data);
    for_each_segment(a, shape, first, count, [&](int at, int64_t offset, int length, int64_t stride) {
      if (stride == 1) return load_row(source + offset, data + at, length);
      for (int i = 0; i < length; ++i) data[at + i] = static_cast<T>(source[offset + i * stride]);
    });
  }

  template <typename scalar_t>
  void scatter(const Operand& a, const FlatShape& shape, int64_t first, int count) const {
    auto* target = static_cast<scalar_t*>(a.data);
    for_each_segment(a, shape, first, count, [&](int at, int64_t offset, int length, int64_t stride) {
      if (stride == 1) return store_row(data + at, target + offset, length);
      for (int i = 0; i < length; ++i) target[offset + i * stride] = static_cast<scalar_t>(data[at + i]);
    });
  }

  Lanes<T> get(int at) const { return Lanes<T>::load(data + at); }
  void set(int at, Lanes<T> value) { value.store(data + at); }
};

// Where the rows of a tile lie; those that fill up the last group are the last one again.
struct RowOffsets {
  int64_t at[kTile];

  void find(const Operand& a, const FlatShape& shape, int64_t first, int count) {
    for_each_segment(a, shape, first, count, [&](int start, int64_t offset, int length, int64_t stride) {
      for (int i = 0; i < length; ++i) at[start + i] = offset + i * stride;
    });
    std::fill(at + count, at + kTile, at[count - 1]);
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

// The domains of the elements of a tile.
template <typename T>
class Domains {
 public:
  explicit Domains(const SplineParams& p) : p_(p) {}

  void find(const FlatShape& shape, int64_t first, int count) {
    if (p_.bounds.data) offsets_.find(p_.bounds, shape, first, count);
  }

  SplineDomain<Lanes<T>> get(int at) const {
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
  RowOffsets offsets_;
};

// Sums over samples of values that come in the flat order.
template <typename T>
class SampleSums {
 public:
  SampleSums(const SplineForwardParams& p, int64_t batch)
      : sums_(static_cast<T*>(p.logdet.data)),
        start_(static_cast<const T*>(p.logdet_in)),
        elements_(p.elements()),
        batch_(batch),
        left_(elements_) {}

  void add(const T* values, int count) {
    for (int i = 0; i < count;) {
      const int length = int(std::min<int64_t>(left_, count - i));
      total_ += sum(values + i, length);
      i += length, left_ -= length;
      if (left_ > 0) continue;
      sums_[batch_] = static_cast<T>(total_ + (start_ ? double(start_[batch_]) : 0));
      total_ = 0, left_ = elements_, ++batch_;
    }
  }

 private:
  static double sum(const T* values, int count) {
    constexpr int kParts = 8;
    double parts[kParts] = {}, rest = 0;
    const int whole = count / kParts * kParts;
    for (int i = 0; i < whole; i += kParts) {
      for (int k = 0; k < kParts; ++k) parts[k] += double(values[i + k]);
    }
    for (int i = whole; i < count; ++i) rest += double(values[i]);
    for (const double part : parts) rest += part;
    return rest;
  }

  T* sums_;
  const T* start_;
  int64_t elements_, batch_, left_;
  double total_ = 0;
};

// The sums of samples without elements.
template <typename T>
void clear_sums(const SplineForwardParams& p) {
  const auto* start = static_cast<const T*>(p.logdet_in);
  for (int64_t b = 0; b < p.batch; ++b) static_cast<T*>(p.logdet.data)[b] = start ? start[b] : T(0);
}

// Calls body(first, count) with the tiles of samples [begin, end): whole samples, or parts of one, so that
// the threads do not change the order of its sum.
template <typename Body>
void for_each_tile(int64_t elements, int64_t begin, int64_t end, const Body& body) {
  const int64_t samples = std::max<int64_t>(1, kTile / elements);
  for (int64_t batch = begin; batch < end; batch += samples) {
    const int64_t last = std::min(batch + samples, end) * elements;
    for (int64_t first = batch * elements; first < last; first += kTile) {
      body(first, int(std::min<int64_t>(kTile, last - first)));
    }
  }
}

template <typename Body>
void for_each_sample_range(const SplineParams& p, const Body& body) {
  if (p.elements() == 0) return;
  at::parallel_for(0, p.batch, std::max<int64_t>(1, kGrain / p.elements()), body);
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
  const FlatShape shape{p.outer, p.inner};
  if (p.elements() == 0 && p.summed) clear_sums<T>(p);
  for_each_sample_range(p, [&](int64_t begin, int64_t end) {
    Workspace<T> work(p);
    Values<T> x, z, logdet;
    RowOffsets rows;
    Domains<T> domains(p);
    SampleSums<T> sums(p, begin);
    for_each_tile(p.elements(), begin, end, [&](int64_t first, int count) {
      x.template gather<scalar_t>(p.x, shape, first, count);
      rows.find(p.params.first, shape, first, count);
      domains.find(shape, first, count);
      for (int i = 0; i < count; i += Lanes<T>::kLanes) {
        work.template load<scalar_t>(p.params, rows.at + i);
        const auto result = evaluate<T>(p, form, domains.get(i), x.get(i), work);
        z.set(i, result.value), logdet.set(i, result.logdet);
      }
      z.template scatter<scalar_t>(p.z, shape, first, count);
      if (p.summed) return sums.add(logdet.data, count);
      logdet.template scatter<T>(p.logdet, shape, first, count);
    });
  });
}

template <typename scalar_t, typename T>
void run_backward(const SplineBackwardParams& p) {
  const auto form = convert_form<T>(p.form);
  const FlatShape shape{p.outer, p.inner};
  for_each_sample_range(p, [&](int64_t begin, int64_t end) {
    Workspace<T> work(p), gradients(p);
    Values<T> x, grad_z, grad_logdet, grad_x;
    RowOffsets rows, grad_rows;
    Domains<T> domains(p);
    for_each_tile(p.elements(), begin, end, [&](int64_t first, int count) {
      x.template gather<scalar_t>(p.x, shape, first, count);
      grad_z.template gather<scalar_t>(p.grad_z, shape, first, count);
      grad_logdet.template gather<T>(p.grad_logdet, shape, first, count);
      rows.find(p.params.first, shape, first, count);
      grad_rows.find(p.grad_params.first, shape, first, count);
      domains.find(shape, first, count);
      for (int i = 0; i < count; i += Lanes<T>::kLanes) {
        work.template load<scalar_t>(p.params, rows.at + i);
        const Upstream<T> upstream{grad_z.get(i), grad_logdet.get(i)};
        grad_x.set(i, evaluate_gradient<T>(p, form, domains.get(i), upstream, x.get(i), work, gradients));
        gradients.template store<scalar_t>(p.grad_params, grad_rows.at + i,
                                           std::min(count - i, Lanes<T>::kLanes));
      }
      grad_x.template scatter<scalar_t>(p.grad_x, shape, first, count);
    });
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
