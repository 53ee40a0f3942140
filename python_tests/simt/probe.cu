// Kernels with known mistakes, and their sound twins, for the tests of the shim itself.
#include <cstring>
#include <exception>

#include "common/cuda.cuh"
#include "common/mma.cuh"

namespace flowops {
namespace {

// Each step reads a neighbour's element; every barrier matters.
__global__ void reverse_kernel(float* data, bool first_barrier) {
  float* stage = dynamic_shared<float>();
  stage[threadIdx.x] = data[threadIdx.x];
  if (first_barrier) __syncthreads();
  data[threadIdx.x] = stage[blockDim.x - 1 - threadIdx.x];
}

__global__ void block_sum_kernel(const float* data, double* sums) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float total = block_sum<256>(data[i]);
  const float twice = block_sum<256>(2 * data[i]);
  if (threadIdx.x == 0) sums[blockIdx.x] = total + twice;
}

__global__ void stale_shared_kernel(float* data) {
  FLOWOPS_SHARED(float, stage, 32);
  if (blockIdx.x == 0) stage[threadIdx.x] = 1.f;
  data[blockIdx.x] = stage[0] + dynamic_shared<float>()[0];
}

__global__ void neighbour_kernel(float* data, bool warp_barrier) {
  FLOWOPS_SHARED(float, stage, 32);
  stage[threadIdx.x] = data[threadIdx.x];
  if (warp_barrier) __syncwarp();
  data[threadIdx.x] = stage[(threadIdx.x + 1) % 32];
}

__global__ void shuffle_kernel(float* data, int source_lane) {
  data[threadIdx.x] = __shfl_sync(kFullWarp, data[threadIdx.x], source_lane);
}

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void early_exit_kernel() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}

__global__ void missing_lane_kernel(float* data) {
  if (threadIdx.x < 31) data[0] = warp_sum(data[0]);
}

__global__ void divergent_shuffle_kernel(float* data) {
  if (threadIdx.x < 16) {
    data[0] = __shfl_xor_sync(kFullWarp, data[0], 1);
  } else {
    __syncthreads();
  }
}

__global__ void masked_source_kernel(float* data) {
  if (threadIdx.x < 16) data[0] = __shfl_sync(0xffffu, data[0], 20);
}

__global__ void misaligned_kernel(const float* data, float* result) {
  result[0] = load_vector(data + 1).lanes[0];
}

__global__ void out_of_bounds_kernel(float* result) { result[0] = dynamic_shared<float>()[blockDim.x]; }

__global__ void static_out_of_bounds_kernel(float* result) {
  FLOWOPS_SHARED(float, stage, 32);
  stage[threadIdx.x + 1] = result[0];
  result[threadIdx.x] = stage[threadIdx.x];
}

// data: A (16, 8), then B (8, 8); result: A B (16, 8), with `rest` of what TF32 drops of them alone.
__global__ void mma_kernel(const float* data, float* result, bool rest) {
  const int group = threadIdx.x / 4, place = threadIdx.x % 4;
  const auto bits = [rest](float x) {
    const uint32_t most = tf32_bits(x);
    return rest ? tf32_bits(x - tf32_value(most)) : most;
  };
  Tf32A a;
  Tf32B b;
  for (int i = 0; i < 4; ++i) a.bits[i] = bits(data[(group + i % 2 * 8) * 8 + place + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) b.bits[i] = bits(data[128 + (place + i * 4) * 8 + group]);
  MmaSum sum{};
  mma(sum, a, b);
  for (int i = 0; i < 4; ++i) result[(group + i / 2 * 8) * 8 + 2 * place + i % 2] = sum.values[i];
}

__global__ void divergent_mma_kernel(float* result) {
  MmaSum sum{};
  if (threadIdx.x < 31) mma(sum, Tf32A{}, Tf32B{});
  result[threadIdx.x] = sum.values[0];
}

__global__ void order_kernel(int* order, int* next) { order[(*next)++] = blockIdx.x; }

__global__ void empty_kernel() {}

cudaError_t run(const char* name, float* data, void* result, int option) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  const dim3 warp(32), block(256);
  if (is("reverse")) return launch(reverse_kernel, 1, block, 256 * sizeof(float), nullptr, data, option != 0);
  if (is("block_sum"))
    return launch(block_sum_kernel, 3, block, 0, nullptr, data, static_cast<double*>(result));
  if (is("stale_shared")) return launch(stale_shared_kernel, 2, warp, sizeof(float), nullptr, data);
  if (is("neighbour")) return launch(neighbour_kernel, 1, warp, 0, nullptr, data, option != 0);
  if (is("shuffle")) return launch(shuffle_kernel, 1, warp, 0, nullptr, data, option);
  if (is("divergent_barrier")) return launch(divergent_barrier_kernel, 1, block, 0, nullptr);
  if (is("early_exit")) return launch(early_exit_kernel, 1, block, 0, nullptr);
  if (is("missing_lane")) return launch(missing_lane_kernel, 1, warp, 0, nullptr, data);
  if (is("divergent_shuffle")) return launch(divergent_shuffle_kernel, 1, warp, 0, nullptr, data);
  if (is("masked_source")) return launch(masked_source_kernel, 1, warp, 0, nullptr, data);
  if (is("misaligned"))
    return launch(misaligned_kernel, 1, warp, 0, nullptr, data, static_cast<float*>(result));
  if (is("out_of_bounds")) return launch(out_of_bounds_kernel, 1, warp, 32 * sizeof(float), nullptr, data);
  if (is("static_out_of_bounds")) return launch(static_out_of_bounds_kernel, 1, warp, 0, nullptr, data);
  if (is("mma"))
    return launch(mma_kernel, 1, warp, 0, nullptr, data, static_cast<float*>(result), option != 0);
  if (is("divergent_mma"))
    return launch(divergent_mma_kernel, 1, warp, 0, nullptr, static_cast<float*>(result));
  if (is("order"))
    return launch(order_kernel, 100, 1, 0, nullptr, static_cast<int*>(result),
                  static_cast<int*>(result) + 100);
  if (is("threads")) return launch(empty_kernel, 1, option, 0, nullptr);
  if (is("grid_y")) return launch(empty_kernel, dim3(1, option), 1, 0, nullptr);
  if (is("grid_z")) return launch(empty_kernel, dim3(1, 1, option), 1, 0, nullptr);
  if (is("shared_bytes")) return launch(empty_kernel, 1, 1, option, nullptr);
  return cudaErrorInvalidValue;
}

}  // namespace

// Runs one kernel; an error inside it is copied to `message`. Returns the launch's cudaError_t, or
// -1.
extern "C" __attribute__((visibility("default"))) int probe(const char* name, float* data, void* result,
                                                            int option, char* message, size_t message_bytes) {
  try {
    return run(name, data, result, option);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), message_bytes - 1);
    return -1;
  }
}

}  // namespace flowops
