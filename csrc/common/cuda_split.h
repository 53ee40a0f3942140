// How the elements of a batch of samples are dealt out to threads: the same for any GPU, so that
// sums over a sample come out the same. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "common/cuda_types.h"
#include "common/operand.h"

namespace flowops {

constexpr int kSplitThreads = 256;
// Elements of a sample that one block takes: four 16-byte vectors of floats a thread, twice over.
constexpr int kSplitChunk = 8192;
// Samples up to this size are taken by a warp or less, not by a block.
constexpr int kSplitWarpElements = 1024;
// The most elements of a sample that one thread meets.
constexpr int kSplitThreadElements = kSplitChunk / kSplitThreads;
static_assert(kSplitWarpElements / 32 <= kSplitThreadElements);

struct SampleSplit {
  int64_t batch;
  int lanes;   // threads that share a sample: a power of two up to a warp, else a block
  int chunks;  // blocks that share a sample

  int64_t blocks() const {
    const int64_t samples = kSplitThreads / lanes;
    return (batch + samples - 1) / samples * chunks;
  }
};

// For samples of at most `elements`, met `vector` at a time.
inline SampleSplit split_samples(int64_t batch, int64_t elements, int vector) {
  if (elements > kSplitWarpElements) {
    return {batch, kSplitThreads, static_cast<int>((elements + kSplitChunk - 1) / kSplitChunk)};
  }
  int lanes = 1;
  while (lanes < 32 && lanes * vector < elements) lanes *= 2;
  return {batch, lanes, 1};
}

// Whether rows of `inner` elements of `bytes` each can be met in 16-byte vectors.
inline bool takes_vectors(const Operand& a, int64_t inner, int bytes) {
  const int64_t lanes = 16 / bytes;
  return a.data == nullptr || (a.inner == 1 && inner % lanes == 0 && a.outer % lanes == 0 &&
                               a.batch % lanes == 0 && reinterpret_cast<uintptr_t>(a.data) % 16 == 0);
}

inline bool take_vectors(std::initializer_list<const Operand*> operands, int64_t inner, int bytes) {
  return std::all_of(operands.begin(), operands.end(),
                     [&](const Operand* a) { return takes_vectors(*a, inner, bytes); });
}

// `vectors` says that every operand takes 16-byte accesses.
struct VectorSplit {
  SampleSplit samples;
  bool vectors;
};

template <typename Params>
VectorSplit split_vectors(StorageType type, const Params& p, std::initializer_list<const Operand*> operands) {
  const int bytes = storage_bytes(type);
  const bool vectors = take_vectors(operands, p.inner, bytes);
  return {split_samples(p.batch, p.outer * p.inner, vectors ? 16 / bytes : 1), vectors};
}

}  // namespace flowops
