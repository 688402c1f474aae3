// How a block of threads finds the rows of the largest scores. Exact, and the same whatever the order of its threads:
// what decides is counted, and ties go by index.
//
// The k-th smallest key is found bucket by bucket (csrc/common/rows.h), about 11 bits at a time; then each warp counts
// what it takes of its stretch of the keys, and writes it behind what the warps before it take. Keys of usual layers
// stay in shared memory from the first pass on. More are read again in each pass, mostly from L2: at the most five
// passes for float32, eight for float64.
#pragma once

#include "../common/reduction.h"
#include "../common/rows.h"
#include "last_block.h"
#include "vectors.h"

namespace wuskern {

constexpr int kMostWarps = 1024 / kLanes;
constexpr int64_t kKeptBytes = 64 * 1024;  // of keys in shared memory, which every GPU from sm_80 on has
constexpr unsigned kAll = 0xffffffffu;

// A group's keys: of each `block` rows, the order of the sum of their scores.
template <typename T, bool kept>
struct Keys {
  using Acc = Accumulator<T>;
  using Key = decltype(order_key(Acc{}));

  const T* scores;
  int64_t block;
  Key* in_shared;

  __device__ __forceinline__ Key computed(int64_t i) const {
    Acc sum = static_cast<Acc>(scores[i * block]);
#pragma unroll 1
    for (int64_t b = 1; b < block; ++b) sum += static_cast<Acc>(scores[i * block + b]);
    return order_key(sum);
  }
  __device__ __forceinline__ Key first_time(int64_t i) const {
    const Key key = computed(i);
    if constexpr (kept) in_shared[i] = key;
    return key;
  }
  __device__ __forceinline__ Key operator[](int64_t i) const {
    if constexpr (kept) return in_shared[i];
    return computed(i);
  }
};

__device__ __forceinline__ int lane_number() { return thread_of_block() % kLanes; }
__device__ __forceinline__ int warp_number() { return thread_of_block() / kLanes; }
__device__ __forceinline__ int block_threads() { return blockDim.x * blockDim.y; }

template <typename Key>
struct Range {
  Key low, high;

  __device__ __forceinline__ void include(Key low_too, Key high_too) {
    low = low_too < low ? low_too : low;
    high = high_too > high ? high_too : high;
  }
};

template <typename Keys, typename Key = typename Keys::Key>
__device__ __forceinline__ Range<Key> range_of(const Keys& keys, int64_t n) {
  Range<Key> range{static_cast<Key>(~Key{0}), 0};
#pragma unroll 4
  for (int64_t i = thread_of_block(); i < n; i += block_threads()) {
    const Key key = keys.first_time(i);
    range.include(key, key);
  }
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    range.include(__shfl_xor_sync(kAll, range.low, half), __shfl_xor_sync(kAll, range.high, half));
  }
  __shared__ Range<Key> of_warps[kMostWarps];
  if (lane_number() == 0) of_warps[warp_number()] = range;
  __syncthreads();
  for (int w = 0; w < block_threads() / kLanes; ++w) range.include(of_warps[w].low, of_warps[w].high);
  return range;
}

// counts[bucket] of the keys within the buckets' range. Equal ones of a warp are counted by one of its lanes: many
// rows without a gradient have the same score.
template <typename Keys, typename Key>
__device__ __forceinline__ void count_keys(const Keys& keys, int64_t n, const Buckets<Key>& buckets, unsigned* counts) {
  for (int bucket = thread_of_block(); bucket < kBuckets; bucket += block_threads()) counts[bucket] = 0;
  __syncthreads();
#pragma unroll 4
  for (int64_t first = warp_number() * kLanes; first < n; first += block_threads()) {
    const int64_t i = first + lane_number();
    const Key key = i < n ? keys[i] : buckets.low;
    const bool counted = i < n && key >= buckets.low && key <= buckets.high;
    const int bucket = counted ? buckets.of(key) : kBuckets;
    const unsigned peers = __match_any_sync(kAll, bucket);
    if (counted && lane_number() == __ffs(peers) - 1) atomicAdd(&counts[bucket], __popc(peers));
  }
  __syncthreads();
}

// Exclusive sums over the threads of the block, in order.
__device__ __forceinline__ unsigned sum_before(unsigned mine) {
  unsigned sum = mine;
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const unsigned other = __shfl_up_sync(kAll, sum, step);
    if (lane_number() >= step) sum += other;
  }
  __shared__ unsigned of_warps[kMostWarps];
  if (lane_number() == kLanes - 1) of_warps[warp_number()] = sum;
  __syncthreads();
  for (int w = 0; w < warp_number(); ++w) sum += of_warps[w];
  return sum - mine;
}

