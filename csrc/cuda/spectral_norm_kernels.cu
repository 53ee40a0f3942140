#include <algorithm>

#include "common/cuda.cuh"
#include "cuda/spectral_norm_launch.h"
#include "math/spectral_norm.h"

namespace flowops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
static_assert(kSpectralChunkColumns == kWarpThreads && kSpectralTileRows <= kWarpThreads);

// As many layers as one launch can take by value. first[i] is the first block of layer i: a block is a tile
// of rows, or in the kernel that adds up columns a chunk of those.
template <typename Entry>
struct LayerTable {
  static constexpr int kLayers = (kMaxArgumentBytes - 64) / (sizeof(Entry) + 2 * sizeof(int));
  Entry entries[kLayers];
  int first_tile[kLayers], first_chunk[kLayers];
  int count = 0;
};

// The layer of this block and the block's place in it.
struct BlockPlace {
  int layer = 0, index;

  __device__ BlockPlace(const int* first, int count) {
    while (layer + 1 < count && int(blockIdx.x) >= first[layer + 1]) ++layer;
    index = blockIdx.x - first[layer];
  }
};

// The scratch memory of one layer.
template <typename T>
struct Scratch {
  double *tile_sums, *chunk_sums;
  T *product, *sums, *partial;

  __device__ Scratch(double* memory, int rows, int columns)
      : tile_sums(memory),
        chunk_sums(tile_sums + spectral_tiles(rows)),
        product(reinterpret_cast<T*>(chunk_sums + 2 * spectral_chunks(columns))),
        sums(product + rows),
        partial(sums + columns) {}
};

// Calls body(column, lanes...) for the columns that this lane of a warp, or thread of a block, takes of a
// row: `kLanes` at a time in one 16-byte access where the matrix allows it, else one.
template <typename scalar_t>
__device__ __forceinline__ bool takes_vectors(const void* matrix, int columns) {
  return columns % Vector<scalar_t>::kSize == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
}

template <int kLanes, typename T, typename scalar_t>
__device__ __forceinline__ void load_values(const scalar_t* source, T (&values)[kLanes]) {
  if constexpr (kLanes == 1) {
    values[0] = static_cast<T>(*source);
  } else {
    const auto vector = load_vector(source);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) values[i] = static_cast<T>(vector.lanes[i]);
  }
}

template <int kLanes, typename T, typename scalar_t>
__device__ __forceinline__ void store_values(scalar_t* target, const T (&values)[kLanes]) {
  if constexpr (kLanes == 1) {
    *target = static_cast<scalar_t>(values[0]);
  } else {
    Vector<scalar_t> vector;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) vector.lanes[i] = static_cast<scalar_t>(values[i]);
    store_vector(target, vector);
  }
}

// The sum of `count` values in every thread of the block, added in the same order each time.
__device__ __forceinline__ double sum_values(const double* values, int count, int step) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += values[i * step];
  return block_sum<kThreads>(sum);
}

// products[r] = <row r, x> for the rows of a tile, a warp a row.
template <int kLanes, typename T, typename scalar_t>
__device__ void multiply_tile(const scalar_t* tile, int rows, int columns, const T* x, T* products) {
  const int lane = threadIdx.x % kWarpThreads;
  for (int r = threadIdx.x / kWarpThreads; r < rows; r += kWarps) {
    T sum = 0;
    for (int j = lane * kLanes; j < columns; j += kWarpThreads * kLanes) {
      T values[kLanes];
      load_values(tile + int64_t(r) * columns + j, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) sum += values[i] * x[j + i];
    }
    sum = warp_sum(sum);
    if (lane == 0) products[r] = sum;
  }
}

