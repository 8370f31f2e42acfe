#include "kernels/backends.h"
#include "kernels/cpu/product.h"
#include "kernels/ref/ref.h"

namespace tandem::kernels::cpu {

void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  const Leaf& leaf = leaf_of(ctx);
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t vocab = int32_t(logits.dim(1));
  const size_t per_thread = (ref::sample_scratch_bytes(vocab) + 63) / 64 * 64;
  char* scratch = ctx.workspace->take_array<char>(per_thread * size_t(ctx.pool->num_threads()));
  ctx.pool->parallel_for(int64_t(params.size()), [&](int64_t r, int thread) {
    ref::sample_row({leaf.argmax, leaf.exp_below}, logits.as<float>() + r * vocab, vocab, params[size_t(r)],
                    results[size_t(r)], scratch + per_thread * size_t(thread));
  });
}

}  // namespace tandem::kernels::cpu
