// The scheduler of emulation.h.
#include "emulation.h"

#include <dlfcn.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace wuskern::emulation {

Settings settings;
Trace trace;

namespace {

constexpr size_t kStack = 256 * 1024, kFence = 256, kAlignment = 128;
constexpr int kMostThreads = 1024, kBarriers = 16;

enum class State { ready, in_warp, at_barrier, waiting, returned };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  char* stack = nullptr;
  bool made = false;

  uint3 thread;
  State state;
  const char* what;  // it waits for, and the numbers of that
  Place where;
  unsigned mask;
  void* item;
  void (*act)(const Items&);
  int barrier;
  bool vote;
  Votes votes;
  std::function<bool()> ready;
};

struct Barrier {
  int arrived = 0, yes = 0, threads = 0;
  Place where;
};

std::mutex one_launch;
std::deque<Fiber> fibers;  // kept from launch to launch
int count, live;           // threads of the block; those that have not returned
int running;
Barrier barriers[kBarriers];
const std::function<void()>* kernel;
std::exception_ptr error;
jmp_buf scheduler;
std::vector<unsigned char> shared;  // and what aligns it
uint64_t blocks_run = 0;
thread_local volatile char anchor;  // the library has thread-local memory, where __shared__ variables lie

std::string text(const Place& place) {
  const std::string file = place.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line());
}

// ---- switching ----------------------------------------------------------------------------------------------------

__attribute__((noinline)) void to_scheduler() {
  if (_setjmp(fibers[running].at) == 0) _longjmp(scheduler, 1);
}

void finish_warp(int first);
void finish_barrier(int barrier);

// What a thread's stack does, kernel after kernel.
void live_on() {
  for (;;) {
    try {
      (*kernel)();
    } catch (...) {
      error = std::current_exception();
    }
    Fiber& me = fibers[running];
    me.state = State::returned;
    --live;
    if (!error) {
      finish_warp(running / kWarp * kWarp);
      for (int barrier = 0; barrier < kBarriers; ++barrier) finish_barrier(barrier);
    }
    to_scheduler();
  }
}

__attribute__((noinline)) void to_thread(int number) {
  Fiber& fiber = fibers[number];
  running = number;
  threadIdx = fiber.thread;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.made) _longjmp(fiber.at, 1);
  if (fiber.stack == nullptr) {
    void* const memory =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kPage, PROT_NONE);
    fiber.stack = static_cast<char*>(memory);
  }
  fiber.made = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack + kPage;
  fiber.start.uc_stack.ss_size = kStack - kPage;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, live_on, 0);
  setcontext(&fiber.start);
}

// ---- memory out of range ------------------------------------------------------------------------------------------