// sums[j] = the sum over the tile's rows of factors[r] times element j.
template <int kLanes, typename T, typename scalar_t>
__device__ void add_tile(const scalar_t* tile, int rows, int columns, const T* factors, T* sums) {
  for (int j = threadIdx.x * kLanes; j < columns; j += kThreads * kLanes) {
    T total[kLanes] = {};
    for (int r = 0; r < rows; ++r) {
      T values[kLanes];
      load_values(tile + int64_t(r) * columns + j, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) total[i] += factors[r] * values[i];
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sums[j + i] = total[i];
  }
}

// W v of a tile, and with `transposed` the tile's part of W^T W v, its rows read from the cache. Every tile
// leaves its part of |W v|^2, without `transposed` of u^T W v.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_tile_kernel(const __grid_constant__ LayerTable<SpectralNormEntry> table, bool transposed) {
  using T = opmath_type<scalar_t>;
  constexpr int kLanes = Vector<scalar_t>::kSize;
  FLOWOPS_SHARED(T, products, kSpectralTileRows);
  const BlockPlace place(table.first_tile, table.count);
  const SpectralNormLayer& layer = table.entries[place.layer].layer;
  const int columns = int(layer.columns), first = place.index * kSpectralTileRows;
  const int rows = min(kSpectralTileRows, int(layer.rows) - first);
  const Scratch<T> scratch(table.entries[place.layer].scratch, int(layer.rows), columns);
  const auto* tile = static_cast<const scalar_t*>(layer.weight) + int64_t(first) * columns;
  const T* v = static_cast<const T*>(layer.v);
  const bool vectors = takes_vectors<scalar_t>(tile, columns);
  if (vectors) {
    multiply_tile<kLanes>(tile, rows, columns, v, products);
  } else {
    multiply_tile<1>(tile, rows, columns, v, products);
  }
  __syncthreads();
  if (threadIdx.x < kWarpThreads) {
    double term = 0;
    if (int(threadIdx.x) < rows) {
      const T product = products[threadIdx.x];
      scratch.product[first + threadIdx.x] = product;
      term = double(product) * double(transposed ? product : static_cast<const T*>(layer.u)[first + threadIdx.x]);
    }
    term = warp_sum(term);
    if (threadIdx.x == 0) scratch.tile_sums[place.index] = term;
  }
  if (!transposed) return;
  T* partial = scratch.partial + int64_t(place.index) * columns;
  if (vectors) {
    add_tile<kLanes>(tile, rows, columns, products, partial);
  } else {
    add_tile<1>(tile, rows, columns, products, partial);
  }
}

// The new u, and a chunk of W^T u: the parts of the tiles added up or, where W v gave no direction, summed
// anew with the u that stays. Every chunk leaves its part of |W^T u|^2 and of v^T W^T u.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_chunk_kernel(const __grid_constant__ LayerTable<SpectralNormEntry> table, double eps) {
  using T = opmath_type<scalar_t>;
  FLOWOPS_SHARED(T, shared, kWarps * kSpectralChunkColumns);
  const BlockPlace place(table.first_chunk, table.count);
  const SpectralNormLayer& layer = table.entries[place.layer].layer;
  const int rows = int(layer.rows), columns = int(layer.columns), tiles = int(spectral_tiles(rows));
  const Scratch<T> scratch(table.entries[place.layer].scratch, rows, columns);
  const double norm = sqrt(sum_values(scratch.tile_sums, tiles, 1));
  const bool moves = gives_direction(norm, eps);
  const int lane = threadIdx.x % kWarpThreads, group = threadIdx.x / kWarpThreads;
  const int column = place.index * kSpectralChunkColumns + lane;
  const T* u = static_cast<const T*>(layer.u);
  T* new_u = static_cast<T*>(layer.new_u);
  T sum = 0;
  if (column < columns && moves) {
    for (int i = group; i < tiles; i += kWarps) sum += scratch.partial[int64_t(i) * columns + column];
  } else if (column < columns) {
    const auto* weight = static_cast<const scalar_t*>(layer.weight);
    for (int r = group; r < rows; r += kWarps) {
      sum += u[r] * static_cast<T>(weight[int64_t(r) * columns + column]);
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0) {
    for (int i = 1; i < kWarps; ++i) sum += shared[i * kWarpThreads + lane];
    if (moves) sum = static_cast<T>(sum / norm);
    if (column < columns) scratch.sums[column] = sum;
    const double squares = warp_sum(double(sum) * double(sum));
    const double along = warp_sum(column < columns ? double(sum) * double(static_cast<const T*>(layer.v)[column]) : 0.0);
    if (lane == 0) {
      scratch.chunk_sums[2 * place.index] = squares;
      scratch.chunk_sums[2 * place.index + 1] = along;
    }
  }
  // In place after the first iteration: then a u that stays is not written while other chunks read it.
  if (!moves && new_u == u) return;
  const int chunks = int(spectral_chunks(columns));
  for (int r = place.index * kThreads + threadIdx.x; r < rows; r += chunks * kThreads) {
    new_u[r] = moves ? static_cast<T>(scratch.product[r] / norm) : u[r];
  }
}

template <int kLanes, typename T, typename scalar_t>
__device__ void scale_tile(const scalar_t* tile, int rows, int columns, T factor, scalar_t* target) {
  for (int r = threadIdx.x / kWarpThreads; r < rows; r += kWarps) {
    const int64_t row = int64_t(r) * columns;
    for (int j = threadIdx.x % kWarpThreads * kLanes; j < columns; j += kWarpThreads * kLanes) {
      T values[kLanes];
      load_values(tile + row + j, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] *= factor;
      store_values(target + row + j, values);
    }
  }
}

