// A thread's part of a ChannelSplit, and reductions to one value a channel in a fixed order.
#pragma once

#include "common/cuda.cuh"
#include "cuda/actnorm_launch.h"

namespace flowops {

constexpr int kChannelThreads = 256;
// Positions that one thread takes of a channel.
constexpr int kChannelPositions = 32;

struct ChannelShare {
  int channel, column, row, split;
  bool active;
  int64_t first;  // position that the block begins at

  __device__ explicit ChannelShare(const ChannelSplit& s)
      : channel(blockIdx.x % s.column_blocks * s.width + threadIdx.x % s.width),
        column(threadIdx.x % s.width),
        row(threadIdx.x / s.width),
        split(blockIdx.x / s.column_blocks),
        active(row < s.height && channel < s.channels),
        first(int64_t(split) * s.height * kChannelPositions) {}
};

// Calls body(step, sample, pixel) for the positions of this thread, steps begin to end of
// kChannelPositions.
template <typename Body>
__device__ __forceinline__ void for_each_position(const ChannelSplit& s, const ChannelShare& share,
                                                  int64_t pixels, int begin, int end, const Body& body) {
  const int64_t sample = share.first / pixels;
  const unsigned start = unsigned(share.first - sample * pixels) + share.row, run = unsigned(pixels);
  for (int step = begin; step < end; ++step) {
    const unsigned offset = unsigned(step) * s.height;
    if (share.first + share.row + offset >= s.positions) return;
    const unsigned along = (start + offset) / run;
    body(step, sample + along, int(start + offset - along * run));
  }
}

// The element of a channel and pixel of one sample.
template <typename T>
__device__ __forceinline__ T* channel_element(const Operand& a, bool inner_channels, int64_t sample,
                                              int channel, int pixel) {
  const int row = inner_channels ? pixel : channel, column = inner_channels ? channel : pixel;
  return static_cast<T*>(a.data) + sample * a.batch + row * int(a.outer) + column * int(a.inner);
}

// Merges the values of the threads that share a channel; the result is right in row 0.
template <typename Value, typename Merge>
__device__ Value reduce_rows(const ChannelSplit& s, const ChannelShare& share, Value value,
                             const Merge& merge) {
  FLOWOPS_SHARED(Value, slots, kChannelThreads);
  slots[threadIdx.x] = value;
  int half = 1;
  while (2 * half < s.height) half *= 2;
  for (; half > 0; half /= 2) {
    __syncthreads();
    if (share.row < half && share.row + half < s.height) {
      value = merge(value, slots[threadIdx.x + half * s.width]);
      slots[threadIdx.x] = value;
    }
  }
  return value;
}

inline int64_t channel_blocks(const ChannelSplit& s) { return int64_t{s.splits} * s.column_blocks; }

// The second stage gives every channel a warp.
constexpr int kChannelsPerBlock = kChannelThreads / kWarpThreads;

inline unsigned second_stage_blocks(const ChannelSplit& s) {
  return (s.channels + kChannelsPerBlock - 1) / kChannelsPerBlock;
}

}  // namespace flowops
