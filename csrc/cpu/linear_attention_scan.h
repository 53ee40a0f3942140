// The scan of csrc/ops/linear_attention_params.h on the CPU.
#pragma once

#include <ATen/OpMathType.h>

#include <algorithm>
#include <memory>

#include "cpu/matrix_rows.h"
#include "cpu/small_gemm.h"
#include "ops/linear_attention_params.h"

namespace flowops {

// Rows that are multiplied with each other, the state standing for all before; as many of each operand are
// read at once, of four in a causal scan and of two in others, and their pages should fit into the first TLB.
inline constexpr int64_t kChunk = 32, kCausalChunk = 16;
template <typename T>
int64_t padded(int64_t size) {
  return (size + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
}

// c_i += sum_{j <= i} a_ij b_j. Terms with j > i are not read: 0 * NaN is NaN.
template <typename T>
void add_lower_product(int64_t rows, int64_t columns, const T* a, const T* b, int64_t b_row, T* c,
                       int64_t c_row) {
  for (int64_t i = 0; i < rows; i += kGemmRows) {
    const int64_t count = std::min<int64_t>(kGemmRows, rows - i);
    if (i > 0) {
      gemm<GemmStart::kTarget>(count, columns, i, RowMajor<T>{a + i * kChunk, kChunk}, b, b_row,
                               c + i * c_row, c_row);
    }
    for (int64_t r = i; r < i + count; ++r) {
      gemm<GemmStart::kTarget>(1, columns, r + 1 - i, RowMajor<T>{a + r * kChunk + i, kChunk}, b + i * b_row,
                               b_row, c + r * c_row, c_row);
    }
  }
}

// target = f(x), from rows of the storage type; what is left of the last vector is zero.
template <typename T, typename scalar_t, typename F>
void load_mapped(const scalar_t* x, int64_t size, T* target, const F& f) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) f(load_lanes<T>(x + j)).store(target + j);
  if (const int64_t rest = size - j; rest > 0) {
    Vec<T>(T(0)).store(target + j);
    f(load_lanes<T>(x + j, rest)).store(target + j, rest);
  }
}

// The heads and the columns of the value factor that a scan is about.
struct Part {
  int64_t first_head, heads, first_column, columns;
};

// One scan over some heads of one sequence, for some of the columns of the value factor. The heads take turns
// at each chunk, for their rows are neighbours in memory.
template <typename scalar_t>
class HeadScan {
 public:
  using T = at::opmath_type<scalar_t>;

