// new_output(like, size): a new tensor whose memory, where it is large, the system is asked to back by huge pages.
// glibc maps such a block anew for every tensor; faulted in by pages of 4 KiB, writing it takes several times as long.
#include <sys/mman.h>

#include <cstdint>

#include "../torch/checks.h"

namespace wuskern {
namespace {

constexpr uintptr_t kHugePage = 2 << 20;
constexpr int64_t kLarge = 16 << 20;  // bytes; smaller blocks are recycled by the allocator

Tensor new_output(Tensor like, std::vector<int64_t> size) {
  check_new(like, size);
  Tensor out = new_tensor(like, size);
#if defined(MADV_HUGEPAGE)
  const int64_t bytes = out.numel() * out.element_size();
  if (bytes >= kLarge) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage,
                    last = (begin + bytes) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: refused, nothing is lost
  }
#endif
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("new_output", TORCH_BOX(&wuskern::new_output)); }
