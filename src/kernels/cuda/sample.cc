// Greedy rows are chosen on the GPU. A row that asks for more (temperature, penalties, log-probabilities) is copied to
// the host and goes through the oracle's own code there: params and results are the host's in any case.
#include "kernels/sample.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cuda/argmax.h"
#include "kernels/ref/ref.h"

namespace tandem::kernels::cuda {
namespace {

bool is_plain_greedy(const SampleParams& p) {
  return p.temperature < 1e-6f && p.frequency_penalty == 0 && p.presence_penalty == 0 && p.repetition_penalty == 1.0f &&
         p.logit_bias.empty() && p.banned.empty() && !p.want_logprob && p.top_logprobs == 0 &&
         p.token_ids_logprob.empty();
}

// Host memory for one row and its scratch.
struct HostRow {
  HostRow(const Context& ctx, int32_t vocab)
      : logits(size_t(vocab)),
        workspace(device::Device::kCpu, ref::sample_scratch_bytes(vocab) + 64),
        ctx{Backend::kRef, {}, ctx.pool, &workspace} {}

  std::vector<float> logits;
  device::Workspace workspace;
  Context ctx;
};

}  // namespace

void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  if (params.empty()) return;
  const device::WorkspaceScope scope(*ctx.workspace);
  const auto vocab = int32_t(logits.dim(1));
  auto* best = ctx.workspace->take_array<int32_t>(params.size());
  argmax(ctx, logits, best);
  std::vector<int32_t> chosen(params.size());
  ctx.stream->synchronize();
  device::copy_bytes(chosen.data(), best, chosen.size() * sizeof(int32_t));
  std::optional<HostRow> host;
  for (size_t r = 0; r < params.size(); ++r) {
    if (is_plain_greedy(params[r])) {
      results[r] = SampleResult{};
      results[r].finite = chosen[r] >= 0;
      results[r].token = std::max(chosen[r], 0);
      continue;
    }
    if (!host) host.emplace(ctx, vocab);
    device::copy_bytes(host->logits.data(), logits.as<float>() + int64_t(r) * vocab, size_t(vocab) * sizeof(float));
    const device::TensorView row(host->logits.data(), device::DType::kF32, {1, vocab});
    ref::sample(host->ctx, row, params.subspan(r, 1), results.subspan(r, 1));
  }
}

}  // namespace tandem::kernels::cuda