struct WantedBucket {
  int number;
  unsigned before, in;  // keys in the buckets before it, and in it
};

// The bucket that holds the wanted-th key.
__device__ __forceinline__ WantedBucket find_bucket(const unsigned* counts, int64_t wanted) {
  __shared__ WantedBucket bucket;
  const int each = kBuckets / block_threads();  // both are powers of two
  const unsigned* const mine = counts + thread_of_block() * each;
  unsigned sum = 0;
  for (int b = 0; b < each; ++b) sum += mine[b];
  unsigned before = sum_before(sum);
  if (before < wanted && wanted <= before + sum) {
    int b = 0;
    for (; before + mine[b] < wanted; ++b) before += mine[b];
    bucket = {thread_of_block() * each + b, before, mine[b]};
  }
  __syncthreads();
  return bucket;
}

template <typename Keys, typename Key = typename Keys::Key>
__device__ __forceinline__ Threshold<Key> block_threshold(const Keys& keys, int64_t n, int64_t wanted,
                                                          unsigned* counts) {
  const Range<Key> range = range_of(keys, n);
  Buckets<Key> buckets(range.low, range.high);
  for (;;) {
    count_keys(keys, n, buckets, counts);
    const WantedBucket bucket = find_bucket(counts, wanted);
    wanted -= bucket.before;
    const Key last = buckets.last(bucket.number);
    if (buckets.of_one_key() || wanted == bucket.in) return {last, wanted};  // all of the bucket, or ties
    buckets = Buckets<Key>(buckets.first(bucket.number), last);
  }
}

// rows = the rows of the keys up to the threshold, ascending.
template <typename Keys, typename Key>
__device__ __forceinline__ void write_rows(const Keys& keys, int64_t n, const Threshold<Key>& last, int64_t first_row,
                                           int64_t* rows) {
  const int64_t warps = block_threads() / kLanes, stretch = ceil_div(ceil_div(n, warps), kLanes) * kLanes;
  const int64_t begin = warp_number() * stretch, end = begin + stretch < n ? begin + stretch : n;
  unsigned less = 0, ties = 0;
#pragma unroll 4
  for (int64_t i = begin + lane_number(); i < end; i += kLanes) {
    const Key key = keys[i];
    less += key < last.key;
    ties += key == last.key;
  }
  int64_t less_before = sum_before(less);
  __syncthreads();
  int64_t ties_before = sum_before(ties);
  less_before = __shfl_sync(kAll, less_before, 0);
  ties_before = __shfl_sync(kAll, ties_before, 0);

  const unsigned lanes_before = (1u << lane_number()) - 1;
  for (int64_t start = begin; start < end; start += kLanes) {
    const int64_t i = start + lane_number();
    const Key key = i < end ? keys[i] : last.key;
    const unsigned is_less = __ballot_sync(kAll, i < end && key < last.key);
    const unsigned is_tie = __ballot_sync(kAll, i < end && key == last.key);
    const int64_t less_here = less_before + __popc(is_less & lanes_before);
    const int64_t ties_here = ties_before + __popc(is_tie & lanes_before);
    const bool tie_taken = i < end && key == last.key && ties_here < last.ties;
    if ((i < end && key < last.key) || tie_taken) {
      const int64_t place = less_here + (ties_here < last.ties ? ties_here : last.ties);
      for (int64_t b = 0; b < keys.block; ++b) rows[place * keys.block + b] = first_row + i * keys.block + b;
    }
    less_before += __popc(is_less);
    ties_before += __popc(is_tie);
  }
}

// rows[wanted, block] of scores[n, block], the first of which is row `first_row`. counts[kBuckets] and the keys are in
// shared memory, which nobody else uses meanwhile.
template <bool kept, typename T>
__device__ __forceinline__ void select_of_group(const T* scores, int64_t n, int64_t wanted, int64_t block,
                                                int64_t first_row, unsigned* counts, void* in_shared, int64_t* rows) {
  using Key = typename Keys<T, kept>::Key;
  const Keys<T, kept> keys{scores, block, static_cast<Key*>(in_shared)};
  const Threshold<Key> last = block_threshold(keys, n, wanted, counts);
  write_rows(keys, n, last, first_row, rows);
}

// The op (select_rows.cu).
Tensor select_rows(Tensor scores, int64_t k, int64_t block, int64_t groups);

// Bytes of a key of a score.
template <typename T>
constexpr int64_t kKeyBytes = sizeof(typename Keys<T, true>::Key);

}  // namespace wuskern
