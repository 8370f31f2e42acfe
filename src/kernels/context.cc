#include "kernels/context.h"

namespace tandem::kernels {

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
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
