// Barriers, shuffles and votes of the emulation.
#pragma once

#include "emulation.h"

namespace wuskern::emulation {

// Gives each lane what exchange(items, lane) reads from the others' values.
template <typename T>
struct Exchanged {
  T value, result;
  int from;  // the lane whose value is wanted, or -1 for one's own
};

template <typename T>
T shuffle(const char* what, unsigned mask, T value, int from, Place where) {
  Exchanged<T> mine{value, value, from};
  meet_warp(
      what, mask, &mine,
      [](const Items& items) {
        for (void* const item : items) {
          if (item == nullptr) continue;
          auto& lane = *static_cast<Exchanged<T>*>(item);
          if (lane.from < 0) continue;
          if (items[lane.from]) {
            lane.result = static_cast<Exchanged<T>*>(items[lane.from])->value;
          } else {
            memset(&lane.result, 0xff, sizeof(T));  // undefined on a GPU
          }
        }
      },
      where);
  return mine.result;
}

struct Ballot {
  uint64_t value;
  unsigned lanes, same;  // that are there; that brought a value other than 0; ... the same value
  unsigned yes;
};

inline Ballot ballot(const char* what, unsigned mask, uint64_t value, Place where) {
  Ballot mine{value, 0, 0, 0};
  meet_warp(
      what, mask, &mine,
      [](const Items& items) {
        for (void* const item : items) {
          if (item == nullptr) continue;
          auto& lane = *static_cast<Ballot*>(item);
          for (int i = 0; i < kWarp; ++i) {
            if (items[i] == nullptr) continue;
            const uint64_t other = static_cast<Ballot*>(items[i])->value;
            lane.lanes |= 1u << i;
            lane.yes |= static_cast<unsigned>(other != 0) << i;
            lane.same |= static_cast<unsigned>(other == lane.value) << i;
          }
        }
      },
      where);
  return mine;
}

}  // namespace wuskern::emulation

#define WUSKERN_HERE wuskern::emulation::Place where = wuskern::emulation::Place::current()

inline void __syncthreads(WUSKERN_HERE) { wuskern::emulation::meet_block(0, 0, false, where); }
inline int __syncthreads_count(int vote, WUSKERN_HERE) {
  return wuskern::emulation::meet_block(0, 0, vote != 0, where).yes;
}
inline int __syncthreads_or(int vote, WUSKERN_HERE) { return __syncthreads_count(vote, where) != 0; }
inline int __syncthreads_and(int vote, WUSKERN_HERE) {
  const auto votes = wuskern::emulation::meet_block(0, 0, vote != 0, where);
  return votes.yes == votes.threads;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, WUSKERN_HERE) {
  wuskern::emulation::ballot("__syncwarp", mask, 0, where);
}
inline unsigned __ballot_sync(unsigned mask, int vote, WUSKERN_HERE) {
  return wuskern::emulation::ballot("__ballot_sync", mask, vote != 0, where).yes;
}
inline int __any_sync(unsigned mask, int vote, WUSKERN_HERE) {
  return wuskern::emulation::ballot("__any_sync", mask, vote != 0, where).yes != 0;
}
inline int __all_sync(unsigned mask, int vote, WUSKERN_HERE) {
  const auto votes = wuskern::emulation::ballot("__all_sync", mask, vote != 0, where);
  return votes.yes == votes.lanes;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, WUSKERN_HERE) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return wuskern::emulation::ballot("__match_any_sync", mask, bits, where).same;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, WUSKERN_HERE) {
  const int lane = wuskern::emulation::lane();
  return wuskern::emulation::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) + (source & (width - 1)), where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, WUSKERN_HERE) {
  const unsigned lane = wuskern::emulation::lane(), in = (lane & (width - 1)) + delta;
  return wuskern::emulation::shuffle("__shfl_down_sync", mask, value,
                                     in < unsigned(width) ? static_cast<int>(lane + delta) : -1, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, WUSKERN_HERE) {
  const unsigned lane = wuskern::emulation::lane();
  return wuskern::emulation::shuffle("__shfl_up_sync", mask, value,
                                     (lane & (width - 1)) >= delta ? static_cast<int>(lane - delta) : -1, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, WUSKERN_HERE) {
  const int lane = wuskern::emulation::lane(), from = lane ^ lanes;
  return wuskern::emulation::shuffle("__shfl_xor_sync", mask, value, from / width <= lane / width ? from : -1, where);
}

#define WUSKERN_REDUCE(NAME, EXPRESSION)                                         \
  template <typename T>                                                          \
  T NAME(unsigned mask, T value, WUSKERN_HERE) {                                 \
    T all = value;                                                               \
    for (int i = 0; i < 32; ++i) {                                               \
      const T other = wuskern::emulation::shuffle(#NAME, mask, value, i, where); \
      if (mask >> i & 1) all = i == __builtin_ctz(mask) ? other : EXPRESSION;    \
    }                                                                            \
    return all;                                                                  \
  }
WUSKERN_REDUCE(__reduce_add_sync, all + other)
WUSKERN_REDUCE(__reduce_min_sync, std::min(all, other))
WUSKERN_REDUCE(__reduce_max_sync, std::max(all, other))
WUSKERN_REDUCE(__reduce_or_sync, all | other)
WUSKERN_REDUCE(__reduce_and_sync, all& other)
#undef WUSKERN_REDUCE