void on_bad_access(int, siginfo_t*, void*) {
  const auto text = [](uint3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  error = std::make_exception_ptr(std::runtime_error("thread " + text(threadIdx) + " of block " + text(blockIdx) +
                                                     " reads or writes memory out of range"));
  _longjmp(scheduler, 1);
}

// While it lives, a kernel's access to memory that is not there ends the launch, and not the process.
class AccessGuard {
 public:
  AccessGuard() : stack_(64 * 1024) {
    stack_t memory{};
    memory.ss_sp = stack_.data();
    memory.ss_size = stack_.size();
    sigaltstack(&memory, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = on_bad_access;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_);
  }
  ~AccessGuard() {
    sigaction(SIGSEGV, &before_, nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  std::vector<char> stack_;
  stack_t stack_before_;
  struct sigaction before_;
};

// ---- meeting ------------------------------------------------------------------------------------------------------

bool same(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.mask == b.mask && (a.what == b.what || strcmp(a.what, b.what) == 0);
}

// If every lane that this thread waits for is there, they go on.
void finish_group(int number) {
  const Fiber& one = fibers[number];
  const int first = number / kWarp * kWarp, lanes = std::min(kWarp, count - first);
  Items items{};
  for (int i = 0; i < lanes; ++i) {
    const Fiber& other = fibers[first + i];
    if (!(one.mask >> i & 1) || other.state == State::returned) continue;
    if (!same(one, other)) return;
    items[i] = other.item;
  }
  one.act(items);
  for (int i = 0; i < lanes; ++i) {
    if (items[i]) fibers[first + i].state = State::ready;
  }
}

// The same for the lanes that a thread leaves behind.
void finish_warp(int first) {
  for (int i = first; i < std::min(first + kWarp, count); ++i) {
    if (fibers[i].state == State::in_warp) finish_group(i);
  }
}

void finish_barrier(int number) {
  Barrier& barrier = barriers[number];
  if (barrier.arrived == 0 || barrier.arrived < (barrier.threads ? barrier.threads : live)) return;
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    if (fiber.state != State::at_barrier || fiber.barrier != number) continue;
    fiber.votes = {barrier.arrived, barrier.yes};
    fiber.state = State::ready;
  }
  barrier = {};
}

void count_arrival(int number, int threads, bool vote, Place where) {
  if (number < 0 || number >= kBarriers) fail("barrier " + std::to_string(number) + " at " + text(where));
  Barrier& barrier = barriers[number];
  if (barrier.arrived == 0) {
    barrier.where = where;
    barrier.threads = threads;
  }
  if (barrier.threads != threads || (threads == 0 && text(barrier.where) != text(where))) {
    fail("threads of one block went to different barriers: " + text(barrier.where) + " and " + text(where));
  }
  ++barrier.arrived;
  barrier.yes += vote;
}

// ---- a block ------------------------------------------------------------------------------------------------------

[[noreturn]] void report_deadlock() {
  std::map<std::string, int> places;
  for (int i = 0; i < count; ++i) {
    const Fiber& f = fibers[i];
    if (f.state == State::returned) ++places["have returned"];
    if (f.state != State::returned) ++places[std::string("wait in ") + f.what + " at " + text(f.where)];
  }
  std::string message = "a block that waits for ever:";
  for (const auto& [place, threads] : places) message += " " + std::to_string(threads) + " threads " + place + ";";
  message.pop_back();
  throw std::runtime_error(message);
}

// This thread's memory of `__shared__` variables: all of the library's thread-local memory.
std::pair<void*, size_t> static_shared_memory() {
  anchor = 0;
  std::pair<void*, size_t> found{nullptr, 0};
  const auto visit = [](dl_phdr_info* info, size_t, void* out) {
    bool mine = false;
    size_t size = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& part = info->dlpi_phdr[i];
      const auto begin = info->dlpi_addr + part.p_vaddr, here = reinterpret_cast<uintptr_t>(&report_deadlock);
      mine |= part.p_type == PT_LOAD && begin <= here && here < begin + part.p_memsz;
      if (part.p_type == PT_TLS) size = part.p_memsz;
    }
    if (mine) *static_cast<std::pair<void*, size_t>*>(out) = {info->dlpi_tls_data, size};
    return static_cast<int>(mine);
  };
  dl_iterate_phdr(visit, &found);
  return found;
}

// Those that can go on, of the first warp in the block's order of warps that has any; or of all warps, for even steps.
void collect_ready(const std::vector<int>& warps, bool even_steps, std::vector<int>& ready) {
  ready.clear();
  for (const int warp : warps) {
    for (int i = warp * kWarp; i < std::min((warp + 1) * kWarp, count); ++i) {
      if (fibers[i].state == State::ready) ready.push_back(i);
    }
    if (!ready.empty() && !even_steps) break;
  }
  for (int i = 0; ready.empty() && i < count; ++i) {
    if (fibers[i].state == State::waiting && fibers[i].ready()) ready.push_back(i);
  }
}

// In one half of the blocks all threads go from one meeting to the next together, in the other a warp goes as far ahead
// as it can.
void run_block() {
  ++blocks_run;
  live = count;
  std::fill_n(barriers, kBarriers, Barrier{});
  for (int i = 0; i < count; ++i) {
    fibers[i].state = State::ready;
    fibers[i].thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
  }
  std::vector<int> warps((count + kWarp - 1) / kWarp), ready;
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), settings.order);
  const bool even_steps = settings.order() % 2;
  while (live > 0) {
    collect_ready(warps, even_steps, ready);
    if (ready.empty()) report_deadlock();
    std::shuffle(ready.begin(), ready.end(), settings.order);
    for (const int number : ready) {
      fibers[number].state = State::ready;
      to_thread(number);
      if (error) std::rethrow_exception(error);
    }
  }
}