// The new v and, after the last iteration, sigma and the result, a tile of rows a block. Without an iteration
// both vectors are copied.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_scale_kernel(const __grid_constant__ LayerTable<SpectralNormEntry> table,
                               const SpectralNormSettings settings, bool last) {
  using T = opmath_type<scalar_t>;
  constexpr int kLanes = Vector<scalar_t>::kSize;
  const BlockPlace place(table.first_tile, table.count);
  const SpectralNormLayer& layer = table.entries[place.layer].layer;
  const int rows = int(layer.rows), columns = int(layer.columns);
  const int tiles = int(spectral_tiles(rows)), chunks = int(spectral_chunks(columns));
  const Scratch<T> scratch(table.entries[place.layer].scratch, rows, columns);
  const int begin = place.index * kThreads + threadIdx.x, step = tiles * kThreads;
  double sigma, norm = 0;
  bool moves = false;
  if (settings.iterations == 0) {
    sigma = sum_values(scratch.tile_sums, tiles, 1);
    for (int r = begin; r < rows; r += step) {
      static_cast<T*>(layer.new_u)[r] = static_cast<const T*>(layer.u)[r];
    }
  } else {
    norm = sqrt(sum_values(scratch.chunk_sums, chunks, 2));
    moves = gives_direction(norm, settings.eps);
    const double along = sum_values(scratch.chunk_sums + 1, chunks, 2);
    sigma = moves ? norm : along;
  }
  for (int j = begin; j < columns; j += step) {
    static_cast<T*>(layer.new_v)[j] =
        moves ? static_cast<T>(scratch.sums[j] / norm) : static_cast<const T*>(layer.v)[j];
  }
  if (!last) return;
  if (begin == 0) *static_cast<T*>(layer.sigma) = static_cast<T>(sigma);
  const T factor = static_cast<T>(spectral_scale(sigma, settings.coefficient).factor);
  const int first = place.index * kSpectralTileRows, count = min(kSpectralTileRows, rows - first);
  const auto* tile = static_cast<const scalar_t*>(layer.weight) + int64_t(first) * columns;
  auto* target = static_cast<scalar_t*>(layer.result) + int64_t(first) * columns;
  if (takes_vectors<scalar_t>(tile, columns) && takes_vectors<scalar_t>(target, columns)) {
    scale_tile<kLanes>(tile, count, columns, factor, target);
  } else {
    scale_tile<1>(tile, count, columns, factor, target);
  }
}

template <int kLanes, typename T, typename scalar_t>
__device__ T tile_product(const scalar_t* a, const scalar_t* b, int64_t size) {
  T sum = 0;
  for (int64_t i = threadIdx.x * kLanes; i < size; i += kThreads * kLanes) {
    T x[kLanes], y[kLanes];
    load_values(a + i, x);
    load_values(b + i, y);
#pragma unroll
    for (int k = 0; k < kLanes; ++k) sum += x[k] * y[k];
  }
  return sum;
}

// A tile's part of <g, W>.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_product_kernel(const __grid_constant__ LayerTable<SpectralNormBackwardEntry> table) {
  using T = opmath_type<scalar_t>;
  const BlockPlace place(table.first_tile, table.count);
  const auto& entry = table.entries[place.layer];
  const int columns = int(entry.layer.columns), first = place.index * kSpectralTileRows;
  const int64_t size = int64_t(min(kSpectralTileRows, int(entry.layer.rows) - first)) * columns;
  const auto* grad = static_cast<const scalar_t*>(entry.layer.grad_result) + int64_t(first) * columns;
  const auto* weight = static_cast<const scalar_t*>(entry.layer.weight) + int64_t(first) * columns;
  const bool vectors = takes_vectors<scalar_t>(grad, columns) && takes_vectors<scalar_t>(weight, columns);
  const T sum = vectors ? tile_product<Vector<scalar_t>::kSize, T>(grad, weight, size)
                        : tile_product<1, T>(grad, weight, size);
  const double total = block_sum<kThreads>(double(sum));
  if (threadIdx.x == 0) entry.scratch[place.index] = total;
}

