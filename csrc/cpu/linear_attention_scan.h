// The scan of csrc/ops/linear_attention_params.h on the CPU.
#pragma once

#include <ATen/OpMathType.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/matrix_rows.h"
#include "cpu/small_gemm.h"
#include "ops/linear_attention_params.h"

namespace flowops {

// Rows that are multiplied with each other, the state standing for all before.
inline constexpr int64_t kChunk = 32, kCausalChunk = 16;
template <typename T>
int64_t padded(int64_t size) {
  return (size + Vec<T>::kLanes - 1) / Vec<T>::kLanes * Vec<T>::kLanes;
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

// The rows of a chunk, for each of the heads that take turns.
template <typename T>
struct ChunkRows {
  T* data = nullptr;
  int64_t width = 0;
  T* operator()(int64_t turn, int64_t i = 0) const { return data + (turn * kChunk + i) * width; }
};

// One scan over some heads of one sequence, for some of the columns of the value factor. A chunk is read for
// all heads, whose rows are neighbours in memory, before each has its turn at the products.
template <typename scalar_t>
class HeadScan {
 public:
  using T = at::opmath_type<scalar_t>;

  // `twin`, if any, is a scan with the key and value of this one exchanged, so that its state is this one's
  // transposed: its target is made as well, of the same bits as by itself. The part must have all columns.
  HeadScan(const AttentionScan& scan, const AttentionScan* twin, int64_t max_heads, int64_t max_columns)
      : scan_(scan), twin_(twin), rows_(scan.key.columns + scan.key.tail), width_(padded<T>(rows_)) {
    const int64_t columns = padded<T>(max_columns), heads = max_heads;
    int64_t size = 0;
    std::vector<std::pair<T**, int64_t>> parts;
    const auto reserve = [&](T*& part, int64_t count) {
      parts.emplace_back(&part, size), size += padded<T>(count);
    };
    const auto reserve_rows = [&](ChunkRows<T>& part, int64_t width) {
      part.width = width, reserve(part.data, heads * kChunk * width);
    };
    for (auto* part : {&query_, &key_}) reserve_rows(*part, width_);
    for (auto* part : {&value_, &sums_}) reserve_rows(*part, columns);
    for (auto* part : {&tail_, &denominator_}) reserve_rows(*part, 1);
    reserve(states_, heads * rows_ * columns), reserve(z_states_, heads * width_);
    reserve(columns_of_rows_, std::max(width_, columns) * kChunk), reserve(scores_, kChunk * kChunk);
    if (twin != nullptr) {
      reserve_rows(twin_query_, columns), reserve_rows(twin_sums_, width_);
      reserve(twin_columns_, width_ * kChunk);
    }
    memory_ = aligned_array<T>(size);
    for (const auto& [part, offset] : parts) *part = memory_.get() + offset;
  }

  void run(int64_t sequence, const Part& part) {
    part_ = part, first_ = part.first_column, columns_ = part.columns, value_width_ = padded<T>(columns_);
    for (auto* rows : {&value_, &sums_, &twin_query_}) rows->width = value_width_;
    batch_ = scan_.offsets ? 0 : sequence;
    const int64_t begin = scan_.offsets ? scan_.offsets[sequence] : 0;
    const int64_t query_end = scan_.offsets ? scan_.offsets[sequence + 1] : scan_.query_time;
    const int64_t key_end = scan_.offsets ? scan_.offsets[sequence + 1] : scan_.key_time;
    for_each_head([&] { load_state(sequence * scan_.heads + head()); });
    if (scan_.causal) {
      for_each_chunk(begin, query_end, [&] {
        load_queries(), load_keys_and_values();
        for_each_head([&] { add_state_and_scores(), update_state(); });
        write();
      });
    } else {
      for_each_chunk(begin, scan_.complete ? begin : key_end, [&] {
        load_keys_and_values();
        for_each_head([&] { update_state(); });
      });
      for_each_chunk(begin, scan_.target.data ? query_end : begin, [&] {
        load_queries();
        for_each_head([&] { add_state(); });
        write();
      });
    }
    for_each_head([&] { store_state(sequence * scan_.heads + head()); });
  }

 private:
  int64_t head() const { return part_.first_head + turn_; }
  T* state() const { return states_ + turn_ * rows_ * value_width_; }
  T* z_state() const { return z_states_ + turn_ * width_; }

  template <typename Body>
  void for_each_head(const Body& body) {
    for (turn_ = 0; turn_ < part_.heads; ++turn_) body();
  }

  // In the order of memory.
  template <typename Body>
  void for_each_row(const Body& body) {
    for (int64_t i = 0; i < count_; ++i) for_each_head([&] { body(i); });
  }

  template <typename Body>
  void for_each_chunk(int64_t begin, int64_t end, const Body& body) {
    const int64_t chunk = scan_.causal ? kCausalChunk : kChunk;
    for (int64_t start = 0; start < end - begin; start += chunk) {
      time_ = scan_.reverse ? end - 1 - start : begin + start;
      count_ = std::min(chunk, end - begin - start);
      body();
    }
  }

  // The time of row i of the chunk.
  int64_t time(int64_t i) const { return scan_.reverse ? time_ - i : time_ + i; }

  template <typename Element = scalar_t>
  Element* row(const AttentionRows& rows, int64_t i) const {
    return static_cast<Element*>(rows.data) + batch_ * rows.batch + time(i) * rows.time + head() * rows.head;
  }

  bool left_out(const AttentionFactor& factor, int64_t i) const {
    return factor.keys && scan_.padding != nullptr && scan_.padding[batch_ * scan_.padding_time + time(i)];
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

  // The tail is one more column.
  void load_rows(const AttentionFactor& factor, const ChunkRows<T>& target) {
    for_each_row([&](int64_t i) {
      T* const row = target(turn_, i);
      if (factor.tail) Vec<T>(T(0)).store(row + target.width - Vec<T>::kLanes);
      const T tail = load_row(factor, i, 0, factor.columns, row);
      if (factor.tail) row[factor.columns] = tail;
    });
  }

  void load_queries() {
    load_rows(scan_.query, query_);
    if (twin_ == nullptr) return;
    for_each_row([&](int64_t i) { load_row(twin_->query, i, 0, columns_, twin_query_(turn_, i)); });
  }

  void load_keys_and_values() {
    load_rows(scan_.key, key_);
    for_each_row(
        [&](int64_t i) { *tail_(turn_, i) = load_row(scan_.value, i, first_, columns_, value_(turn_, i)); });
  }

  // What the state gives.
  void add_state() {
    gemm<GemmStart::kZero>(count_, value_width_, rows_, RowMajor<T>{query_(turn_), width_}, state(),
                           value_width_, sums_(turn_), value_width_);
    if (twin_ != nullptr) add_state_to_twin();
    if (!wants_denominator()) return;
    for (int64_t i = 0; i < count_; ++i) *denominator_(turn_, i) = dot(query_(turn_, i), z_state(), rows_);
  }

  // Its row i is the state times (x_i, 1), x_i being that of its query.
  void add_state_to_twin() {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    const int64_t count = padded<T>(count_);
    transpose_rows(twin_query_(turn_), value_width_);
    gemm<GemmStart::kBias>(rows_, count, columns_, RowMajor<T>{state(), value_width_}, columns_of_rows_,
                           kChunk, twin_columns_, kChunk, z_state());
    for (int64_t i = 0; i < count; i += kLanes) {
      const T* const source = twin_columns_ + i;
      transpose(rows_, 1, &source, kChunk, twin_sums_(turn_, i), width_);
    }
  }

  void transpose_rows(const T* rows, int64_t width) {
    for (int64_t v = 0; v < width; v += Vec<T>::kLanes) {
      const T* const source = rows + v;
      transpose(count_, 1, &source, width, columns_of_rows_ + v * kChunk, kChunk);
    }
  }

  // And what the rows of the chunk give each other.
  void add_state_and_scores() {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    add_state();
    if (twin_ != nullptr) add_scores_to_twin();
    transpose_rows(key_(turn_), width_);
    for (int64_t i = 0; i < count_; i += kLanes) {
      gemm<GemmStart::kZero>(std::min(kLanes, count_ - i), i + kLanes, rows_,
                             RowMajor<T>{query_(turn_, i), width_}, columns_of_rows_, kChunk,
                             scores_ + i * kChunk, kChunk);
    }
    lower_gemm(count_, value_width_, RowMajor<T>{scores_, kChunk}, value_(turn_), value_width_, sums_(turn_),
               value_width_);
    if (!wants_denominator()) return;
    for (int64_t i = 0; i < count_; ++i) {
      *denominator_(turn_, i) += dot(scores_ + i * kChunk, tail_(turn_), i + 1);
    }
  }

  // Row j of the scores is here that of its key, <(value_j, tail_j), (x_i, 1)>.
  void add_scores_to_twin() {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    for (int64_t j = 0; j < count_; j += kLanes) {
      gemm<GemmStart::kBias>(std::min(kLanes, count_ - j), padded<T>(count_) - j, columns_,
                             RowMajor<T>{value_(turn_, j), value_width_}, columns_of_rows_ + j, kChunk,
                             scores_ + j * kChunk + j, kChunk, tail_(turn_, j));
    }
    lower_gemm(count_, width_, ColumnMajor<T>{scores_, kChunk}, key_(turn_), width_, twin_sums_(turn_),
               width_);
  }

  void update_state() {
    gemm<GemmStart::kTarget>(rows_, value_width_, count_, ColumnMajor<T>{key_(turn_), width_}, value_(turn_),
                             value_width_, state(), value_width_);
    if (!scan_.value.tail) return;
    gemm<GemmStart::kTarget>(1, width_, count_, RowMajor<T>{tail_(turn_), 0}, key_(turn_), width_, z_state(),
                             width_);
  }

  bool wants_denominator() const { return scan_.new_denominator.data != nullptr; }

  void write() {
    for_each_row([&](int64_t i) { write_row(scan_, i, sums_(turn_, i), first_, columns_); });
    if (twin_ == nullptr) return;
    for_each_row([&](int64_t i) { write_row(*twin_, i, twin_sums_(turn_, i), 0, rows_); });
  }

  void write_row(const AttentionScan& scan, int64_t i, const T* sums, int64_t first, int64_t columns) const {
    scalar_t* const target = row(scan.target, i) + first;
    if (left_out(scan.query, i)) {
      std::fill_n(target, columns, scalar_t(0));
      return;
    }
    if (scan.features.data != nullptr) {
      const scalar_t* const x = row(scan.features, i) + first;
      with_feature_map(scan.map, [&](auto map) {
        constexpr FeatureMap kMap = decltype(map)::kValue;
        store(sums, columns, target, [=](Vec<T> sum, int64_t j, int64_t lanes) {
          const auto values = lanes == Vec<T>::kLanes ? load_lanes<T>(x + j) : load_lanes<T>(x + j, lanes);
          return sum * feature_gradient<kMap>(values);
        });
      });
      return;
    }
    T factor = 1;
    if (wants_denominator()) {
      factor = 1 / (*denominator_(turn_, i) + T(scan_.eps));
      if (first_ == 0) *row<T>(scan_.new_denominator, i) = *denominator_(turn_, i);
    }
    store(sums, columns, target, [=](Vec<T> sum, int64_t, int64_t) { return sum * Vec<T>(factor); });
  }

  template <typename F>
  void store(const T* sums, int64_t columns, scalar_t* target, const F& f) const {
    constexpr int64_t kLanes = Vec<T>::kLanes;
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      store_lanes(target + j, f(Vec<T>::load(sums + j), j, kLanes));
    }
    if (const int64_t rest = columns - j; rest > 0) {
      store_lanes(target + j, f(Vec<T>::load(sums + j), j, rest), rest);
    }
  }

  void load_state(int64_t place) {
    const int64_t dim = scan_.dim, value_dim = scan_.value_dim;
    const auto* kv = static_cast<const T*>(scan_.initial.kv);
    const auto* z = static_cast<const T*>(scan_.initial.z);
    std::fill_n(state(), rows_ * value_width_, T(0));
    std::fill_n(z_state(), width_, T(0));
    if (kv != nullptr) kv += place * dim * value_dim;
    if (z != nullptr) z += place * dim;
    if (scan_.transposed) {
      for (int64_t c = 0; c < columns_; ++c) {
        T* const column = state() + c;
        for (int64_t r = 0; kv != nullptr && r < value_dim; ++r) {
          column[r * value_width_] = kv[(first_ + c) * value_dim + r];
        }
        if (z != nullptr) column[value_dim * value_width_] = z[first_ + c];
      }
      return;
    }
    for (int64_t r = 0; kv != nullptr && r < rows_; ++r) {
      std::copy_n(kv + r * value_dim + first_, columns_, state() + r * value_width_);
    }
    if (z != nullptr) std::copy_n(z, rows_, z_state());
  }

  void store_state(int64_t place) const {
    auto* kv = static_cast<T*>(scan_.final.kv);
    if (kv == nullptr) return;
    kv += place * scan_.dim * scan_.value_dim;
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(state() + r * value_width_, columns_, kv + r * scan_.value_dim + first_);
    }
    if (first_ == 0) std::copy_n(z_state(), rows_, static_cast<T*>(scan_.final.z) + place * scan_.dim);
  }

  const AttentionScan& scan_;
  const AttentionScan* twin_;
  int64_t rows_, width_;  // of the state, and of rows of query and key with zeros up to whole vectors
  int64_t batch_ = 0, first_ = 0, columns_ = 0, value_width_ = 0;
  Part part_{};
  // Of the chunk: the time of its first row, and its rows. The head whose turn it is, from the first one.
  int64_t time_ = 0, count_ = 0, turn_ = 0;
  AlignedArray<T> memory_;
  ChunkRows<T> query_, key_, value_, sums_, tail_, denominator_, twin_query_, twin_sums_;
  T *states_, *z_states_, *columns_of_rows_, *scores_, *twin_columns_ = nullptr;
};

}  // namespace flowops
