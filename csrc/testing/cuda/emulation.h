// CUDA on the CPU, for tests: a launch runs block after block, every thread of a block on a stack of its own.
//
// One thread runs at a time, until it has to wait for others; which of those that can go on comes next is drawn by a
// seed, and often a warp runs far ahead. So a missing barrier shows, and one that some threads never reach is an error
// that names it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <source_location>
#include <string>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace wuskern::emulation {

constexpr int kWarp = 32;
constexpr size_t kPage = 4096;
constexpr unsigned char kPoison = 0xff;     // NaN in every format
constexpr size_t kMostShared = 227 * 1024;  // bytes of a block on sm_90 and sm_100

// The machine, and in which order its threads run.
struct Settings {
  int processors = 2, capability = 90;  // 10 * major + minor
  bool tensors_on_gpu = false;
  unsigned long long stream = 0;
  bool capturing = false;
  std::mt19937 order{0};
};
extern Settings settings;

// What is written down of launches and of new tensors, a line each, while `records`. Without `runs` kernels are not
// run: what the host does needs no result of theirs, so that problems of any size can be counted.
struct Trace {
  bool records = false, runs = true;
  std::string lines;
};
extern Trace trace;

using Place = std::source_location;
using Items = std::array<void*, kWarp>;

// Runs thread(), which calls `kernel`, for every thread of every block. Throws std::runtime_error for what a GPU would
// refuse, or hang on.
void run(const void* kernel, dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& thread);

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& message);

// The block's dynamic shared memory: poisoned before each block, what follows it checked after each.
void* dynamic_shared_memory();

// Of all blocks of all launches, the one that runs.
uint64_t block_number();

// The thread's number in its block, and in its warp.
int thread_number();
inline int lane() { return thread_number() % kWarp; }

// Waits until every thread of the warp that `mask` names, and that has not returned, is in `what` with the same mask.
// Then act(items) happens once, with what each has brought; null for a lane that is not there.
void meet_warp(const char* what, unsigned mask, void* item, void (*act)(const Items&), Place where);

struct Votes {
  int threads, yes;
};

// Waits for a barrier of the block: for `threads` of them, or with 0 for all that have not returned, who then must all
// be at the same place. Returns how many came, and how many of them with `vote`.
Votes meet_block(int barrier, int threads, bool vote, Place where);

// Counts as one that came to the barrier, and goes on.
void arrive_at_block(int barrier, int threads, Place where);

// Waits until ready() is true; it is asked whenever no other thread can go on.
void wait_until(const char* what, std::function<bool()> ready, Place where);

}  // namespace wuskern::emulation
