// Neighbours in vectors of 64 bytes that the compiler lowers to what it compiles for, and the loads and stores of
// 16-bit formats that it does not find by itself.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/half.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace wuskern {

typedef float Floats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));

// How many elements one vector takes in: 16-bit ones become floats.
template <typename T>
constexpr int64_t kLanesOf = sizeof(T) == 8 ? 8 : 16;

template <typename Vector>
WUSKERN_INLINE Vector load_as(const void* p) {
  Vector vector;
  memcpy(&vector, p, sizeof(vector));
  return vector;
}
WUSKERN_INLINE Doubles load(const double* p) { return load_as<Doubles>(p); }
WUSKERN_INLINE Floats load(const float* p) { return load_as<Floats>(p); }

#if defined(__AVX512F__)

WUSKERN_INLINE __m256i load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// "maskz" with every lane wanted: the unmasked names make GCC 12 warn about its own header.
WUSKERN_INLINE Floats load(const BFloat16* p) {
  return (Floats)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, load_bits(p)), 16);
}
WUSKERN_INLINE Floats load(const Half* p) { return (Floats)_mm512_maskz_cvtph_ps(0xffff, load_bits(p)); }

// The first `count` elements, fewer than fill a vector, and zeros.
WUSKERN_INLINE Doubles load_part(const double* p, int64_t count) {
  return (Doubles)_mm512_maskz_loadu_pd((1u << count) - 1, p);
}
WUSKERN_INLINE Floats load_part(const float* p, int64_t count) {
  return (Floats)_mm512_maskz_loadu_ps((1u << count) - 1, p);
}
template <typename T>
WUSKERN_INLINE Floats load_part(const T* p, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16((1u << count) - 1, p);
  return load(reinterpret_cast<const T*>(&bits));
}

#else

#if defined(__AVX2__)
WUSKERN_INLINE __m128i load_bits(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

WUSKERN_INLINE __m256 load_half(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits(p)), 16));
}
WUSKERN_INLINE __m256 load_half(const Half* p) { return _mm256_cvtph_ps(load_bits(p)); }

template <typename T>
WUSKERN_INLINE Floats load_16_bit(const T* p) {
  const __m256 halves[] = {load_half(p), load_half(p + 8)};
  return load_as<Floats>(halves);
}
#else
template <typename T>
WUSKERN_INLINE Floats load_16_bit(const T* p) {
  float lane[16];
  for (int i = 0; i < 16; ++i) lane[i] = widen(p[i]);
  return load(lane);
}
#endif

WUSKERN_INLINE Floats load(const BFloat16* p) { return load_16_bit(p); }
WUSKERN_INLINE Floats load(const Half* p) { return load_16_bit(p); }

