#include "kernels/backends.h"
#include "kernels/cpu/product.h"
#include "kernels/ref/ref.h"

namespace tandem::kernels::cpu {
namespace {

// Greedy with nothing else asked for: the largest logit.
bool is_plain_greedy(const SampleParams& p) {
  return p.temperature < 1e-6f && p.frequency_penalty == 0 && p.presence_penalty == 0 && p.repetition_penalty == 1.0f &&
         p.logit_bias.empty() && p.banned.empty() && !p.want_logprob && p.top_logprobs == 0 &&
         p.token_ids_logprob.empty();
}

}  // namespace

void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  const Leaf& leaf = leaf_of(ctx);
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t vocab = int32_t(logits.dim(1));
  const size_t per_thread = (ref::sample_scratch_bytes(vocab) + 63) / 64 * 64;
  char* scratch = ctx.workspace->take_array<char>(per_thread * size_t(ctx.pool->num_threads()));
  ctx.pool->parallel_for(int64_t(params.size()), [&](int64_t r, int thread) {
    float* row = logits.as<float>() + r * vocab;
    SampleResult& result = results[size_t(r)];
    if (!is_plain_greedy(params[size_t(r)])) {
      ref::sample_row(row, vocab, params[size_t(r)], result, scratch + per_thread * size_t(thread));
      return;
    }
    const int64_t best = leaf.argmax(row, vocab);
    const bool finite = best >= 0 && row[best] - row[best] == 0.0f;
    result = SampleResult{};
    result.token = finite ? int32_t(best) : 0;
    result.finite = finite;
  });
}

}  // namespace tandem::kernels::cpu
