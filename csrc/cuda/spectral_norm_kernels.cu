#include "cuda/spectral_norm_layers.cuh"
#include "math/spectral_norm.h"

namespace flowops {
namespace {

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

// products[r] = <row r, x> for the rows of a tile, a warp a row.
template <int kLanes, typename T, typename scalar_t>
__device__ void multiply_tile(const scalar_t* tile, int rows, int columns, const T* x, T* products) {
  const int lane = threadIdx.x % kWarpThreads;
  for (int r = threadIdx.x / kWarpThreads; r < rows; r += kSpectralWarps) {
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
  for (int j = threadIdx.x * kLanes; j < columns; j += kSpectralThreads * kLanes) {
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
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_norm_tile_kernel(const __grid_constant__ SpectralTable<SpectralNormEntry> table,
                              bool transposed) {
  using T = opmath_type<scalar_t>;
  constexpr int kLanes = Vector<scalar_t>::kSize;
  FLOWOPS_SHARED(T, products, kSpectralTileRows);
  const SpectralPlace place(table.first_tile, table.count);
  const SpectralNormLayer& layer = table.entries[place.layer].layer;
  const int columns = int(layer.columns), first = place.index * kSpectralTileRows;
  const int rows = min(kSpectralTileRows, int(layer.rows) - first);
  const Scratch<T> scratch(table.entries[place.layer].scratch, int(layer.rows), columns);
  const auto* tile = static_cast<const scalar_t*>(layer.weight) + int64_t(first) * columns;
  const T* v = static_cast<const T*>(layer.v);
  const bool vectors = rows_take_vectors<scalar_t>(tile, columns);
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
      term = double(product) *
             double(transposed ? product : static_cast<const T*>(layer.u)[first + threadIdx.x]);
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
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_norm_chunk_kernel(const __grid_constant__ SpectralTable<SpectralNormEntry> table, double eps) {
  using T = opmath_type<scalar_t>;
  FLOWOPS_SHARED(T, shared, kSpectralWarps * kSpectralChunkColumns);
  const SpectralPlace place(table.first_chunk, table.count);
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
    for (int i = group; i < tiles; i += kSpectralWarps) sum += scratch.partial[int64_t(i) * columns + column];
  } else if (column < columns) {
    const auto* weight = static_cast<const scalar_t*>(layer.weight);
    for (int r = group; r < rows; r += kSpectralWarps) {
      sum += u[r] * static_cast<T>(weight[int64_t(r) * columns + column]);
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (group == 0) {
    for (int i = 1; i < kSpectralWarps; ++i) sum += shared[i * kWarpThreads + lane];
    if (moves) sum = static_cast<T>(sum / norm);
    if (column < columns) scratch.sums[column] = sum;
    const double squares = warp_sum(double(sum) * double(sum));
    const double along =
        warp_sum(column < columns ? double(sum) * double(static_cast<const T*>(layer.v)[column]) : 0.0);
    if (lane == 0) {
      scratch.chunk_sums[2 * place.index] = squares;
      scratch.chunk_sums[2 * place.index + 1] = along;
    }
  }
  // In place after the first iteration: then a u that stays is not written while other chunks read it.
  if (!moves && new_u == u) return;
  const int chunks = int(spectral_chunks(columns));
  for (int r = place.index * kSpectralThreads + threadIdx.x; r < rows; r += chunks * kSpectralThreads) {
    new_u[r] = moves ? static_cast<T>(scratch.product[r] / norm) : u[r];
  }
}

template <int kLanes, typename T, typename scalar_t>
__device__ void scale_tile(const scalar_t* tile, int rows, int columns, T factor, scalar_t* target) {
  for (int r = threadIdx.x / kWarpThreads; r < rows; r += kSpectralWarps) {
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
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_norm_scale_kernel(const __grid_constant__ SpectralTable<SpectralNormEntry> table,
                               const SpectralNormSettings settings, bool last) {
  using T = opmath_type<scalar_t>;
  constexpr int kLanes = Vector<scalar_t>::kSize;
  const SpectralPlace place(table.first_tile, table.count);
  const SpectralNormLayer& layer = table.entries[place.layer].layer;
  const int rows = int(layer.rows), columns = int(layer.columns);
  const int tiles = int(spectral_tiles(rows)), chunks = int(spectral_chunks(columns));
  const Scratch<T> scratch(table.entries[place.layer].scratch, rows, columns);
  const int begin = place.index * kSpectralThreads + threadIdx.x, step = tiles * kSpectralThreads;
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
  if (rows_take_vectors<scalar_t>(tile, columns) && rows_take_vectors<scalar_t>(target, columns)) {
    scale_tile<kLanes>(tile, count, columns, factor, target);
  } else {
    scale_tile<1>(tile, count, columns, factor, target);
  }
}

template <typename scalar_t>
cudaError_t launch_forward(SpectralTable<SpectralNormEntry>& table, int tiles, int chunks,
                           const SpectralNormSettings& settings, cudaStream_t stream) {
  const bool iterates = settings.iterations > 0;
  for (int64_t i = 0; i < std::max<int64_t>(1, settings.iterations); ++i) {
    cudaError_t error =
        launch(spectral_norm_tile_kernel<scalar_t>, tiles, kSpectralThreads, 0, stream, table, iterates);
    if (error == cudaSuccess && iterates) {
      error = launch(spectral_norm_chunk_kernel<scalar_t>, chunks, kSpectralThreads, 0, stream, table,
                     settings.eps);
    }
    if (error == cudaSuccess) {
      error = launch(spectral_norm_scale_kernel<scalar_t>, tiles, kSpectralThreads, 0, stream, table,
                     settings, i + 1 >= settings.iterations);
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

}  // namespace flowops