void check_launch(dim3 blocks, dim3 threads, size_t shared_bytes) {
  const uint64_t in_block = uint64_t{threads.x} * threads.y * threads.z;
  const bool right = in_block >= 1 && in_block <= kMostThreads && threads.z <= 64 && blocks.x >= 1 && blocks.y >= 1 &&
                     blocks.z >= 1 && blocks.x <= 0x7fffffff && blocks.y <= 65535 && blocks.z <= 65535 &&
                     shared_bytes <= kMostShared;
  if (right) return;
  const auto text = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  throw std::runtime_error("a launch that no GPU takes: " + text(blocks) + " blocks of " + text(threads) +
                           " threads, " + std::to_string(shared_bytes) + " bytes of shared memory");
}

}  // namespace

void fail(const std::string& message) { throw std::runtime_error(message); }

void* dynamic_shared_memory() {
  void* place = shared.data();
  size_t space = shared.size();
  return std::align(kAlignment, 1, place, space);
}

uint64_t block_number() { return blocks_run; }

int thread_number() { return running; }

void meet_warp(const char* what, unsigned mask, void* item, void (*act)(const Items&), Place where) {
  Fiber& me = fibers[running];
  if (!(mask >> lane() & 1)) fail(std::string(what) + " at " + text(where) + ": the mask leaves out its own thread");
  me.state = State::in_warp;
  me.what = what;
  me.where = where;
  me.mask = mask;
  me.item = item;
  me.act = act;
  finish_group(running);
  if (me.state != State::ready) to_scheduler();
}

Votes meet_block(int barrier, int threads, bool vote, Place where) {
  count_arrival(barrier, threads, vote, where);
  Fiber& me = fibers[running];
  me.state = State::at_barrier;
  me.what = "a barrier";
  me.where = where;
  me.barrier = barrier;
  finish_barrier(barrier);
  to_scheduler();
  return me.votes;
}

void arrive_at_block(int barrier, int threads, Place where) {
  count_arrival(barrier, threads, false, where);
  finish_barrier(barrier);
}

void wait_until(const char* what, std::function<bool()> ready, Place where) {
  if (ready()) return;
  Fiber& me = fibers[running];
  me.state = State::waiting;
  me.what = what;
  me.where = where;
  me.ready = std::move(ready);
  to_scheduler();
}

void run(const void* function, dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& thread) {
  check_launch(blocks, threads, shared_bytes);
  const std::lock_guard<std::mutex> lock(one_launch);
  if (trace.records) {
    Dl_info library{};
    dladdr(reinterpret_cast<const void*>(&run), &library);
    const auto place = static_cast<const char*>(function) - static_cast<const char*>(library.dli_fbase);
    trace.lines += "launch " + std::to_string(place) + " " + std::to_string(uint64_t{blocks.x} * blocks.y * blocks.z) +
                   " " + std::to_string(threads.x * threads.y * threads.z) + " " + std::to_string(shared_bytes) + "\n";
  }
  if (!trace.runs) return;
  gridDim = blocks;
  blockDim = threads;
  count = threads.x * threads.y * threads.z;
  if (fibers.size() < static_cast<size_t>(count)) fibers.resize(count);
  kernel = &thread;
  error = nullptr;
  shared.resize(kAlignment + shared_bytes + kFence);
  const auto [memory, size] = static_shared_memory();

  std::vector<uint64_t> order(uint64_t{blocks.x} * blocks.y * blocks.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  std::shuffle(order.begin(), order.end(), settings.order);
  const AccessGuard guard;
  try {
    for (const uint64_t block : order) {
      memset(memory, kPoison, size);
      memset(shared.data(), kPoison, shared.size());
      blockIdx = {static_cast<unsigned>(block % blocks.x), static_cast<unsigned>(block / blocks.x % blocks.y),
                  static_cast<unsigned>(block / blocks.x / blocks.y)};
      run_block();
      const unsigned char* const fence = static_cast<unsigned char*>(dynamic_shared_memory()) + shared_bytes;
      if (std::any_of(fence, fence + kFence, [](unsigned char byte) { return byte != kPoison; })) {
        fail("a block wrote past its " + std::to_string(shared_bytes) + " bytes of shared memory");
      }
    }
  } catch (...) {
    for (Fiber& fiber : fibers) fiber.made = false;  // whatever they are in the middle of
    throw;
  }
}

}  // namespace wuskern::emulation
