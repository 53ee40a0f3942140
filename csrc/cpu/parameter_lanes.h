// The several numbers of each element of a tile, gathered so that the lanes of vectors hold elements.
// Torch-free.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/vec_pair.h"
#include "cpu/aligned.h"
#include "cpu/row.h"
#include "cpu/sample_tasks.h"
#include "cpu/transpose.h"

namespace flowops {

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
inline int64_t common_stride(const int64_t* offsets, int count) {
  const int64_t stride = offsets[1] - offsets[0];
  int64_t gaps = 0;
  for (int i = 0; i < count; ++i) gaps |= offsets[i] - offsets[0] - i * stride;
  return gaps == 0 ? stride : -1;
}

// The parameters of a group of elements, lanes for each.
template <typename T>
class ParameterLanes {
 public:
  static constexpr int kLanes = Lanes<T>::kLanes, kBlock = kColumnBlock<T>;

  explicit ParameterLanes(int parameters)
      : parameters_(parameters),
        padded_((parameters + kBlock - 1) / kBlock * kBlock),
        rows_(size_t(kLanes) * padded_),
        values_(size_t(kLanes) * padded_) {}

  template <typename scalar_t>
  FLOWOPS_INLINE void load(const ParameterOperand& a, const int64_t* offsets) {
    const auto* data = static_cast<const scalar_t*>(a.first.data);
    if (a.step == 1) {
      load_rows(data, offsets);
    } else if (common_stride(offsets, kLanes) == 1) {
      for (int i = 0; i < parameters_; ++i) {
        load_row(data + offsets[0] + i * a.step, &values_[i * kLanes], kLanes);
      }
    } else {
      for (int i = 0; i < parameters_; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
          values_[i * kLanes + lane] = static_cast<T>(data[offsets[lane] + i * a.step]);
        }
      }
    }
  }

  // Writes what replaced the parameters of the first `count` lanes.
  template <typename scalar_t>
  FLOWOPS_INLINE void store(const ParameterOperand& a, const int64_t* offsets, int count) {
    auto* data = static_cast<scalar_t*>(a.first.data);
    if (a.step == 1) {
      store_rows(data, offsets, count);
    } else if (count == kLanes && common_stride(offsets, kLanes) == 1) {
      for (int i = 0; i < parameters_; ++i) {
        store_row(&values_[i * kLanes], data + offsets[0] + i * a.step, kLanes);
      }
    } else {
      for (int i = 0; i < parameters_; ++i) {
        for (int lane = 0; lane < count; ++lane) {
          data[offsets[lane] + i * a.step] = static_cast<scalar_t>(values_[i * kLanes + lane]);
        }
      }
    }
  }

  Lanes<T> operator()(int i) const { return Lanes<T>::load(&values_[i * kLanes]); }
  void replace(int i, Lanes<T> value) { value.store(&values_[i * kLanes]); }

  // Parameter i of the elements from `lane` on, a single vector.
  Vec<T> get(int i, int lane) const { return Vec<T>::load(&values_[i * kLanes + lane]); }
  void set(int i, int lane, Vec<T> value) { value.store(&values_[i * kLanes + lane]); }

 private:
  // The stride of rows that can be read and written by blocks of columns where they are, else -1.
  int64_t direct_stride(const int64_t* offsets) const {
    return parameters_ >= kBlock ? common_stride(offsets, kLanes) : -1;
  }

  template <typename scalar_t>
  FLOWOPS_INLINE void load_rows(const scalar_t* data, const int64_t* offsets) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      const int64_t stride = direct_stride(offsets);
      if (stride >= 0) {
        announce_next<kRead>(data + offsets[0], stride);
        return transpose_in(data + offsets[0], stride, parameters_);
      }
    }
    for (int i = 0; i < kLanes; ++i) load_row(data + offsets[i], &rows_[i * padded_], parameters_);
    transpose_in(rows_.data(), padded_, padded_);
  }

  template <typename scalar_t>
  FLOWOPS_INLINE void store_rows(scalar_t* data, const int64_t* offsets, int count) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      const int64_t stride = count == kLanes ? direct_stride(offsets) : -1;
      if (stride >= 0) {
        announce_next<kWrite>(data + offsets[0], stride);
        return transpose_out(data + offsets[0], stride, parameters_);
      }
    }
    transpose_out(rows_.data(), padded_, padded_);
    for (int i = 0; i < count; ++i) store_row(&rows_[i * padded_], data + offsets[i], parameters_);
  }

  static constexpr int kRead = 0, kWrite = 1, kLine = 64 / int(sizeof(T));

  // The rows of the next group, while this one is worked on: they may lie beyond the caches. An address
  // behind the last row does no harm.
  template <int kAccess>
  FLOWOPS_INLINE void announce_next(const T* rows, int64_t stride) const {
    const T* const next = rows + kLanes * stride;
    const bool packed = stride < parameters_ + kLine;  // then no line lies between rows
    const int64_t runs = packed ? 1 : kLanes, length = packed ? kLanes * stride : parameters_;
    for (int64_t run = 0; run < runs; ++run) {
      for (int64_t i = 0; i < length; i += kLine) __builtin_prefetch(next + run * stride + i, kAccess);
    }
  }

  FLOWOPS_INLINE void transpose_in(const T* rows, int64_t stride, int columns) {
    for_each_block(columns, [&](int first, int half) __attribute__((always_inline)) {
      Vec<T> block[kBlock];
      load_columns(rows + half * stride + first, stride, block);
      for (int i = 0; i < kBlock; ++i) block[i].store(&values_[(first + i) * kLanes + half]);
    });
  }

  FLOWOPS_INLINE void transpose_out(T* rows, int64_t stride, int columns) {
    for_each_block(columns, [&](int first, int half) __attribute__((always_inline)) {
      Vec<T> block[kBlock];
      for (int i = 0; i < kBlock; ++i) block[i] = Vec<T>::load(&values_[(first + i) * kLanes + half]);
      store_columns(block, rows + half * stride + first, stride);
    });
  }

  // The last block may overlap the one before it.
  template <typename Body>
  static FLOWOPS_INLINE void for_each_block(int columns, const Body& body) {
    for (int first = 0; first < columns; first += kBlock) {
      for (int half = 0; half < kLanes; half += kLanes / 2) body(std::min(first, columns - kBlock), half);
    }
  }

  int parameters_, padded_;
  AlignedVector<T> rows_, values_;
};

// Calls body(first, count) for the groups of a part, each of the elements that fill Lanes, or the rest.
template <typename T, typename Body>
void for_each_group(const SampleTasks::Part& part, const Body& body) {
  const int64_t size = part.samples * part.size;
  for (int64_t i = 0; i < size; i += Lanes<T>::kLanes) {
    body(i, int(std::min<int64_t>(Lanes<T>::kLanes, size - i)));
  }
}

}  // namespace flowops
