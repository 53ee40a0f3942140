#include "simt/scheduler.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/simt.h"

namespace flowops::simt {

namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlockDepth = 64;
constexpr unsigned kMaxGridWidth = 2147483647;
constexpr unsigned kMaxGridHeight = 65535;
constexpr size_t kMaxSharedBytes = 227 * 1024;
// All ones is a NaN in every floating-point type and an impossible index in the others.
constexpr unsigned char kPoison = 0xff;

enum class State { kRunning, kAtBarrier, kInWarp, kExited };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  uint3 index{};
  State state = State::kExited;
  Site site{};
  unsigned mask = 0;
  const void* published = nullptr;
  size_t bytes = 0;
  void* gathered = nullptr;
};

struct SharedArray {
  const void* key;
  std::unique_ptr<unsigned char[]> bytes;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[next() % i]);
  }

 private:
  uint64_t next() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1dull) >> 16;
  }
  uint64_t state_;
};

struct Engine {
  std::mutex one_launch;
  std::vector<Thread> threads;
  unsigned live = 0;  // threads of the block that runs
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<SharedArray> shared;
  std::unique_ptr<unsigned char[]> dynamic;
  std::string error;
  Random random{0};
};

Engine engine;

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

std::string text(const Thread& thread) {
  return "thread (" + std::to_string(thread.index.x) + ", " + std::to_string(thread.index.y) + ", " +
         std::to_string(thread.index.z) + ") of block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
}

void suspend(State state, Site site) {
  Thread* self = engine.current;
  self->state = state;
  self->site = site;
  self->fiber->suspend();
}

// A fiber outlives its block: it takes the same place in the next one.
void thread_main() {
  for (;;) {
    (*engine.body)();
    suspend(State::kExited, {});
  }
}

void check_error() {
  if (!engine.error.empty()) throw std::runtime_error("simt: " + engine.error);
}

void run_thread(Thread& thread) {
  engine.current = &thread;
  threadIdx = thread.index;
  thread.fiber->resume();
  check_error();
}

// Completes the shuffles and warp barriers of one warp that all their lanes have reached.
bool release_warp(Thread* warp, unsigned lanes) {
  bool released = false;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    const Thread& first = warp[lane];
    if (first.state != State::kInWarp) continue;
    const unsigned mask = first.mask;
    bool complete = true;
    for (unsigned other = 0; other < kWarp; ++other) {
      if (!(mask >> other & 1)) continue;
      if (other >= lanes || warp[other].state == State::kExited) {
        throw std::runtime_error("simt: " + text(first) + " waits at " + text(first.site) + " for lane " +
                                 std::to_string(other) + ", which has left or was never there");
      }
      complete = complete && warp[other].state == State::kInWarp && warp[other].mask == mask &&
                 same(warp[other].site, first.site);
    }
    if (!complete) continue;
    std::vector<unsigned char> published(first.bytes * kWarp);
    for (unsigned other = 0; other < lanes; ++other) {
      if (!(mask >> other & 1)) continue;
      std::memcpy(&published[first.bytes * other], warp[other].published, first.bytes);
    }
    for (unsigned other = 0; other < lanes; ++other) {
      if (!(mask >> other & 1)) continue;
      std::memcpy(warp[other].gathered, published.data(), published.size());
      warp[other].state = State::kRunning;
    }
    released = true;
  }
  return released;
}

void run_warp(Thread* warp, unsigned lanes) {
  std::vector<unsigned> order(lanes);
  std::iota(order.begin(), order.end(), 0);
  do {
    engine.random.shuffle(order);
    for (unsigned lane : order) {
      if (warp[lane].state == State::kRunning) run_thread(warp[lane]);
    }
  } while (release_warp(warp, lanes));
  for (unsigned lane = 0; lane < lanes; ++lane) {
    if (warp[lane].state == State::kInWarp) {
      throw std::runtime_error("simt: " + text(warp[lane]) + " waits at " + text(warp[lane].site) +
                               " for lanes that wait elsewhere");
    }
  }
}

