// Walks the operands of actnorm row by row, so that every loop runs along contiguous memory. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/operand.h"
#include "common/vec.h"
#include "cpu/tile.h"

namespace flowops {

// Elements below which a second thread costs more than it brings.
inline constexpr int64_t kGrain = 4096;
// Partial sums of one channel: a fixed number, so that results do not depend on the number of threads.
inline constexpr int64_t kMaxSplits = 64;

// The part of [0, count) that split `index` of `splits` covers.
inline std::pair<int64_t, int64_t> split_range(int64_t count, int64_t splits, int64_t index) {
  return {count * index / splits, count * (index + 1) / splits};
}

// How all operands of a call are walked, row by row. A row is the pixels of one channel, or (`mixed`) holds
// several channels, `channel[i]` being that of element i: vectors, channels_last images, small planar images.
class Rows {
 public:
  template <typename Params>
  Rows(const Params& p, std::vector<Operand*> operands) : length_(p.pixels) {
    count_ = p.pixels == 0 ? 0 : p.batch * p.channels;
    per_batch_ = p.channels;
    if (count_ == 0) return;
    if (!p.inner_channels) {
      const bool packed =
          all(operands, [&](const Operand& a) { return a.inner == 1 && a.outer == p.pixels; });
      if (p.pixels >= kLongRow || !packed) return;
      mix(p.batch, 1, p.channels * p.pixels, [&](int64_t i) { return i / p.pixels; });
      return;
    }
    const bool packed = all(operands, [&](const Operand& a) {
      return a.inner == 1 && (a.outer == p.channels || p.pixels == 1) && a.batch == p.channels * p.pixels;
    });
    if (!packed) {
      mix(p.batch * p.pixels, p.pixels, p.channels, [](int64_t i) { return i; });
      return;
    }
    const int64_t pixels = p.batch * p.pixels;
    const int64_t together = std::min(pixels, std::max<int64_t>(1, kTileSize / p.channels));
    const int64_t rows = (pixels + together - 1) / together;
    mix(rows, rows, p.channels * together, [&](int64_t i) { return i % p.channels; });
    last_ = (pixels - (rows - 1) * together) * p.channels;
    for (Operand* a : operands) *a = {a->data, 0, length_, 1};
  }

  bool mixed() const { return !channel_.empty(); }
  int64_t count() const { return count_; }
  int64_t length() const { return length_; }
  int64_t channel(int64_t element) const { return channel_[element]; }
  int64_t length(int64_t row) const { return row == count_ - 1 && last_ > 0 ? last_ : length_; }
  int64_t elements() const { return count_ * length_; }
  // Of the rows of a mixed walk, for partial sums.
  int64_t splits() const { return std::min(kMaxSplits, (elements() + kGrain - 1) / kGrain); }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length_)); }

  // Adds the elements of a mixed row to the sums of their channels.
  template <typename T>
  void add_to_channels(const T* row, double* sums) const {
    for (int64_t i = 0; i < length_; ++i) sums[channel_[i]] += double(row[i]);
  }

  // The tile of row `row` that starts at element `start`.
  Tile tile(int64_t row, int64_t start) const {
    return {row / per_batch_, row % per_batch_, start, 1, std::min(kTileSize, length(row) - start)};
  }

  // Calls body(tile) for the tiles of row `row`.
  template <typename Body>
  void for_each_tile(int64_t row, const Body& body) const {
    for (int64_t i = 0; i < length(row); i += kTileSize) body(tile(row, i));
  }

 private:
  template <typename Test>
  static bool all(const std::vector<Operand*>& operands, const Test& test) {
    for (const Operand* a : operands) {
      if (!test(*a)) return false;
    }
    return true;
  }

  template <typename ChannelOf>
  void mix(int64_t count, int64_t per_batch, int64_t length, const ChannelOf& channel_of) {
    count_ = count, per_batch_ = per_batch, length_ = length;
    channel_.resize(length);
    for (int64_t i = 0; i < length; ++i) channel_[i] = channel_of(i);
  }

  int64_t count_, per_batch_, length_;
  int64_t last_ = 0;  // length of the last row where it is shorter, else 0
  std::vector<int64_t> channel_;
};

}  // namespace flowops
