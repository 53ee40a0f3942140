#include "common/cuda.cuh"
#include "cuda/invertible_conv1x1_launch.h"

namespace flowops {
namespace {

constexpr int kThreads = 256;
// That registers must leave room for; shared memory sets the same limit.
constexpr int kBlocksPerMultiprocessor = 2;
// Positions of a tile. Its rows in shared memory are one longer, so that a column meets all banks.
constexpr int kTile = 128;
constexpr int kTileRow = kTile + 1;
constexpr int kThreadRows = kThreads / kTile;
// Output channels that one thread computes at a time.
constexpr int kOutputs = 8;
// The weight's gradient is dealt out to a square of threads, each with every 16th row and column.
constexpr int kSquare = 16;
constexpr int kSquareTerms = 3;
static_assert(kSquare * kSquare == kThreads);
// Tiles whose products are summed before the fixed-order sum over blocks.
constexpr int kMaxTiles = 32;
constexpr int kEnoughBlocks = 256;

__host__ __device__ constexpr int padded(int channels) {
  return (channels + kOutputs - 1) / kOutputs * kOutputs;
}

// Shared memory of a block: weight [in][padded out], bias [padded], two tiles [channel][kTileRow].
template <typename T>
struct Stage {
  T *weight, *bias, *first, *second;

  __device__ explicit Stage(int channels) : weight(dynamic_shared<T>()) {
    bias = weight + channels * padded(channels);
    first = bias + padded(channels);
    second = first + channels * kTileRow;
  }

  static size_t bytes(int channels) {
    return (size_t(channels + 1) * padded(channels) + size_t(2 * channels) * kTileRow) * sizeof(T);
  }
};

// Positions [first, first + kTile) of (batch, pixels).
struct TilePositions {
  int64_t sample;
  unsigned offset, pixels;
  int count;  // that exist

  template <typename Params>
  __device__ TilePositions(const Params& p, const PixelSplit& split, int64_t first)
      : sample(first / p.pixels), offset(unsigned(first - sample * p.pixels)), pixels(p.pixels) {
    const int64_t left = split.positions - first;
    count = left < kTile ? int(left) : kTile;
  }

