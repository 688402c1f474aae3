// cpu_capability() -> str: what `wuskern doctor` prints.
#include "capability.h"

#include "../torch/stable_abi.h"

namespace wuskern {
namespace {

std::string cpu_capability() { return name(capability()); }

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&wuskern::cpu_capability));
}
