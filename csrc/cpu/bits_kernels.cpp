// A vector of neighbours at a time: the lanes in which it compares become bits, or bits become lanes. What is left over
// at the end of a run goes through a vector padded with zeros.
//
// No function that the linker could share with other files may be called here (see channel_sums_kernels.cpp).
#include "bits_kernels.h"

#include "lanes.h"

namespace wuskern {
namespace {

template <typename T>
using VectorOf = decltype(load(static_cast<const T*>(nullptr)));
// ---- comparisons, the lanes in which they hold, and these as bits ---------------------------------------------------
//
// By intrinsics: GCC 12 compares vectors that are wider than a register element by element.

enum Predicate { kNotAtMost = 0x06, kAbove = 0x1e, kNotAtLeast = 0x09, kBelow = 0x11 };  // the instructions' numbers

#if defined(__AVX512F__)

template <typename Vector>
using LanesOf = uint32_t;  // a bit for each

template <Predicate predicate>
WUSKERN_INLINE uint32_t compare(Floats x, float bound) {
  return _mm512_cmp_ps_mask((__m512)x, (__m512)(Floats{} + bound), predicate);
}
template <Predicate predicate>
WUSKERN_INLINE uint32_t compare(Doubles x, double bound) {
  return _mm512_cmp_pd_mask((__m512d)x, (__m512d)(Doubles{} + bound), predicate);
}
WUSKERN_INLINE uint32_t bits_of(uint32_t lanes) { return lanes; }
template <typename Vector>
WUSKERN_INLINE uint32_t lanes_of(uint32_t bits) {
  return bits;
}
WUSKERN_INLINE Floats either(uint32_t lanes, Floats in, Floats out) {
  return (Floats)_mm512_mask_blend_ps(lanes, (__m512)out, (__m512)in);
}
WUSKERN_INLINE Doubles either(uint32_t lanes, Doubles in, Doubles out) {
  return (Doubles)_mm512_mask_blend_pd(lanes, (__m512d)out, (__m512d)in);
}

#elif defined(__AVX2__)

// All ones or zeros in each lane.
struct FloatHalves {
  __m256 of[2];
  WUSKERN_INLINE void operator&=(const FloatHalves& other) {
    for (int i = 0; i < 2; ++i) of[i] = _mm256_and_ps(of[i], other.of[i]);
  }
};
struct DoubleHalves {
  __m256d of[2];
  WUSKERN_INLINE void operator&=(const DoubleHalves& other) {
    for (int i = 0; i < 2; ++i) of[i] = _mm256_and_pd(of[i], other.of[i]);
  }
};
template <typename Vector>
using LanesOf = std::conditional_t<std::is_same_v<Vector, Doubles>, DoubleHalves, FloatHalves>;

template <typename Vector>
WUSKERN_INLINE LanesOf<Vector> halves_of(Vector x) {
  LanesOf<Vector> halves;
  memcpy(&halves, &x, sizeof(x));
  return halves;
}

template <Predicate predicate>
WUSKERN_INLINE LanesOf<Floats> compare(Floats x, float bound) {
  LanesOf<Floats> lanes = halves_of(x);
  for (__m256& half : lanes.of) half = _mm256_cmp_ps(half, _mm256_set1_ps(bound), predicate);
  return lanes;
}
template <Predicate predicate>
WUSKERN_INLINE LanesOf<Doubles> compare(Doubles x, double bound) {
  LanesOf<Doubles> lanes = halves_of(x);
  for (__m256d& half : lanes.of) half = _mm256_cmp_pd(half, _mm256_set1_pd(bound), predicate);
  return lanes;
}
WUSKERN_INLINE uint32_t bits_of(const LanesOf<Floats>& lanes) {
  return _mm256_movemask_ps(lanes.of[0]) | _mm256_movemask_ps(lanes.of[1]) << 8;
}
WUSKERN_INLINE uint32_t bits_of(const LanesOf<Doubles>& lanes) {
  return _mm256_movemask_pd(lanes.of[0]) | _mm256_movemask_pd(lanes.of[1]) << 4;
}
template <typename Vector>
WUSKERN_INLINE LanesOf<Vector> lanes_of(uint32_t bits) {
  if constexpr (std::is_same_v<Vector, Doubles>) {
    const __m256i each = _mm256_setr_epi64x(1, 2, 4, 8);
    return {{(__m256d)_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), each), each),
             (__m256d)_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits >> 4), each), each)}};
  } else {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return {{(__m256)_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), each), each),
             (__m256)_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits >> 8), each), each)}};
  }
}
WUSKERN_INLINE Floats either(const LanesOf<Floats>& lanes, Floats in, Floats out) {
  LanesOf<Floats> from = halves_of(in), chosen = halves_of(out);
  for (int i = 0; i < 2; ++i) chosen.of[i] = _mm256_blendv_ps(chosen.of[i], from.of[i], lanes.of[i]);
  return load_as<Floats>(&chosen);
}
WUSKERN_INLINE Doubles either(const LanesOf<Doubles>& lanes, Doubles in, Doubles out) {
  LanesOf<Doubles> from = halves_of(in), chosen = halves_of(out);
  for (int i = 0; i < 2; ++i) chosen.of[i] = _mm256_blendv_pd(chosen.of[i], from.of[i], lanes.of[i]);
  return load_as<Doubles>(&chosen);
}

