#include "kernels/context.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tandem::kernels {

#if defined(__x86_64__)
namespace {

// Asked of the processor: clang 14's __builtin_cpu_supports does not know this name.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

}  // namespace
#endif

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
  }
  return "unknown";
}

bool cpu_supports(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::kAvx2: return avx2;
    case Isa::kAvx512: return avx512;
    case Isa::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  }
#endif
  static_cast<void>(isa);
  return false;
}

Isa best_isa() {
  if (cpu_supports(Isa::kAvx512Bf16)) return Isa::kAvx512Bf16;
  if (cpu_supports(Isa::kAvx512)) return Isa::kAvx512;
  return Isa::kAvx2;
}

}  // namespace tandem::kernels
