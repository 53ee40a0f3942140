#include "cuda/spectral_norm_layers.cuh"
#include "math/spectral_norm.h"

namespace flowops {
namespace {

template <int kLanes, typename T, typename scalar_t>
__device__ T tile_product(const scalar_t* a, const scalar_t* b, int64_t size) {
  T sum = 0;
  for (int64_t i = threadIdx.x * kLanes; i < size; i += kSpectralThreads * kLanes) {
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
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_norm_product_kernel(const __grid_constant__ SpectralTable<SpectralNormBackwardEntry> table) {
  using T = opmath_type<scalar_t>;
  const SpectralPlace place(table.first_tile, table.count);
  const auto& entry = table.entries[place.layer];
  const int columns = int(entry.layer.columns), first = place.index * kSpectralTileRows;
  const int64_t size = int64_t(min(kSpectralTileRows, int(entry.layer.rows) - first)) * columns;
  const auto* grad = static_cast<const scalar_t*>(entry.layer.grad_result) + int64_t(first) * columns;
  const auto* weight = static_cast<const scalar_t*>(entry.layer.weight) + int64_t(first) * columns;
  const bool vectors =
      rows_take_vectors<scalar_t>(grad, columns) && rows_take_vectors<scalar_t>(weight, columns);
  const T sum = vectors ? tile_product<Vector<scalar_t>::kSize, T>(grad, weight, size)
                        : tile_product<1, T>(grad, weight, size);
  const double total = block_sum<kSpectralThreads>(double(sum));
  if (threadIdx.x == 0) entry.scratch[place.index] = total;
}

template <int kLanes, typename T, typename scalar_t>
__device__ void gradient_tile(const scalar_t* grad, int rows, int columns, T factor, double direction,
                              const T* u, const T* v, scalar_t* target) {
  for (int r = threadIdx.x / kWarpThreads; r < rows; r += kSpectralWarps) {
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
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_norm_gradient_kernel(const __grid_constant__ SpectralTable<SpectralNormBackwardEntry> table,
                                  double coefficient) {
  using T = opmath_type<scalar_t>;
  constexpr int kLanes = Vector<scalar_t>::kSize;
  const SpectralPlace place(table.first_tile, table.count);
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
  if (rows_take_vectors<scalar_t>(grad, columns) && rows_take_vectors<scalar_t>(target, columns)) {
    gradient_tile<kLanes>(grad, rows, columns, factor, direction, u, v, target);
  } else {
    gradient_tile<1>(grad, rows, columns, factor, direction, u, v, target);
  }
}

}  // namespace

cudaError_t launch_spectral_norm_backward(StorageType type, const SpectralNormBackwardEntry* entries,
                                          int64_t count, const SpectralNormSettings& settings,
                                          cudaStream_t stream) {
  return dispatch_storage(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    return for_each_table(entries, count, [&](auto& table, int tiles, int) {
      const cudaError_t error =
          launch(spectral_norm_product_kernel<scalar_t>, tiles, kSpectralThreads, 0, stream, table);
      if (error != cudaSuccess) return error;
      return launch(spectral_norm_gradient_kernel<scalar_t>, tiles, kSpectralThreads, 0, stream, table,
                    settings.coefficient);
    });
  });
}

}  // namespace flowops