  HeadScan(const AttentionScan& scan, int64_t max_heads, int64_t max_columns)
      : scan_(scan), rows_(scan.key.columns + scan.key.tail), width_(padded<T>(rows_)) {
    const int64_t columns = padded<T>(max_columns);
    int64_t size = 0;
    const auto reserve = [&](int64_t count) { return size += padded<T>(count), size - padded<T>(count); };
    const int64_t offsets[] = {reserve(kChunk * width_),  reserve(kChunk * width_),
                               reserve(width_ * kChunk),  reserve(kChunk * kChunk),
                               reserve(kChunk * columns), reserve(max_heads * rows_ * columns),
                               reserve(kChunk * columns), reserve(max_heads * width_),
                               reserve(kChunk),           reserve(kChunk)};
    memory_.reset(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kVectorBytes))));
    T** const parts[] = {&query_,  &key_,  &key_columns_, &scores_, &value_,
                         &states_, &sums_, &z_states_,    &tail_,   &denominator_};
    for (int i = 0; i < 10; ++i) *parts[i] = memory_.get() + offsets[i];
  }

  void run(int64_t sequence, const Part& part) {
    part_ = part, first_ = part.first_column, columns_ = part.columns, value_width_ = padded<T>(columns_);
    batch_ = scan_.offsets ? 0 : sequence;
    const int64_t begin = scan_.offsets ? scan_.offsets[sequence] : 0;
    const int64_t query_end = scan_.offsets ? scan_.offsets[sequence + 1] : scan_.query_time;
    const int64_t key_end = scan_.offsets ? scan_.offsets[sequence + 1] : scan_.key_time;
    for_each_head([&] { load_state(sequence * scan_.heads + now_.head); });
    if (scan_.causal) {
      for_each_chunk(begin, query_end, [&](int64_t count) {
        load_query(count), load_key_and_value(count);
        start_sums(count);
        add_scores(count);
        write(count);
        update_state(count);
      });
    } else {
      for_each_chunk(begin, scan_.complete ? begin : key_end, [&](int64_t count) {
        load_key_and_value(count);
        update_state(count);
      });
      for_each_chunk(begin, scan_.target.data ? query_end : begin, [&](int64_t count) {
        load_query(count);
        start_sums(count);
        write(count);
      });
    }
    for_each_head([&] { store_state(sequence * scan_.heads + now_.head); });
  }

 private:
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, std::align_val_t(kVectorBytes)); }
  };

  // A chunk of a head: the time of its first row, and how many rows there are from there.
  struct Place {
    int64_t head, time, left;
  };

  template <typename Body>
  void for_each_head(const Body& body) {
    for (int64_t i = 0; i < part_.heads; ++i) {
      now_.head = part_.first_head + i;
      state_ = states_ + i * rows_ * value_width_, z_ = z_states_ + i * width_;
      body();
    }
  }

  template <typename Body>
  void for_each_chunk(int64_t begin, int64_t end, const Body& body) {
    const auto place = [&](int64_t head, int64_t start) {
      return Place{head, scan_.reverse ? end - 1 - start : begin + start, end - begin - start};
    };
    const int64_t last = part_.first_head + part_.heads - 1;
    const int64_t chunk = scan_.causal ? kCausalChunk : kChunk;
    for (int64_t start = 0; start < end - begin; start += chunk) {
      for_each_head([&] {
        now_ = place(now_.head, start);
        next_ = now_.head < last ? place(now_.head + 1, start) : place(part_.first_head, start + chunk);
        body(std::min(chunk, now_.left));
      });
    }
  }

  // The time of row i of a chunk.
  int64_t time(const Place& place, int64_t i) const {
    return scan_.reverse ? place.time - i : place.time + i;
  }

  template <typename Element = scalar_t>
  Element* row(const AttentionRows& rows, const Place& place, int64_t i) const {
    return static_cast<Element*>(rows.data) + batch_ * rows.batch + time(place, i) * rows.time +
           place.head * rows.head;
  }

  template <typename Element = scalar_t>
  Element* row(const AttentionRows& rows, int64_t i) const {
    return row<Element>(rows, now_, i);
  }

  // Rows [begin, end) of the next chunk, a few at a time while this one is worked on: rows of one head lie
  // too far apart for the hardware to foresee them, and more at once would wait for each other.
  void announce(const AttentionRows& rows, int64_t begin, int64_t end, int64_t first, int64_t columns) const {
    if (rows.data == nullptr) return;
    constexpr int64_t kLine = 64 / sizeof(scalar_t);
    for (int64_t i = begin; i < std::min(end, next_.left); ++i) {
      const scalar_t* const next = row(rows, next_, i) + first;
      for (int64_t j = 0; j < columns; j += kLine) __builtin_prefetch(next + j);
    }
  }

  void announce(const AttentionFactor& factor, int64_t begin, int64_t end, int64_t first,
                int64_t columns) const {
    announce(factor.rows, begin, end, first, columns);
    if (factor.kind == AttentionKind::kGradient) announce(scan_.out, begin, end, 0, factor.columns);
  }

  bool left_out(const AttentionFactor& factor, int64_t i) const {
    return factor.keys && scan_.padding != nullptr &&
           scan_.padding[batch_ * scan_.padding_time + time(now_, i)];
  }

  // Elements [first, first + columns) of row i, and its tail.
  T load_row(const AttentionFactor& factor, int64_t i, int64_t first, int64_t columns, T* target) const {
    if (left_out(factor, i)) {
      std::fill_n(target, padded<T>(columns), T(0));
      return 0;
    }
    scalar_t* const source = row(factor.rows, i);
    switch (factor.kind) {
      case AttentionKind::kFeature:
        with_feature_map(scan_.map, [&](auto map) {
          constexpr FeatureMap kMap = decltype(map)::kValue;
          load_mapped(source + first, columns, target, [](Vec<T> x) { return feature<kMap>(x); });
        });
        return 1;
      case AttentionKind::kPlain:
        load_mapped(source + first, columns, target, [](Vec<T> x) { return x; });
        return 1;
      case AttentionKind::kGradient: break;
    }
    T factor_of_row = 1, tail = 0;
    if (scan_.normalize) {
      factor_of_row = 1 / (*row<T>(scan_.denominator, i) + T(scan_.eps));
      tail = -factor_of_row * dot(source, row(scan_.out, i), factor.columns);
    }
    load_mapped(source + first, columns, target, [=](Vec<T> g) { return g * Vec<T>(factor_of_row); });
    return tail;
  }

  void load_rows(const AttentionFactor& factor, int64_t count, T* target) const {
    for (int64_t i = 0; i < count; ++i) {
      if (factor.tail) Vec<T>(T(0)).store(target + i * width_ + width_ - Vec<T>::kLanes);
      const T tail = load_row(factor, i, 0, factor.columns, target + i * width_);
      if (factor.tail) target[i * width_ + factor.columns] = tail;
    }
  }

  void load_query(int64_t count) { load_rows(scan_.query, count, query_); }

  void load_key_and_value(int64_t count) {
    load_rows(scan_.key, count, key_);
    for (int64_t i = 0; i < count; ++i) {
      tail_[i] = load_row(scan_.value, i, first_, columns_, value_ + i * value_width_);
    }
  }

  // What the state gives.
  void start_sums(int64_t count) {
    std::fill_n(sums_, count * value_width_, T(0));
    gemm<GemmStart::kTarget>(count, value_width_, rows_, RowMajor<T>{query_, width_}, state_, value_width_,
                             sums_, value_width_, static_cast<const T*>(nullptr),
                             [&](int64_t begin, int64_t end) {
                               announce(scan_.query, begin, end, 0, scan_.query.columns);
                               announce(scan_.features, begin, end, first_, columns_);
                             });
    if (!wants_denominator()) return;
    for (int64_t i = 0; i < count; ++i) denominator_[i] = dot(query_ + i * width_, z_, rows_);
  }

  // What the rows of the chunk give each other.
  void add_scores(int64_t count) {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t v = 0; v < width_; v += kLanes) {
      const T* source = key_ + v;
      transpose(count, 1, &source, width_, key_columns_ + v * kChunk, kChunk);
    }
    std::fill_n(scores_, count * kChunk, T(0));
    for (int64_t i = 0; i < count; i += kLanes) {
      gemm<GemmStart::kTarget>(std::min(kLanes, count - i), i + kLanes, rows_,
                               RowMajor<T>{query_ + i * width_, width_}, key_columns_, kChunk,
                               scores_ + i * kChunk, kChunk);
    }
    add_lower_product(count, value_width_, scores_, value_, value_width_, sums_, value_width_);
    if (!wants_denominator()) return;
    for (int64_t i = 0; i < count; ++i) denominator_[i] += dot(scores_ + i * kChunk, tail_, i + 1);
  }

  void update_state(int64_t count) {
    gemm<GemmStart::kTarget>(rows_, value_width_, count, ColumnMajor<T>{key_, width_}, value_, value_width_,
                             state_, value_width_, static_cast<const T*>(nullptr),
                             [&](int64_t begin, int64_t end) {
                               const int64_t from = begin * count / rows_, to = end * count / rows_;
                               announce(scan_.key, from, to, 0, scan_.key.columns);
                               announce(scan_.value, from, to, first_, columns_);
                             });
    if (scan_.value.tail) add_rows(key_, count, width_, tail_, z_);
  }

  bool wants_denominator() const { return scan_.new_denominator.data != nullptr; }

  void write(int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      scalar_t* const target = row(scan_.target, i) + first_;
      if (left_out(scan_.query, i)) {
        std::fill_n(target, columns_, scalar_t(0));
        continue;
      }
      const T* const sums = sums_ + i * value_width_;
      if (scan_.features.data != nullptr) {
        const scalar_t* const x = row(scan_.features, i) + first_;
        with_feature_map(scan_.map, [&](auto map) {
          constexpr FeatureMap kMap = decltype(map)::kValue;
          store(sums, target, [=](Vec<T> sum, int64_t j, int64_t lanes) {
            const auto values = lanes == Vec<T>::kLanes ? load_lanes<T>(x + j) : load_lanes<T>(x + j, lanes);
            return sum * feature_gradient<kMap>(values);
          });
        });
        continue;
      }
      T factor = 1;
      if (wants_denominator()) {
        factor = 1 / (denominator_[i] + T(scan_.eps));
        if (first_ == 0) *row<T>(scan_.new_denominator, i) = denominator_[i];
      }
      store(sums, target, [=](Vec<T> sum, int64_t, int64_t) { return sum * Vec<T>(factor); });
    }
  }

  template <typename F>
  void store(const T* sums, scalar_t* target, const F& f) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    int64_t j = 0;
    for (; j + kLanes <= columns_; j += kLanes) {
      store_lanes(target + j, f(Vec<T>::load(sums + j), j, kLanes));
    }
    if (const int64_t rest = columns_ - j; rest > 0) {
      store_lanes(target + j, f(Vec<T>::load(sums + j), j, rest), rest);
    }
  }

  void load_state(int64_t place) {
    const int64_t dim = scan_.dim, value_dim = scan_.value_dim;
    const auto* kv = static_cast<const T*>(scan_.initial.kv);
    const auto* z = static_cast<const T*>(scan_.initial.z);
    std::fill_n(state_, rows_ * value_width_, T(0));
    std::fill_n(z_, width_, T(0));
    if (kv != nullptr) kv += place * dim * value_dim;
    if (z != nullptr) z += place * dim;
    if (scan_.transposed) {
      for (int64_t c = 0; c < columns_; ++c) {
        T* const column = state_ + c;
        for (int64_t r = 0; kv != nullptr && r < value_dim; ++r) {
          column[r * value_width_] = kv[(first_ + c) * value_dim + r];
        }
        if (z != nullptr) column[value_dim * value_width_] = z[first_ + c];
      }
      return;
    }
    for (int64_t r = 0; kv != nullptr && r < rows_; ++r) {
      std::copy_n(kv + r * value_dim + first_, columns_, state_ + r * value_width_);
    }
    if (z != nullptr) std::copy_n(z, rows_, z_);
  }

  void store_state(int64_t place) const {
    auto* kv = static_cast<T*>(scan_.final.kv);
    if (kv == nullptr) return;
    kv += place * scan_.dim * scan_.value_dim;
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(state_ + r * value_width_, columns_, kv + r * scan_.value_dim + first_);
    }
    if (first_ == 0) std::copy_n(z_, rows_, static_cast<T*>(scan_.final.z) + place * scan_.dim);
  }

  const AttentionScan& scan_;
  int64_t rows_, width_;  // of the state, and of rows of query and key with zeros up to whole vectors
  int64_t batch_ = 0, first_ = 0, columns_ = 0, value_width_ = 0;
  Part part_{};
  Place now_{}, next_{};
  std::unique_ptr<T, Free> memory_;
  T *query_, *key_, *key_columns_, *scores_, *value_, *states_, *sums_, *z_states_, *tail_, *denominator_;
  T *state_ = nullptr, *z_ = nullptr;  // of the head whose turn it is
};

}  // namespace flowops
