// From logits to tokens. Deterministic: the random number of a draw is a function of (seed, position) only, so a
// request's tokens do not depend on the batch it ran in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/context.h"

namespace tandem::kernels {

struct SampleParams {
  float temperature = 1.0f;  // below 1e-6: greedy
  int32_t top_k = -1;        // -1: all
  float top_p = 1.0f, min_p = 0.0f;
  float frequency_penalty = 0, presence_penalty = 0;  // over output tokens
  float repetition_penalty = 1.0f;                    // over prompt and output tokens
  uint64_t seed = 0;
  int64_t position = 0;                     // of the token to be sampled in its sequence
  std::span<const int32_t> prompt, output;  // token history, for penalties; may be empty without penalties
  std::span<const std::pair<int32_t, float>> logit_bias;
  std::span<const int32_t> banned;  // ids that must not come (min_new_tokens: end of sentence ...)
  bool want_logprob = false;
  int32_t top_logprobs = 0;                    // how many best alternatives to report
  std::span<const int32_t> token_ids_logprob;  // ids whose log-probability to report
};

struct SampleResult {
  int32_t token = -1;
  float logprob = 0;  // of the token under softmax(logits after penalties and bias / temperature; greedy: / 1)
  std::vector<std::pair<int32_t, float>> top;  // filled only when asked for
  std::vector<float> token_ids;
  bool finite = true;  // false: the row held NaN or no finite logit; token is 0
};

// logits [R, vocab] f32, changed in place; params and results have R entries. Ties: the lower id wins.
// Order as in SGLang: bias, penalties, temperature, top-k, top-p, min-p, draw.
void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results);

// Bytes of workspace that sample takes.
size_t sample_workspace_bytes(const Context& ctx, int32_t vocab);

}  // namespace tandem::kernels
