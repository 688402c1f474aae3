// A vector of neighbours at a time: its comparison becomes bits, or bits become a vector of masks. What is left over at
// the end of a run goes through a vector padded with zeros.
//
// No function that the linker could share with other files may be called here (see channel_sums_kernels.cpp).
#include "bits_kernels.h"

#include "lanes.h"

namespace wuskern {
namespace {

template <typename T>
using VectorOf = decltype(load(static_cast<const T*>(nullptr)));
template <typename Vector>
using MaskOf = std::conditional_t<std::is_same_v<Vector, Doubles>, DoubleBits, FloatBits>;

// ---- masks of a vector, all ones or zeros in each lane, and bits --------------------------------------------------

#if defined(__AVX512F__)

WUSKERN_INLINE uint32_t to_bits(FloatBits mask) { return _mm512_movepi32_mask((__m512i)mask); }
WUSKERN_INLINE uint32_t to_bits(DoubleBits mask) { return _mm512_movepi64_mask((__m512i)mask); }
WUSKERN_INLINE void to_mask(uint32_t bits, FloatBits* mask) { *mask = (FloatBits)_mm512_movm_epi32(bits); }
WUSKERN_INLINE void to_mask(uint32_t bits, DoubleBits* mask) { *mask = (DoubleBits)_mm512_movm_epi64(bits); }

#else

#if defined(__AVX2__)
WUSKERN_INLINE uint32_t to_bits(FloatBits mask) {
  __m256 halves[2];
  memcpy(halves, &mask, sizeof(mask));
  return _mm256_movemask_ps(halves[0]) | _mm256_movemask_ps(halves[1]) << 8;
}
WUSKERN_INLINE uint32_t to_bits(DoubleBits mask) {
  __m256d halves[2];
  memcpy(halves, &mask, sizeof(mask));
  return _mm256_movemask_pd(halves[0]) | _mm256_movemask_pd(halves[1]) << 4;
}
#else
template <typename Mask>
WUSKERN_INLINE uint32_t to_bits(Mask mask) {
  uint32_t bits = 0;
  for (int i = 0; i < static_cast<int>(sizeof(mask) / sizeof(mask[0])); ++i) {
    bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  }
  return bits;
}
#endif

WUSKERN_INLINE void to_mask(uint32_t bits, FloatBits* mask) {
  const FloatBits each = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  *mask = ((FloatBits{} + static_cast<int32_t>(bits)) & each) == each;
}
WUSKERN_INLINE void to_mask(uint32_t bits, DoubleBits* mask) {
  const DoubleBits each = {1, 2, 4, 8, 16, 32, 64, 128};
  *mask = ((DoubleBits{} + static_cast<int64_t>(bits)) & each) == each;
}

#endif

// ---- pack_bits -----------------------------------------------------------------------------------------------------

template <bool bounded, bool nan, typename Vector, typename Acc>
WUSKERN_INLINE uint32_t bits_of(const Between<Acc>& between, Vector x) {
  // A NaN compares false: it is in where what is out is compared for.
  auto mask = nan ? ~(MaskOf<Vector>)(x <= between.low) : (MaskOf<Vector>)(x > between.low);
  if constexpr (bounded) {
    mask &= nan ? ~(MaskOf<Vector>)(x >= between.high) : (MaskOf<Vector>)(x < between.high);
  }
  return to_bits(mask);
}

template <typename T, bool bounded, bool nan>
WUSKERN_INLINE void pack_as(const Between<WideOf<T>> between, const T* x, int64_t n, uint8_t* bits) {
  constexpr int64_t lanes = kLanesOf<T>, bytes = lanes / kBitsOfByte;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const uint32_t found = bits_of<bounded, nan>(between, load(x + i));
    const uint16_t word = static_cast<uint16_t>(found);
    memcpy(bits + i / kBitsOfByte, &word, bytes);  // bytes in the order of their bits: little-endian
  }
  if (i == n) return;
  const uint32_t found = bits_of<bounded, nan>(between, load_part(x + i, n - i)) & ((1u << (n - i)) - 1);
  for (int64_t byte = 0; byte * kBitsOfByte < n - i; ++byte) {
    bits[i / kBitsOfByte + byte] = static_cast<uint8_t>(found >> (byte * kBitsOfByte));
  }
}

template <typename T>
void pack(const Between<WideOf<T>>& between, const T* x, int64_t n, uint8_t* bits) {
  if (between.bounded) {
    return between.nan ? pack_as<T, true, true>(between, x, n, bits) : pack_as<T, true, false>(between, x, n, bits);
  }
  return between.nan ? pack_as<T, false, true>(between, x, n, bits) : pack_as<T, false, false>(between, x, n, bits);
}

// ---- products ------------------------------------------------------------------------------------------------------

// body(vector, place) for all of a run, stored.
template <typename T, typename Body>
WUSKERN_INLINE void for_vectors(const T* from, int64_t n, T* to, Body&& body) {
  constexpr int64_t lanes = kLanesOf<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, body(load(from + i), i, lanes));
  if (i == n) return;
  T part[lanes];
  store(part, body(load_part(from + i, n - i), i, n - i));
  for (int64_t j = 0; i + j < n; ++j) to[i + j] = part[j];
}

template <bool zero, typename Vector, typename Acc>
WUSKERN_INLINE Vector scaled(const Factors<Acc>& factors, Vector x, uint32_t bits) {
  MaskOf<Vector> mask;
  to_mask(bits, &mask);
  const auto on = (MaskOf<Vector>)(x * factors.on) & mask;
  if constexpr (zero) return (Vector)on;
  return (Vector)(on | ((MaskOf<Vector>)(x * factors.off) & ~mask));
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
  for_vectors(dy, n, out, [&](auto x, int64_t i, int64_t count) {
    return x * (count == kLanesOf<T> ? load(factors + i) : load_part(factors + i, count));
  });
}

}  // namespace

namespace WUSKERN_CAPABILITY {

template <typename T>
BitsKernels<T> bits_kernels() {
  return {pack<T>, scale<T>, scale_all<T>, scale_each<T>};
}

template BitsKernels<double> bits_kernels();
template BitsKernels<float> bits_kernels();
template BitsKernels<Half> bits_kernels();
template BitsKernels<BFloat16> bits_kernels();

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
