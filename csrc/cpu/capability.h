// Which instruction set the kernels of this library run with: the widest that the processor has. A file of kernels is
// compiled once per set (CMakeLists.txt has their flags); WUSKERN_CPU_CAPABILITY asks for a narrower one.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace wuskern {

enum class Capability { baseline, avx2, avx512 };

#if defined(__x86_64__)
#define WUSKERN_FOR_EACH_CAPABILITY(DO) DO(avx512) DO(avx2) DO(baseline)
#else
#define WUSKERN_FOR_EACH_CAPABILITY(DO) DO(baseline)
#endif

inline const char* name(Capability capability) {
  switch (capability) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

inline Capability processor_capability() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return Capability::avx512;
  if (avx2) return Capability::avx2;
#endif
  return Capability::baseline;
}

// Chosen once per process.
inline Capability capability() {
  static const Capability chosen = [] {
    const Capability widest = processor_capability();
    const char* wish = std::getenv("WUSKERN_CPU_CAPABILITY");
    if (wish == nullptr || *wish == '\0') return widest;
    for (const Capability c : {Capability::baseline, Capability::avx2, Capability::avx512}) {
      if (c <= widest && std::string(wish) == name(c)) return c;
    }
    throw std::runtime_error(std::string("WUSKERN_CPU_CAPABILITY: expected baseline or a wider set up to this "
                                         "processor's ") +
                             name(widest) + " (baseline, avx2, avx512), got '" + wish + "'");
  }();
  return chosen;
}

}  // namespace wuskern
