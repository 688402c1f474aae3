// Which rows have the largest scores, and which chosen rows lie next to each other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "half.h"

namespace wuskern {

// Keys that ascend where scores fall: a NaN first, then +inf. Zeros have one key whatever their sign.
WUSKERN_INLINE uint32_t order_key(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f), sign = 1u << 31;
  const uint32_t key = bits & sign ? bits : ~(bits | sign);
  return (bits & ~sign) > 0x7f800000u ? 0 : key;
}

WUSKERN_INLINE uint64_t order_key(double score) {
  const uint64_t bits = bit_cast<uint64_t>(score + 0.0), sign = uint64_t{1} << 63;
  const uint64_t key = bits & sign ? bits : ~(bits | sign);
  return (bits & ~sign) > 0x7ff0000000000000u ? 0 : key;
}

template <typename Key>
struct Threshold {
  Key key;       // the k-th smallest key
  int64_t ties;  // so many of those equal to it are among the first k
};

// Keys from low to high in at most kBuckets buckets of neighbours.
constexpr int kBucketBits = 11;
constexpr int kBuckets = 1 << kBucketBits;

template <typename Key>
struct Buckets {
  Key low, high;
  int shift;

  WUSKERN_HOST_DEVICE Buckets(Key low, Key high) : low(low), high(high), shift(0) {
    while ((high - low) >> shift >= kBuckets) ++shift;
  }

  WUSKERN_HOST_DEVICE int count() const { return static_cast<int>((high - low) >> shift) + 1; }
  WUSKERN_HOST_DEVICE int of(Key key) const { return static_cast<int>((key - low) >> shift); }
  WUSKERN_HOST_DEVICE bool of_one_key() const { return shift == 0; }
  WUSKERN_HOST_DEVICE Key first(int bucket) const { return low + (static_cast<Key>(bucket) << shift); }
  WUSKERN_HOST_DEVICE Key last(int bucket) const { return bucket + 1 < count() ? first(bucket + 1) - 1 : high; }
};

// The k-th smallest of n keys, 1 <= k <= n, bucket by bucket. Overwrites scratch[n].
template <typename Key>
Threshold<Key> threshold(const Key* keys, int64_t n, int64_t k, Key* scratch) {
  int64_t counts[kBuckets];
  for (;;) {
    Key low = keys[0], high = keys[0];
    for (int64_t i = 1; i < n; ++i) {
      low = std::min(low, keys[i]);
      high = std::max(high, keys[i]);
    }
    const Buckets<Key> buckets(low, high);
    const int shift = buckets.shift;  // in a register
    std::fill_n(counts, buckets.count(), 0);
    for (int64_t i = 0; i < n; ++i) ++counts[(keys[i] - low) >> shift];

    Key bucket = 0;
    for (; counts[bucket] < k; ++bucket) k -= counts[bucket];
    if (buckets.of_one_key()) return {low + bucket, k};

    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = keys[i];
      scratch[kept] = key;
      kept += (key - low) >> shift == bucket;
    }
    keys = scratch;
    n = kept;
  }
}

// keys[blocks] = the order of the sums of `block` neighbours each.
template <typename T, typename Key>
void block_keys(const T* scores, int64_t blocks, int64_t block, Key* keys) {
  if (block == 1) {
    for (int64_t i = 0; i < blocks; ++i) keys[i] = order_key(widen(scores[i]));
    return;
  }
  for (int64_t i = 0; i < blocks; ++i) {
    auto sum = widen(scores[i * block]);
    for (int64_t b = 1; b < block; ++b) sum += widen(scores[i * block + b]);
    keys[i] = order_key(sum);
  }
}

// rows[k] = the k of n rows with the largest scores, ascending; taken in blocks of `block` by the sums of their scores,
// the same number from each of `groups` equal parts.
template <typename T>
void select(const T* scores, int64_t n, int64_t k, int64_t block, int64_t groups, int64_t* rows) {
  using Key = decltype(order_key(widen(T{})));
  const int64_t blocks = n / (block * groups), wanted = k / (block * groups);  // of each group
  std::vector<Key> keys(blocks), scratch(blocks);
  for (int64_t first = 0; first < groups * blocks; first += blocks) {
    block_keys(scores + first * block, blocks, block, keys.data());
    auto [last, ties] = threshold(keys.data(), blocks, wanted, scratch.data());
    int64_t* const chosen = rows + wanted * (block - 1);  // blocks; the loop after this one never overtakes its reading
    for (int64_t i = 0, taken = 0; taken < wanted; ++i) {  // writes, then keeps or not: no branch to predict
      const int64_t tie = (keys[i] == last) & (ties > 0);
      chosen[taken] = first + i;
      taken += (keys[i] < last) | tie;
      ties -= tie;
    }
    for (int64_t i = 0; i < wanted && block > 1; ++i) {
      const int64_t row = chosen[i] * block;
      for (int64_t b = 0; b < block; ++b) rows[i * block + b] = row + b;
    }
    rows += wanted * block;
  }
}

// The largest power of two, at most `most` > 0, of which the rows are runs of consecutive ones; k > 0.
inline int64_t run_length(const int64_t* rows, int64_t k, int64_t most) {
  int64_t length = 1;
  while (length <= most / 2) length *= 2;
  while (k % length) length /= 2;
  for (int64_t i = 1; i < k && length > 1; ++i) {
    while (i % length && rows[i] != rows[i - 1] + 1) length /= 2;
  }
  return length;
}

}  // namespace wuskern