template <int kLanes, typename T, typename scalar_t>
__device__ void gradient_tile(const scalar_t* grad, int rows, int columns, T factor, double direction,
                              const T* u, const T* v, scalar_t* target) {
  for (int r = threadIdx.x / kWarpThreads; r < rows; r += kWarps) {
    const int64_t row = int64_t(r) * columns;
    const T along = static_cast<T>(direction * double(u[r]));
    for (int j = threadIdx.x % kWarpThreads * kLanes; j < columns; j += kWarpThreads * kLanes) {
      T values[kLanes];
      load_values(grad + row + j, values);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) values[i] = factor * values[i] + along * v[j + i];
      store_values(target + row + j, values);
    }
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    spectral_norm_gradient_kernel(const __grid_constant__ LayerTable<SpectralNormBackwardEntry> table,
                                  double coefficient) {
  using T = opmath_type<scalar_t>;
  constexpr int kLanes = Vector<scalar_t>::kSize;
  const BlockPlace place(table.first_tile, table.count);
  const auto& entry = table.entries[place.layer];
  const SpectralNormLayerBackward& layer = entry.layer;
  const int columns = int(layer.columns), first = place.index * kSpectralTileRows;
  const int rows = min(kSpectralTileRows, int(layer.rows) - first);
  const double product = sum_values(entry.scratch, int(spectral_tiles(layer.rows)), 1);
  const auto scale = spectral_scale(double(*static_cast<const T*>(layer.sigma)), coefficient);
  const double direction =
      spectral_direction_gradient(product, double(*static_cast<const T*>(layer.grad_sigma)), scale.slope);
  const auto* grad = static_cast<const scalar_t*>(layer.grad_result) + int64_t(first) * columns;
  auto* target = static_cast<scalar_t*>(layer.grad_weight) + int64_t(first) * columns;
  const T *u = static_cast<const T*>(layer.u) + first, *v = static_cast<const T*>(layer.v);
  const T factor = static_cast<T>(scale.factor);
  if (takes_vectors<scalar_t>(grad, columns) && takes_vectors<scalar_t>(target, columns)) {
    gradient_tile<kLanes>(grad, rows, columns, factor, direction, u, v, target);
  } else {
    gradient_tile<1>(grad, rows, columns, factor, direction, u, v, target);
  }
}

// Calls launch_table(table, tiles, chunks) with as many layers at a time as one launch takes.
template <typename Entry, typename LaunchTable>
cudaError_t for_each_table(const Entry* entries, int64_t count, const LaunchTable& launch_table) {
  using Table = LayerTable<Entry>;
  for (int64_t begin = 0; begin < count; begin += Table::kLayers) {
    Table table;
    table.count = int(std::min<int64_t>(Table::kLayers, count - begin));
    int tiles = 0, chunks = 0;
    for (int i = 0; i < table.count; ++i) {
      table.entries[i] = entries[begin + i];
      table.first_tile[i] = tiles;
      table.first_chunk[i] = chunks;
      tiles += int(spectral_tiles(table.entries[i].layer.rows));
      chunks += int(spectral_chunks(table.entries[i].layer.columns));
    }
    const cudaError_t error = launch_table(table, tiles, chunks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename scalar_t>
cudaError_t launch_forward(LayerTable<SpectralNormEntry>& table, int tiles, int chunks,
                           const SpectralNormSettings& settings, cudaStream_t stream) {
  const bool iterates = settings.iterations > 0;
  for (int64_t i = 0; i < std::max<int64_t>(1, settings.iterations); ++i) {
    cudaError_t error =
        launch(spectral_norm_tile_kernel<scalar_t>, tiles, kThreads, 0, stream, table, iterates);
    if (error == cudaSuccess && iterates) {
      error = launch(spectral_norm_chunk_kernel<scalar_t>, chunks, kThreads, 0, stream, table, settings.eps);
    }
    if (error == cudaSuccess) {
      error = launch(spectral_norm_scale_kernel<scalar_t>, tiles, kThreads, 0, stream, table, settings,
                     i + 1 >= settings.iterations);
    }
    if (error != cudaSuccess) return error;
    for (int layer = 0; layer < table.count; ++layer) {
      table.entries[layer].layer.u = table.entries[layer].layer.new_u;
      table.entries[layer].layer.v = table.entries[layer].layer.new_v;
    }
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_spectral_norm(StorageType type, const SpectralNormEntry* entries, int64_t count,
                                 const SpectralNormSettings& settings, cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    return for_each_table(entries, count, [&](auto& table, int tiles, int chunks) {
      return launch_forward<decltype(zero)>(table, tiles, chunks, settings, stream);
    });
  });
}

cudaError_t launch_spectral_norm_backward(StorageType type, const SpectralNormBackwardEntry* entries,
                                          int64_t count, const SpectralNormSettings& settings,
                                          cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    return for_each_table(entries, count, [&](auto& table, int tiles, int) {
      const cudaError_t error =
          launch(spectral_norm_product_kernel<scalar_t>, tiles, kThreads, 0, stream, table);
      if (error != cudaSuccess) return error;
      return launch(spectral_norm_gradient_kernel<scalar_t>, tiles, kThreads, 0, stream, table,
                    settings.coefficient);
    });
  });
}

}  // namespace flowops
