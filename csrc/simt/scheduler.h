// Runs one CUDA kernel launch on the CPU: blocks one after another, a fiber a thread.
//
// What a GPU leaves undefined is made to show: warps, the lanes of a warp and the blocks run in
// random order, each warp as far as it can; shared memory starts as NaN; a barrier or shuffle that
// not every named thread reaches, at the same place in the source, is an error, as is a launch past
// the limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "simt/types.h"

namespace flowops::simt {

// Where in the source a thread waits.
struct Site {
  const char* file;
  int line;
};

// Runs `body` for every thread of the grid. Throws std::runtime_error on a mistake inside the
// kernel.
cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Makes the random orders of the launches that follow reproducible.
void seed(uint64_t value);

// The rest is called by kernels.

void wait_for_block(Site site);

// Publishes `bytes` bytes of `mine` to the lanes of `mask`, waits for them, and copies what each lane
// published to `all`, one after another in the order of lanes.
void gather(unsigned mask, const void* mine, size_t bytes, void* all, Site site);

// The same for one value; returns what `source_lane` published.
uint64_t exchange(unsigned mask, uint64_t value, unsigned source_lane, Site site);

// The block's shared array that belongs to `key`, a distinct address for each declaration.
void* shared_array(const void* key, size_t bytes);

void* dynamic_shared_memory();

unsigned lane_index();

[[noreturn]] void fail(const char* what);

}  // namespace flowops::simt