template <typename T>
WUSKERN_INLINE auto load_part(const T* p, int64_t count) {
  T part[kLanesOf<T>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return load(part);
}

#endif

// ---- the other way: each rounded to nearest, ties to even -----------------------------------------------------------

#if defined(__AVX2__) && !defined(__AVX512F__)
// Register by register: GCC 12 copies a vector of two from the stack.
WUSKERN_INLINE void store(double* p, Doubles x) {
  __m256d halves[2];
  memcpy(halves, &x, sizeof(x));
  for (int i = 0; i < 2; ++i) _mm256_storeu_pd(p + 4 * i, halves[i]);
}
WUSKERN_INLINE void store(float* p, Floats x) {
  __m256 halves[2];
  memcpy(halves, &x, sizeof(x));
  for (int i = 0; i < 2; ++i) _mm256_storeu_ps(p + 8 * i, halves[i]);
}
#else
WUSKERN_INLINE void store(double* p, Doubles x) { memcpy(p, &x, sizeof(x)); }
WUSKERN_INLINE void store(float* p, Floats x) { memcpy(p, &x, sizeof(x)); }
#endif

typedef uint32_t FloatWords __attribute__((vector_size(64)));
typedef uint16_t HalfWords __attribute__((vector_size(32)));

#if defined(__AVX2__) && !defined(__AVX512F__)
// By intrinsics: GCC 12 compares vectors that are wider than a register element by element.
template <bool long_nan>
WUSKERN_INLINE __m256i bfloat16_words(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
  const __m256i up = _mm256_add_epi32(_mm256_and_si256(upper, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_add_epi32(bits, up);
  if constexpr (!long_nan) return _mm256_srli_epi32(rounded, 16);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
template <bool long_nan>
WUSKERN_INLINE void store_bfloat16(BFloat16* p, Floats x) {
  __m256 halves[2];
  memcpy(halves, &x, sizeof(x));
  const __m256i packed = _mm256_packus_epi32(bfloat16_words<long_nan>(halves[0]), bfloat16_words<long_nan>(halves[1]));
  const __m256i words = _mm256_permute4x64_epi64(packed, 0xd8);
  memcpy(p, &words, sizeof(words));
}
#else
template <bool long_nan>
WUSKERN_INLINE void store_bfloat16(BFloat16* p, Floats x) {
  const FloatWords bits = (FloatWords)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  FloatWords upper = rounded >> 16;
  if constexpr (long_nan) {
    const FloatWords is_nan = (FloatWords)(x != x), quiet = bits | 0x400000;
    upper = ((rounded & ~is_nan) | (quiet & is_nan)) >> 16;
  }
#if defined(__AVX512F__)
  const __m256i words = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)upper);
#else
  const HalfWords words = __builtin_convertvector(upper, HalfWords);
#endif
  memcpy(p, &words, sizeof(words));
}
#endif

WUSKERN_INLINE void store(BFloat16* p, Floats x) { store_bfloat16<true>(p, x); }

// The same of a 16-bit number's product with a constant, or of one of the two: where that is NaN, its lower half is
// zero, and rounding does not carry into its exponent.
template <typename T, typename Vector>
WUSKERN_INLINE void store_product(T* p, Vector x) {
  store(p, x);
}
WUSKERN_INLINE void store_product(BFloat16* p, Floats x) { store_bfloat16<false>(p, x); }

#if defined(__AVX512F__)
WUSKERN_INLINE void store(Half* p, Floats x) {
  const __m256i words = _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  memcpy(p, &words, sizeof(words));
}
WUSKERN_INLINE Floats square_root(Floats x) { return (Floats)_mm512_maskz_sqrt_ps(0xffff, (__m512)x); }
WUSKERN_INLINE Doubles square_root(Doubles x) { return (Doubles)_mm512_maskz_sqrt_pd(0xff, (__m512d)x); }
#elif defined(__AVX2__)
WUSKERN_INLINE void store(Half* p, Floats x) {
  __m256 halves[2];
  memcpy(halves, &x, sizeof(x));
  for (int i = 0; i < 2; ++i) {
    const __m128i words = _mm256_cvtps_ph(halves[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    memcpy(p + 8 * i, &words, sizeof(words));
  }
}
WUSKERN_INLINE Floats square_root(Floats x) {
  __m256 halves[2];
  memcpy(halves, &x, sizeof(x));
  for (__m256& half : halves) half = _mm256_sqrt_ps(half);
  return load_as<Floats>(halves);
}
WUSKERN_INLINE Doubles square_root(Doubles x) {
  __m256d halves[2];
  memcpy(halves, &x, sizeof(x));
  for (__m256d& half : halves) half = _mm256_sqrt_pd(half);
  return load_as<Doubles>(halves);
}
#else
WUSKERN_INLINE void store(Half* p, Floats x) {
  for (int i = 0; i < 16; ++i) narrow(x[i], p + i);
}
WUSKERN_INLINE Floats square_root(Floats x) {
  for (int i = 0; i < 16; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
WUSKERN_INLINE Doubles square_root(Doubles x) {
  for (int i = 0; i < 8; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}
#endif

// |x|; a NaN stays one.
typedef int32_t FloatBits __attribute__((vector_size(64)));
typedef int64_t DoubleBits __attribute__((vector_size(64)));
WUSKERN_INLINE Floats absolute(Floats x) { return (Floats)((FloatBits)x & 0x7fffffff); }
WUSKERN_INLINE Doubles absolute(Doubles x) { return (Doubles)((DoubleBits)x & 0x7fffffffffffffff); }
WUSKERN_INLINE double absolute(double x) { return __builtin_fabs(x); }

typedef float HalfOfFloats __attribute__((vector_size(32)));

WUSKERN_INLINE Doubles to_doubles(HalfOfFloats half) {
#if defined(__AVX512F__)  // GCC 12 makes two conversions and a join of it
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)half);
#else
  return __builtin_convertvector(half, Doubles);
#endif
}

WUSKERN_INLINE Doubles low(Floats x) { return to_doubles(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7)); }
WUSKERN_INLINE Doubles high(Floats x) {
  return to_doubles(__builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}

// acc[lanes] += vector
WUSKERN_INLINE void add_to(double* acc, Doubles vector) {
  vector += load(acc);
  memcpy(acc, &vector, sizeof(vector));
}

WUSKERN_INLINE void add_to(double* acc, Floats vector) {
  add_to(acc, low(vector));
  add_to(acc + 8, high(vector));
}

// As many sums as a vector has lanes, in registers.
struct Lanes {
  Doubles low = {}, high = {};  // high stays zero where vectors are Doubles

  WUSKERN_INLINE void add(Doubles x) { low += x; }
  WUSKERN_INLINE void add(Floats x) {
    low += wuskern::low(x);
    high += wuskern::high(x);
  }
};

}  // namespace wuskern