#else

template <typename Vector>
using LanesOf =
    std::conditional_t<std::is_same_v<Vector, Doubles>, DoubleBits, FloatBits>;  // all ones or zeros in each

template <Predicate predicate, typename Vector, typename Acc>
WUSKERN_INLINE LanesOf<Vector> compare(Vector x, Acc bound) {
  LanesOf<Vector> lanes;
  for (int i = 0; i < static_cast<int>(sizeof(x) / sizeof(Acc)); ++i) {
    const bool holds = predicate == kNotAtMost    ? !(x[i] <= bound)
                       : predicate == kAbove      ? x[i] > bound
                       : predicate == kNotAtLeast ? !(x[i] >= bound)
                                                  : x[i] < bound;
    lanes[i] = -static_cast<int32_t>(holds);
  }
  return lanes;
}
template <typename Lanes>
WUSKERN_INLINE uint32_t bits_of(Lanes lanes) {
  uint32_t bits = 0;
  for (int i = 0; i < static_cast<int>(sizeof(lanes) / sizeof(lanes[0])); ++i) bits |= (lanes[i] & 1u) << i;
  return bits;
}
template <typename Vector>
WUSKERN_INLINE LanesOf<Vector> lanes_of(uint32_t bits) {
  LanesOf<Vector> lanes;
  for (int i = 0; i < static_cast<int>(sizeof(lanes) / sizeof(lanes[0])); ++i) {
    lanes[i] = -static_cast<int32_t>(bits >> i & 1);
  }
  return lanes;
}
template <typename Vector>
WUSKERN_INLINE Vector either(LanesOf<Vector> lanes, Vector in, Vector out) {
  return (Vector)(((LanesOf<Vector>)in & lanes) | ((LanesOf<Vector>)out & ~lanes));
}

#endif

// ---- runs -----------------------------------------------------------------------------------------------------------

// body(vector, place, elements) for all of a run, stored; it multiplies by constants and chooses, no more.
template <typename T, typename Body>
WUSKERN_INLINE void for_vectors(const T* from, int64_t n, T* to, Body&& body) {
  constexpr int64_t lanes = kLanesOf<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_product(to + i, body(load(from + i), i, lanes));
  if (i == n) return;
  T part[lanes];
  store_product(part, body(load_part(from + i, n - i), i, n - i));
  for (int64_t j = 0; i + j < n; ++j) to[i + j] = part[j];
}

// The bytes of so many bits, of one vector. In the order of their bits: little-endian.
WUSKERN_INLINE void put_bits(uint32_t found, int64_t count, uint8_t* bits) {
  bits[0] = static_cast<uint8_t>(found);
  if (count > kBitsOfByte) bits[1] = static_cast<uint8_t>(found >> kBitsOfByte);
}

