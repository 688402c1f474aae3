// Twins on the CPU of the functions of csrc/cuda/mma.h, written from what the PTX ISA says of their instructions: the
// layouts of fragments, of descriptors and of swizzled tiles, and what may be late. A copy arrives when it is waited
// for, and until then its place holds NaN; so do sums that wgmma works on.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <deque>
#include <type_traits>
#include <vector>

#include "../../common/gemm.h"

namespace wuskern {

template <int n, int used, class Use>
void choose_instruction(Use&& use) {
  if constexpr (n >= kLeastWgmma) {
    if (emulation::settings.capability == 90) return use(std::true_type{});
  }
  if (n == kWidestTile || used < n) emulation::fail("a tile that is not compiled for this GPU");
  if constexpr (used == n) use(std::false_type{});
}

inline unsigned char* tile_memory() { return static_cast<unsigned char*>(emulation::dynamic_shared_memory()); }

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - tile_memory());
}

namespace emulation {

// A 16-bit element of shared memory.
template <typename T>
float element(uint32_t address) {
  T value;
  memcpy(static_cast<void*>(&value), tile_memory() + address, sizeof(value));
  return value;
}

// Memory of each thread, new in each block.
template <class State>
State& of_thread() {
  static std::vector<State> states(1024);
  static uint64_t block = 0;
  if (block != block_number()) {
    block = block_number();
    std::fill(states.begin(), states.end(), State{});
  }
  return states[thread_number()];
}

// ---- copies -------------------------------------------------------------------------------------------------------

struct Copy {
  uint32_t to;
  const void* from;
  int bytes;
};

struct Copies {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  std::vector<uint32_t> hidden;  // that have arrived, but that wgmma may not see yet
};

// Which 16 bytes of shared memory wgmma may not see yet.
inline std::vector<bool>& hidden_chunks() {
  struct Chunks {
    std::vector<bool> hidden = std::vector<bool>(kMostShared / 16);
  };
  static Chunks chunks;
  static uint64_t block = 0;
  if (block != block_number()) {
    block = block_number();
    chunks = Chunks{};
  }
  return chunks.hidden;
}

inline void arrive(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    memset(tile_memory() + copy.to, 0, 16);
    memcpy(tile_memory() + copy.to, copy.from, copy.bytes);
    hidden_chunks()[copy.to / 16] = true;
    of_thread<Copies>().hidden.push_back(copy.to / 16);
  }
}

}  // namespace emulation

inline void copy_16_async(uint32_t to, const void* from, int bytes) {
  if (to % 16 != 0 || (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    emulation::fail("cp.async of 16 bytes that are not aligned");
  }
  if (bytes < 0 || bytes > 16) emulation::fail("cp.async of " + std::to_string(bytes) + " bytes of 16");
  memset(tile_memory() + to, 0xff, 16);  // it may be written from now on
  emulation::of_thread<emulation::Copies>().open.push_back({to, from, bytes});
}

inline void commit_copies() {
  auto& mine = emulation::of_thread<emulation::Copies>();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int pending>
void wait_for_copies() {
  auto& mine = emulation::of_thread<emulation::Copies>();
  for (; mine.groups.size() > pending; mine.groups.pop_front()) emulation::arrive(mine.groups.front());
}

inline void show_copies_to_wgmma() {
  auto& mine = emulation::of_thread<emulation::Copies>();
  for (const uint32_t chunk : mine.hidden) emulation::hidden_chunks()[chunk] = false;
  mine.hidden.clear();
}

// ---- ldmatrix and mma.sync ----------------------------------------------------------------------------------------

namespace emulation {

struct MatrixLoad {
  uint32_t row;
  uint32_t* out;
  bool transposed;
};

// Lane l gets elements (2 * (l % 4), + 1) of row l / 4 of each matrix; transposed: of column l / 4.
inline void load_of_warp(const Items& items) {
  const auto lane = [&](int i) -> MatrixLoad& { return *static_cast<MatrixLoad*>(items[i]); };
  for (int l = 0; l < kWarp; ++l) {
    if (lane(l).row % 16 != 0) fail("ldmatrix of a row that is not aligned to 16 bytes");
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int along = l % 4 * 2 + i, across = l / 4;
        const int row = lane(l).transposed ? along : across, column = lane(l).transposed ? across : along;
        memcpy(&pair[i], tile_memory() + lane(matrix * 8 + row).row + column * 2, 2);
      }
      memcpy(&lane(l).out[matrix], pair, 4);
    }
  }
}

struct Fragments {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
void unpack(uint32_t bits, float (&out)[2]) {
  T pair[2];
  memcpy(static_cast<void*>(pair), &bits, 4);
  out[0] = pair[0];
  out[1] = pair[1];
}

// m16n8k16: with g = lane / 4 and t = lane % 4, a[i] is row g + 8 * (i % 2), columns 2 t + 8 * (i / 2) and the next
// one; b[i] is column g, rows 2 t + 8 i and the next one; d[i] is row g + 8 * (i / 2), column 2 t + i % 2.
template <typename T>
void multiply_of_warp(const Items& items) {
  float a[16][16], b[16][8], pair[2];
  for (int l = 0; l < kWarp; ++l) {
    const auto& lane = *static_cast<Fragments*>(items[l]);
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) {
      unpack<T>(lane.a[i], pair);
      for (int j = 0; j < 2; ++j) a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + j] = pair[j];
    }
    for (int i = 0; i < 2; ++i) {
      unpack<T>(lane.b[i], pair);
      for (int j = 0; j < 2; ++j) b[2 * t + 8 * i + j][g] = pair[j];
    }
  }
  for (int l = 0; l < kWarp; ++l) {
    const auto& lane = *static_cast<Fragments*>(items[l]);
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + 8 * (i / 2), column = l % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      lane.d[i] += sum;
    }
  }
}

}  // namespace emulation

inline void load_matrices(uint32_t (&r)[4], uint32_t row, WUSKERN_HERE) {
  emulation::MatrixLoad mine{row, r, false};
  emulation::meet_warp("ldmatrix", 0xffffffffu, &mine, emulation::load_of_warp, where);
}

inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t row, WUSKERN_HERE) {
  emulation::MatrixLoad mine{row, r, true};
  emulation::meet_warp("ldmatrix.trans", 0xffffffffu, &mine, emulation::load_of_warp, where);
}

template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, WUSKERN_HERE) {
  emulation::Fragments mine{d, a, {b0, b1}};
  emulation::meet_warp("mma.sync", 0xffffffffu, &mine, emulation::multiply_of_warp<T>, where);
}

}  // namespace wuskern

#include "wgmma.h"
