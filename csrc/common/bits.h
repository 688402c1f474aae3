// What pack_bits, piecewise_ and scale_by_bits compute of one element, on both devices.
#pragma once

#include <cstdint>
#include <optional>

#include "inline.h"

namespace wuskern {

constexpr int64_t kBitsOfByte = 8;

// The bounds between which a bit is set, and the bit of a NaN. `bounded`: there is an upper one.
template <typename Acc>
struct Between {
  Acc low, high;
  bool bounded, nan;

  WUSKERN_INLINE bool operator()(Acc x) const { return x != x ? nan : x > low && (!bounded || x < high); }
};

// What an element becomes outside of the bounds: its product with `factor`, or the bound that it has passed. A zero at
// a bound of zero keeps its sign, as in PyTorch.
template <typename Acc>
struct Outside {
  Acc factor;
  bool clamps;

  WUSKERN_INLINE Acc operator()(Acc x, const Between<Acc>& between) const {
    if (!clamps) return x * factor;
    return x < between.low ? between.low : between.bounded && x > between.high ? between.high : x;
  }
};

// What an element is multiplied by where its bit is set and where it is not; `zero`: there it becomes zero instead.
template <typename Acc>
struct Factors {
  Acc on, off;
  bool zero;

  WUSKERN_INLINE Acc operator()(Acc x, bool set) const { return set ? x * on : zero ? Acc{0} : x * off; }
};

template <typename Acc>
Between<Acc> between(double low, const std::optional<double>& high, bool nan) {
  return {static_cast<Acc>(low), static_cast<Acc>(high.value_or(0)), high.has_value(), nan};
}

template <typename Acc>
Outside<Acc> outside_of(const std::optional<double>& factor) {
  return {static_cast<Acc>(factor.value_or(0)), !factor.has_value()};
}

template <typename Acc>
Factors<Acc> factors(double on, const std::optional<double>& off) {
  return {static_cast<Acc>(on), static_cast<Acc>(off.value_or(0)), !off.has_value()};
}

}  // namespace wuskern