// ---- pack_bits -----------------------------------------------------------------------------------------------------

template <bool bounded, bool nan, typename Vector, typename Acc>
WUSKERN_INLINE LanesOf<Vector> lanes_between(const Between<Acc>& between, Vector x) {
  auto lanes = compare<nan ? kNotAtMost : kAbove>(x, between.low);  // a NaN is not at most anything
  if constexpr (bounded) lanes &= compare<nan ? kNotAtLeast : kBelow>(x, between.high);
  return lanes;
}

template <typename T, bool bounded, bool nan>
WUSKERN_INLINE void pack_as(const Between<WideOf<T>> between, const T* x, int64_t n, uint8_t* bits) {
  constexpr int64_t lanes = kLanesOf<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    put_bits(bits_of(lanes_between<bounded, nan>(between, load(x + i))), lanes, bits + i / kBitsOfByte);
  }
  if (i == n) return;
  const auto found = lanes_between<bounded, nan>(between, load_part(x + i, n - i));
  put_bits(bits_of(found) & ((1u << (n - i)) - 1), n - i, bits + i / kBitsOfByte);
}

template <typename T>
void pack(const Between<WideOf<T>>& between, const T* x, int64_t n, uint8_t* bits) {
  if (between.bounded) {
    return between.nan ? pack_as<T, true, true>(between, x, n, bits) : pack_as<T, true, false>(between, x, n, bits);
  }
  return between.nan ? pack_as<T, false, true>(between, x, n, bits) : pack_as<T, false, false>(between, x, n, bits);
}

// ---- piecewise_ ----------------------------------------------------------------------------------------------------

// The bound where x has passed it, else x, also where that is NaN or a zero of the other sign.
#if defined(__AVX512F__)
WUSKERN_INLINE Floats at_least(Floats low, Floats x) {
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)low, (__m512)x);
}
WUSKERN_INLINE Floats at_most(Floats high, Floats x) {
  return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)high, (__m512)x);
}
WUSKERN_INLINE Doubles at_least(Doubles low, Doubles x) {
  return (Doubles)_mm512_maskz_max_pd(0xff, (__m512d)low, (__m512d)x);
}
WUSKERN_INLINE Doubles at_most(Doubles high, Doubles x) {
  return (Doubles)_mm512_maskz_min_pd(0xff, (__m512d)high, (__m512d)x);
}
#elif defined(__AVX2__)
template <typename Vector, typename Half, Half (*choose)(Half, Half)>
WUSKERN_INLINE Vector of_halves(Vector bound, Vector x) {
  Half bounds[2], halves[2];
  memcpy(bounds, &bound, sizeof(bound));
  memcpy(halves, &x, sizeof(x));
  for (int i = 0; i < 2; ++i) halves[i] = choose(bounds[i], halves[i]);
  return load_as<Vector>(halves);
}
WUSKERN_INLINE Floats at_least(Floats low, Floats x) { return of_halves<Floats, __m256, _mm256_max_ps>(low, x); }
WUSKERN_INLINE Floats at_most(Floats high, Floats x) { return of_halves<Floats, __m256, _mm256_min_ps>(high, x); }
WUSKERN_INLINE Doubles at_least(Doubles low, Doubles x) { return of_halves<Doubles, __m256d, _mm256_max_pd>(low, x); }
WUSKERN_INLINE Doubles at_most(Doubles high, Doubles x) { return of_halves<Doubles, __m256d, _mm256_min_pd>(high, x); }
#else
template <typename Vector>
WUSKERN_INLINE Vector at_least(Vector low, Vector x) {
  return x < low ? low : x;
}
template <typename Vector>
WUSKERN_INLINE Vector at_most(Vector high, Vector x) {
  return x > high ? high : x;
}
#endif

