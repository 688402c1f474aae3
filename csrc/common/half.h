// The two 16-bit floating-point formats as plain bits: what a CPU without native support needs to read and write
// them. Every function is exact or correctly rounded, and free of branches where it has to vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

namespace wuskern {

struct Half {  // IEEE binary16: 1 sign, 5 exponent, 10 mantissa bits
  uint16_t bits;
};

struct BFloat16 {  // the upper half of an IEEE binary32
  uint16_t bits;
};

template <typename To, typename From>
WUSKERN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

WUSKERN_INLINE double widen(double x) { return x; }
WUSKERN_INLINE float widen(float x) { return x; }
WUSKERN_INLINE float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Three candidates, then a choice: works under flush-to-zero too, because no subnormal float is ever formed.
WUSKERN_INLINE float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  const uint32_t normal = shifted + (112u << 23);   // exponent bias 15 -> 127
  const uint32_t special = shifted | (255u << 23);  // inf and NaN keep their payload
  const float subnormal = bit_cast<float>(shifted + (113u << 23)) - bit_cast<float>(113u << 23);
  const uint32_t finite = magnitude < 0x0400u ? bit_cast<uint32_t>(subnormal) : normal;
  return bit_cast<float>(sign | (magnitude < 0x7c00u ? finite : special));
}

// Round to nearest, ties to even. NaN stays NaN.
inline void narrow(double x, double* out) { *out = x; }
inline void narrow(double x, float* out) { *out = static_cast<float>(x); }

inline void narrow(float x, BFloat16* out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float x, Half* out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520, halfway between the largest half and 2^16
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14, the smallest normal half
    half = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  } else if (magnitude >= 0x33000000u) {              // 2^-25, half of the smallest subnormal half
    const uint32_t shift = 126u - (magnitude >> 23);  // 14 to 24 bits of the mantissa fall off
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t rest = mantissa & ((1u << shift) - 1u);
    const uint32_t tie = 1u << (shift - 1u);
    half = mantissa >> shift;
    half += rest > tie || (rest == tie && (half & 1u));
  } else {
    half = 0;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace wuskern
