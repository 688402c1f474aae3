// What PyTorch and the driver say of a GPU, where there is none: wuskern_emulated finds these functions before theirs.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstring>
#include <new>
#include <vector>

#include "cuda_runtime.h"

using wuskern::emulation::settings;

namespace {

// What kernels write to: memory from PyTorch's allocator is replaced by some that holds NaN and ends, but for less than
// 16 bytes, at a page that nobody may touch.
std::vector<std::pair<void*, size_t>> fenced;

void* fenced_memory(size_t bytes) {
  constexpr size_t page = wuskern::emulation::kPage;
  const size_t inside = (bytes + 15) / 16 * 16, size = (inside + page - 1) / page * page + page;
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  fenced.emplace_back(memory, size);
  char* const fence = static_cast<char*>(memory) + size - page;
  if (wuskern::emulation::trace.runs) memset(memory, wuskern::emulation::kPoison, size - page);
  mprotect(fence, page, PROT_NONE);
  return fence - inside;
}

// A tensor like this new one, in fenced memory.
AtenTensorHandle in_fenced_memory(const torch::stable::Tensor& t) {
  AtenTensorHandle handle;
  int32_t dtype;
  auto& trace = wuskern::emulation::trace;
  if (trace.records) trace.lines += "new " + std::to_string(t.numel() * t.element_size()) + "\n";
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(fenced_memory(t.numel() * t.element_size()), t.dim(),
                                                            t.sizes().data(), t.strides().data(), 0, dtype,
                                                            aoti_torch_device_type_cpu(), 0, &handle));
  return handle;
}

}  // namespace

// A device has as many processors as its index says, so that nothing remembered of one is wrong of another.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMultiProcessorCount            ? device
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? static_cast<int>(wuskern::emulation::kMostShared)
           : attribute == cudaDevAttrComputeCapabilityMajor       ? settings.capability / 10
                                                                  : settings.capability % 10;
  return cudaSuccess;
}

extern "C" {

// Read by the tests, through ctypes.
__attribute__((visibility("default"))) void wuskern_emulate(int processors, unsigned seed, bool tensors_on_gpu) {
  settings.processors = processors;
  settings.order.seed(seed);
  settings.tensors_on_gpu = tensors_on_gpu;
}

__attribute__((visibility("default"))) void wuskern_emulate_capability(int capability) {
  settings.capability = capability;
}

__attribute__((visibility("default"))) void wuskern_emulate_stream(unsigned long long stream, bool capturing) {
  settings.stream = stream;
  settings.capturing = capturing;
}

// Forgets what has been written down. `records`, `runs`: see emulation::Trace.
__attribute__((visibility("default"))) void wuskern_trace(bool records, bool runs) {
  wuskern::emulation::trace = {records, runs, ""};
}

__attribute__((visibility("default"))) const char* wuskern_traced() { return wuskern::emulation::trace.lines.c_str(); }

// When nothing lives there any more.
__attribute__((visibility("default"))) void wuskern_free_fenced() {
  for (const auto& [memory, size] : fenced) munmap(memory, size);
  fenced.clear();
}

AOTITorchError torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack, uint64_t version) {
  static const auto real =
      reinterpret_cast<decltype(&torch_call_dispatcher)>(dlsym(RTLD_NEXT, "torch_call_dispatcher"));
  const AOTITorchError result = real(op, overload, stack, version);
  auto& trace = wuskern::emulation::trace;
  if (trace.records && strcmp(op, "aten::new_zeros") == 0) trace.lines += "zeros\n";
  const bool allocates = strcmp(op, "aten::new_empty") == 0 || strcmp(op, "aten::new_empty_strided") == 0;
  if (result == AOTI_TORCH_SUCCESS && allocates) {
    const torch::stable::Tensor made = torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
    stack[0] = torch::stable::detail::from(torch::stable::Tensor(in_fenced_memory(made)));
  }
  return result;
}

AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = settings.processors;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = settings.tensors_on_gpu ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = error == cudaSuccess ? nullptr : strdup("an error of the emulated CUDA runtime");
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { free(message); }

}  // extern "C"
