// cuda_architectures() -> str: what this library has machine code for, as CMake was asked for it ("8.0 9.0a 12.0+PTX").
#include "../torch/stable_abi.h"

namespace wuskern {
namespace {

std::string cuda_architectures() { return WUSKERN_CUDA_ARCHITECTURES; }

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&wuskern::cuda_architectures));
}