// Opens the block's barrier; false when every thread has left instead.
bool release_block() {
  const Thread* waiting = nullptr;
  const Thread* left = nullptr;
  for (unsigned i = 0; i < engine.live; ++i) {
    const Thread& thread = engine.threads[i];
    if (thread.state == State::kExited) {
      left = &thread;
    } else if (waiting && !same(waiting->site, thread.site)) {
      throw std::runtime_error("simt: divergent barrier: " + text(*waiting) + " waits at " +
                               text(waiting->site) + ", " + text(thread) + " at " + text(thread.site));
    } else {
      waiting = &thread;
    }
  }
  if (!waiting) return false;
  if (left) {
    throw std::runtime_error("simt: divergent barrier: " + text(*waiting) + " waits at " +
                             text(waiting->site) + ", " + text(*left) + " has left");
  }
  for (unsigned i = 0; i < engine.live; ++i) engine.threads[i].state = State::kRunning;
  return true;
}

void run_block(size_t shared_bytes) {
  engine.shared.clear();
  std::memset(engine.dynamic.get(), kPoison, shared_bytes);
  for (unsigned i = 0; i < engine.live; ++i) engine.threads[i].state = State::kRunning;
  std::vector<unsigned> warps((engine.live + kWarp - 1) / kWarp);
  std::iota(warps.begin(), warps.end(), 0);
  do {
    engine.random.shuffle(warps);
    for (unsigned warp : warps) {
      run_warp(&engine.threads[warp * kWarp], std::min(kWarp, engine.live - warp * kWarp));
    }
  } while (release_block());
}

void prepare_threads(dim3 block) {
  engine.live = block.x * block.y * block.z;
  while (engine.threads.size() < engine.live) {
    engine.threads.emplace_back().fiber = std::make_unique<Fiber>(thread_main);
  }
  for (unsigned i = 0; i < engine.live; ++i) {
    engine.threads[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  }
}

bool within_limits(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return threads >= 1 && threads <= kMaxThreads && block.z <= kMaxBlockDepth && grid.x >= 1 &&
         grid.x <= kMaxGridWidth && grid.y >= 1 && grid.y <= kMaxGridHeight && grid.z >= 1 &&
         grid.z <= kMaxGridHeight;
}

}  // namespace

cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  if (!within_limits(grid, block)) return cudaErrorInvalidConfiguration;
  if (shared_bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(engine.one_launch);
  prepare_threads(block);
  engine.body = &body;
  engine.error.clear();
  // Exactly as long as asked for, so that a sanitizer sees the first byte beyond.
  engine.dynamic = std::make_unique<unsigned char[]>(shared_bytes);
  blockDim = block;
  gridDim = grid;
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  engine.random.shuffle(blocks);
  try {
    for (uint64_t b : blocks) {
      blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                  unsigned(b / (uint64_t{grid.x} * grid.y))};
      run_block(shared_bytes);
    }
  } catch (...) {
    engine.threads.clear();  // their fibers stand in the middle of the kernel
    throw;
  }
  return cudaSuccess;
}

void seed(uint64_t value) {
  const std::lock_guard<std::mutex> lock(engine.one_launch);
  engine.random = Random(value);
}

void wait_for_block(Site site) { suspend(State::kAtBarrier, site); }

void gather(unsigned mask, const void* mine, size_t bytes, void* all, Site site) {
  Thread* self = engine.current;
  if (!(mask >> lane_index() & 1)) fail("a lane takes part in an exchange whose mask leaves it out");
  self->mask = mask;
  self->published = mine;
  self->bytes = bytes;
  self->gathered = all;
  suspend(State::kInWarp, site);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned source_lane, Site site) {
  if (source_lane >= kWarp || !(mask >> source_lane & 1)) fail("a shuffle reads a lane outside its mask");
  uint64_t all[kWarp];
  gather(mask, &value, sizeof(value), all, site);
  return all[source_lane];
}

void* shared_array(const void* key, size_t bytes) {
  for (const SharedArray& array : engine.shared) {
    if (array.key == key) return array.bytes.get();
  }
  auto fresh = std::make_unique<unsigned char[]>(bytes);
  std::memset(fresh.get(), kPoison, bytes);
  engine.shared.push_back({key, std::move(fresh)});
  return engine.shared.back().bytes.get();
}

void* dynamic_shared_memory() { return engine.dynamic.get(); }

unsigned lane_index() { return unsigned(engine.current - engine.threads.data()) % kWarp; }

void fail(const char* what) {
  engine.error = std::string(what) + ", " + text(*engine.current);
  engine.current->fiber->suspend();
  throw std::logic_error("simt: a failed thread was resumed");
}

}  // namespace flowops::simt