template <bool bounded, bool clamps, typename Vector, typename Acc>
WUSKERN_INLINE Vector activated(const Between<Acc>& between, const Outside<Acc>& outside, Vector x,
                                LanesOf<Vector> lanes) {
  if constexpr (!clamps) return either(lanes, x, x * outside.factor);
  const Vector y = at_least(Vector{} + between.low, x);
  if constexpr (!bounded) return y;
  return at_most(Vector{} + between.high, y);
}

template <typename T, bool bounded, bool nan, bool clamps>
WUSKERN_INLINE void piecewise_as(const Between<WideOf<T>> between, const Outside<WideOf<T>> outside, const T* x,
                                 int64_t n, T* y, uint8_t* bits) {
  for_vectors(x, n, y, [&](auto vector, int64_t i, int64_t count) {
    const auto found = lanes_between<bounded, nan>(between, vector);
    put_bits(bits_of(found) & ((1u << count) - 1), count, bits + i / kBitsOfByte);
    return activated<bounded, clamps>(between, outside, vector, found);
  });
}

template <typename T, bool bounded>
void piecewise_bounded(const Between<WideOf<T>>& between, const Outside<WideOf<T>>& outside, const T* x, int64_t n,
                       T* y, uint8_t* bits) {
  if (outside.clamps) return piecewise_as<T, bounded, true, true>(between, outside, x, n, y, bits);
  if (between.nan) return piecewise_as<T, bounded, true, false>(between, outside, x, n, y, bits);
  return piecewise_as<T, bounded, false, false>(between, outside, x, n, y, bits);
}

template <typename T>
void piecewise(const Between<WideOf<T>>& between, const Outside<WideOf<T>>& outside, const T* x, int64_t n, T* y,
               uint8_t* bits) {
  if (between.bounded) return piecewise_bounded<T, true>(between, outside, x, n, y, bits);
  return piecewise_bounded<T, false>(between, outside, x, n, y, bits);
}

// ---- products ------------------------------------------------------------------------------------------------------

template <bool zero, typename Vector, typename Acc>
WUSKERN_INLINE Vector scaled(const Factors<Acc>& factors, Vector x, uint32_t bits) {
  const auto lanes = lanes_of<Vector>(bits);
  if constexpr (zero) return either(lanes, x * factors.on, Vector{});
  return either(lanes, x * factors.on, x * factors.off);
}

template <typename T, bool zero>
WUSKERN_INLINE void scale_as(const Factors<WideOf<T>> factors, const T* dy, const uint8_t* bits, int64_t n, T* out) {
  for_vectors(dy, n, out, [&](auto x, int64_t i, int64_t count) {
    const uint8_t* const p = bits + i / kBitsOfByte;
    const uint32_t word = count > kBitsOfByte ? p[0] | p[1] << kBitsOfByte : p[0];
    return scaled<zero>(factors, x, word);
  });
}

template <typename T>
void scale(const Factors<WideOf<T>>& factors, const T* dy, const uint8_t* bits, int64_t n, T* out) {
  return factors.zero ? scale_as<T, true>(factors, dy, bits, n, out) : scale_as<T, false>(factors, dy, bits, n, out);
}

template <typename T>
void scale_all(WideOf<T> factor, const T* dy, int64_t n, T* out) {
  for_vectors(dy, n, out, [&](auto x, int64_t, int64_t) { return x * factor; });
}

template <typename T>
void scale_each(const WideOf<T>* factors, const T* dy, int64_t n, T* out) {
  constexpr int64_t lanes = kLanesOf<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, load(dy + i) * load(factors + i));
  if (i == n) return;
  T part[lanes];
  store(part, load_part(dy + i, n - i) * load_part(factors + i, n - i));
  for (int64_t j = 0; i + j < n; ++j) out[i + j] = part[j];
}

}  // namespace

namespace WUSKERN_CAPABILITY {

template <typename T>
BitsKernels<T> bits_kernels() {
  return {pack<T>, piecewise<T>, scale<T>, scale_all<T>, scale_each<T>};
}

template BitsKernels<double> bits_kernels();
template BitsKernels<float> bits_kernels();
template BitsKernels<Half> bits_kernels();
template BitsKernels<BFloat16> bits_kernels();

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