  template <typename scalar_t>
  __device__ scalar_t* at(const Operand& a, int channel, int position) const {
    const unsigned along = (offset + position) / pixels;
    const int pixel = int(offset + position - along * pixels);
    return static_cast<scalar_t*>(a.data) + (sample + along) * a.batch + channel * int(a.outer) +
           pixel * int(a.inner);
  }
};

// Calls body(channel, position) for a tile, neighbouring threads on neighbouring elements of
// memory.
template <typename Body>
__device__ __forceinline__ void for_each_in_tile(const Operand& a, int channels, const Body& body) {
  if (a.outer == 1 && channels > 1) {
    for (int i = threadIdx.x; i < channels * kTile; i += kThreads) {
      const int position = i / channels;
      body(i - position * channels, position);
    }
  } else {
    for (int c = threadIdx.x / kTile; c < channels; c += kThreadRows) body(c, int(threadIdx.x) % kTile);
  }
}

// Positions beyond the last become zero.
template <typename scalar_t, typename T>
__device__ void load_tile(const Operand& a, int channels, const TilePositions& where, T* tile) {
  for_each_in_tile(a, channels, [&](int channel, int position) {
    tile[channel * kTileRow + position] =
        position < where.count ? static_cast<T>(*where.template at<const scalar_t>(a, channel, position))
                               : T(0);
  });
}

template <typename scalar_t, typename T>
__device__ void store_tile(const Operand& a, int channels, const TilePositions& where, const T* tile) {
  for_each_in_tile(a, channels, [&](int channel, int position) {
    if (position >= where.count) return;
    *where.template at<scalar_t>(a, channel, position) =
        static_cast<scalar_t>(tile[channel * kTileRow + position]);
  });
}

// Element (in, out) of the stage is element (out, in) of the weight, or (in, out) where not
// transposed.
template <typename T>
__device__ void load_weight(const Stage<T>& stage, int channels, const void* weight, const void* bias,
                            bool transposed) {
  const int row = padded(channels);
  for (int i = threadIdx.x; i < (channels + 1) * row; i += kThreads) {
    const int in = i / row, out = i - in * row;
    T value = 0;
    if (out < channels && in < channels) {
      const int index = transposed ? out * channels + in : in * channels + out;
      value = static_cast<const T*>(weight)[index];
    } else if (out < channels && bias) {
      value = static_cast<const T*>(bias)[out];
    }
    stage.weight[i] = value;  // the bias is the row after the last
  }
}

template <typename T>
__device__ void multiply_tile(const Stage<T>& stage, int channels, const T* source, T* target) {
  const int row = padded(channels), position = threadIdx.x % kTile;
  for (int out = threadIdx.x / kTile * kOutputs; out < channels; out += kThreadRows * kOutputs) {
    T sums[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) sums[i] = stage.bias[out + i];
    for (int in = 0; in < channels; ++in) {
      const T value = source[in * kTileRow + position];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) sums[i] += stage.weight[in * row + out + i] * value;
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      if (out + i < channels) target[(out + i) * kTileRow + position] = sums[i];
    }
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    invertible_conv1x1_kernel(const InvertibleConv1x1Params p, const PixelSplit split) {
  using T = opmath_type<scalar_t>;
  const int channels = p.channels;
  const Stage<T> stage(channels);
  load_weight(stage, channels, p.weight, p.bias, true);
  for (int tile = 0; tile < split.tiles; ++tile) {
    const int64_t first = (int64_t(blockIdx.x) * split.tiles + tile) * kTile;
    if (first >= split.positions) return;
    const TilePositions where(p, split, first);
    load_tile<scalar_t>(p.x, channels, where, stage.first);
    __syncthreads();
    multiply_tile(stage, channels, stage.first, stage.second);
    __syncthreads();
    store_tile<scalar_t>(p.z, channels, where, stage.second);
  }
}

// Sums over the positions of a tile: products of one channel of g with one of x, and one channel of
// g.
template <typename T>
struct WeightGradient {
  T sums[kSquareTerms][kSquareTerms] = {};
  T bias = 0;

  __device__ void add_products(int channels, const T* g, const T* x) {
    const int row = threadIdx.x / kSquare, column = threadIdx.x % kSquare, last = channels - 1;
    for (int position = 0; position < kTile; ++position) {
      T left[kSquareTerms], right[kSquareTerms];
#pragma unroll
      for (int i = 0; i < kSquareTerms; ++i) {
        // Beyond the last channel the last one is summed again, and not kept.
        left[i] = g[min(row + i * kSquare, last) * kTileRow + position];
        right[i] = x[min(column + i * kSquare, last) * kTileRow + position];
      }
#pragma unroll
      for (int i = 0; i < kSquareTerms; ++i) {
#pragma unroll
        for (int j = 0; j < kSquareTerms; ++j) sums[i][j] += left[i] * right[j];
      }
    }
  }

  __device__ void add_bias(int channels, const T* g) {
    if (int(threadIdx.x) >= channels) return;
    for (int position = 0; position < kTile; ++position) bias += g[threadIdx.x * kTileRow + position];
  }

  // To weight (channels, channels), then bias (channels,).
  __device__ void store(int channels, T* target) const {
    const int row = threadIdx.x / kSquare, column = threadIdx.x % kSquare;
#pragma unroll
    for (int i = 0; i < kSquareTerms; ++i) {
#pragma unroll
      for (int j = 0; j < kSquareTerms; ++j) {
        const int r = row + i * kSquare, c = column + j * kSquare;
        if (r < channels && c < channels) target[r * channels + c] = sums[i][j];
      }
    }
    if (int(threadIdx.x) < channels) target[channels * channels + threadIdx.x] = bias;
  }
};

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    invertible_conv1x1_backward_kernel(const InvertibleConv1x1BackwardParams p, const PixelSplit split,
                                       opmath_type<scalar_t>* partial) {
  using T = opmath_type<scalar_t>;
  const int channels = p.channels;
  const Stage<T> stage(channels);
  load_weight(stage, channels, p.weight, nullptr, false);
  WeightGradient<T> gradient;
  for (int tile = 0; tile < split.tiles; ++tile) {
    const int64_t first = (int64_t(blockIdx.x) * split.tiles + tile) * kTile;
    if (first >= split.positions) break;
    const TilePositions where(p, split, first);
    load_tile<scalar_t>(p.grad_z, channels, where, stage.first);
    if (p.grad_weight) load_tile<scalar_t>(p.x, channels, where, stage.second);
    __syncthreads();
    if (p.grad_weight) gradient.add_products(channels, stage.first, stage.second);
    if (p.grad_bias) gradient.add_bias(channels, stage.first);
    __syncthreads();
    if (!p.grad_x.data) continue;
    multiply_tile(stage, channels, stage.first, stage.second);
    __syncthreads();
    store_tile<scalar_t>(p.grad_x, channels, where, stage.second);
    __syncthreads();
  }
  if (p.grad_weight || p.grad_bias) {
    gradient.store(channels, partial + int64_t(blockIdx.x) * channels * (channels + 1));
  }
}

// Adds the blocks' sums in a fixed order, a warp's width of them at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    invertible_conv1x1_gradient_kernel(const InvertibleConv1x1BackwardParams p, int64_t blocks,
                                       const T* partial) {
  constexpr int kRows = kThreads / kWarpThreads;
  FLOWOPS_SHARED(double, sums, kThreads);
  const int channels = p.channels, size = channels * (channels + 1);
  const int term = blockIdx.x * kWarpThreads + threadIdx.x % kWarpThreads;
  double sum = 0;
  if (term < size) {
    for (int64_t b = threadIdx.x / kWarpThreads; b < blocks; b += kRows) sum += partial[b * size + term];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarpThreads || term >= size) return;
  for (int row = 1; row < kRows; ++row) sum += sums[row * kWarpThreads + threadIdx.x];
  const int square = channels * channels;
  if (term < square) {
    if (p.grad_weight) static_cast<T*>(p.grad_weight)[term] = static_cast<T>(sum);
  } else if (p.grad_bias) {
    static_cast<T*>(p.grad_bias)[term - square] = static_cast<T>(sum);
  }
}

template <typename scalar_t>
cudaError_t launch_backward(const InvertibleConv1x1BackwardParams& p, const PixelSplit& split, void* partial,
                            cudaStream_t stream) {
  using T = opmath_type<scalar_t>;
  T* sums = static_cast<T*>(partial);
  if (split.blocks > 0) {
    const cudaError_t error = launch(invertible_conv1x1_backward_kernel<scalar_t>, split.blocks, kThreads,
                                     Stage<T>::bytes(p.channels), stream, p, split, sums);
    if (error != cudaSuccess) return error;
  }
  if (!p.grad_weight && !p.grad_bias) return cudaSuccess;
  const int64_t size = p.channels * (p.channels + 1);
  return launch(invertible_conv1x1_gradient_kernel<T>, (size + kWarpThreads - 1) / kWarpThreads, kThreads, 0,
                stream, p, split.blocks, sums);
}

}  // namespace

PixelSplit split_pixels(int64_t batch, int64_t pixels) {
  PixelSplit split;
  split.positions = batch * pixels;
  const int64_t tiles = (split.positions + kTile - 1) / kTile;
  split.tiles = static_cast<int>(tiles / kEnoughBlocks);
  split.tiles = split.tiles < 1 ? 1 : split.tiles > kMaxTiles ? kMaxTiles : split.tiles;
  split.blocks = (tiles + split.tiles - 1) / split.tiles;
  return split;
}

cudaError_t launch_invertible_conv1x1(StorageType type, const InvertibleConv1x1Params& p,
                                      cudaStream_t stream) {
  const PixelSplit split = split_pixels(p.batch, p.pixels);
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    return launch(invertible_conv1x1_kernel<scalar_t>, split.blocks, kThreads,
                  Stage<opmath_type<scalar_t>>::bytes(p.channels), stream, p, split);
  });
}

cudaError_t launch_invertible_conv1x1_backward(StorageType type, const InvertibleConv1x1BackwardParams& p,
                                               const PixelSplit& split, void* partial, cudaStream_t stream) {
  return dispatch_storage(
      type, [&](auto zero) { return launch_backward<decltype(zero)>(p, split, partial, stream); });
}

}  // namespace flowops
