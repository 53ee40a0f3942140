// How the ops that sum over samples walk a batch, tile by tile; several small samples share a tile.
// Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/tile.h"

namespace flowops {

// How the samples of a call are cut into tasks, each a range of tiles: a chunk of one sample, or several
// whole samples. Neither cut depends on the batch or the number of threads, so neither do the sums. A second
// thread gets to work above `grain` elements.
class SampleTasks {
 public:
  template <typename Params>
  SampleTasks(const Params& p, int64_t grain)
      : batch_(p.batch),
        size_(p.outer * p.inner),
        grain_(grain),
        inner_(p.inner),
        grid_(p.outer, p.inner),
        together_(p.outer == 1 && size_ > 0 && size_ <= kTileSize / 2 ? kTileSize / size_ : 0),
        chunks_(together_ > 0 ? 1 : grid_.chunks()) {}

  bool together() const { return together_ > 0; }
  int64_t chunks() const { return chunks_; }
  int64_t count() const {
    if (size_ == 0) return 0;
    return together_ > 0 ? (batch_ + together_ - 1) / together_ : batch_ * chunks_;
  }
  int64_t grain() const {
    const int64_t work = together_ > 0 ? together_ * size_ : std::max<int64_t>(1, size_ / chunks_);
    return std::max<int64_t>(1, grain_ / work);
  }

  // A tile, the number of its first element, and the samples whose elements it holds one after another.
  struct Part {
    Tile tile;
    int64_t first, samples, sample, size;
  };

  // Calls body(part) for the tiles of a task in order.
  template <typename Body>
  void for_each_part(int64_t task, const Body& body) const {
    if (together_ > 0) {
      const int64_t sample = task * together_, samples = std::min(together_, batch_ - sample);
      body(Part{{0, sample, 0, samples, size_}, sample * size_, samples, sample, size_});
      return;
    }
    const int64_t sample = task / chunks_;
    grid_.for_each(sample, task % chunks_, [&](const Tile& t) {
      body(Part{t, sample * size_ + t.outer * inner_ + t.inner, 1, sample, t.size()});
    });
  }

  // How an operand is read at a part: samples that lie one after another are one row of all their elements.
  std::pair<Operand, Tile> place(const Operand& a, const Part& part) const {
    if (together_ == 0) return {a, part.tile};
    const int64_t stride = size_ == 1 ? a.batch : a.inner;
    if (a.batch == size_ * stride) {
      return {{a.data, 0, 0, stride}, {0, 0, part.sample * size_, 1, part.samples * size_}};
    }
    return {{a.data, 0, a.batch, a.inner}, part.tile};
  }

  template <typename scalar_t, typename T>
  const T* load(const Operand& a, const Part& part, T* buffer) const {
    if (a.data == nullptr) return nullptr;
    const auto [at, tile] = place(a, part);
    return load_tile<scalar_t>(at, tile, buffer);
  }

  template <typename scalar_t, typename T>
  T* output(const Operand& a, const Part& part, T* buffer) const {
    if (a.data == nullptr) return nullptr;
    const auto [at, tile] = place(a, part);
    return output_tile<scalar_t>(at, tile, buffer);
  }

  template <typename scalar_t, typename T>
  void store(const Operand& a, const Part& part, const T* buffer) const {
    if (a.data == nullptr) return;
    const auto [at, tile] = place(a, part);
    store_tile<scalar_t>(at, tile, buffer);
  }

  // For every element of a part the value of its sample.
  template <typename T>
  const T* spread(const T* values, const Part& part, T* buffer) const {
    for (int64_t s = 0; s < part.samples; ++s) {
      std::fill_n(buffer + s * part.size, part.size, values[part.sample + s]);
    }
    return buffer;
  }

 private:
  int64_t batch_, size_, grain_, inner_;
  TileGrid grid_;
  int64_t together_, chunks_;
};

// By as many partial sums as 128 bytes hold, for vectors of any width: each addition to a longer sum rounds
// more off.
template <typename T>
double row_sum(const T* values, int64_t size) {
  using V = Vec<T>;
  constexpr int kSums = 128 / kVectorBytes, kStep = kSums * V::kLanes;
  V sums[kSums] = {};
  int64_t i = 0;
  for (; i + kStep <= size; i += kStep) {
    for (int k = 0; k < kSums; ++k) sums[k] += V::load(values + i + k * V::kLanes);
  }
  for (int k = 0; i < size; ++k, i += V::kLanes) {
    sums[k] += V::load(values + i, std::min<int64_t>(V::kLanes, size - i));
  }
  double total = 0;
  for (const V& sum : sums) total += double(sum.sum());
  return total;
}

// What is summed over each sample: out[b] = finish(b, sum).
template <typename T, typename Finish>
class SampleSums {
 public:
  SampleSums(const SampleTasks& tasks, int64_t batch, T* out, const Finish& finish)
      : together_(tasks.together()),
        chunks_(tasks.chunks()),
        out_(out),
        finish_(finish),
        partial_(together_ ? 0 : batch * chunks_) {}

  // Adds a part of a task; sum(begin, size) is that of elements of the part.
  template <typename Sum>
  void add(int64_t task, const SampleTasks::Part& part, const Sum& sum) {
    if (!together_) {
      partial_[task] += sum(int64_t{0}, part.size);
      return;
    }
    for (int64_t s = 0; s < part.samples; ++s) {
      store(part.sample + s, sum(s * part.size, part.size));
    }
  }

  // After all tasks: the chunks of each sample in a fixed order.
  void close() {
    for (size_t first = 0; first < partial_.size(); first += chunks_) {
      double total = 0;
      for (int64_t c = 0; c < chunks_; ++c) total += partial_[first + c];
      store(static_cast<int64_t>(first) / chunks_, total);
    }
  }

 private:
  void store(int64_t sample, double sum) { out_[sample] = static_cast<T>(finish_(sample, sum)); }

  bool together_;
  int64_t chunks_;
  T* out_;
  Finish finish_;
  std::vector<double> partial_;
};

}  // namespace flowops
