#include "kernels/sample.h"

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/work.h"

namespace tandem::kernels {

void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  CHECK(logits.rank() == 2 && logits.dtype() == device::DType::kF32 && logits.dim(1) > 0);
  CHECK(int64_t(params.size()) == logits.dim(0) && results.size() == params.size());
  profile::OpSpan span(ctx.spans, "sample");
  if (span) note_rows(span, logits, 1, bytes_of(logits));
  switch (ctx.backend) {
    case Backend::kRef: return ref::sample(ctx, logits, params, results);
    case Backend::kCpu: return cpu::sample(ctx, logits, params, results);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::sample(ctx, logits, params, results);
  }
}

size_t sample_workspace_bytes(const Context& ctx, int32_t vocab) {
  return (size_t(vocab) * 2 * sizeof(int32_t) + 64) * size_t(ctx.pool->num_threads());
}

}  // namespace tandem::kernels
