#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ref/ref.h"

namespace tandem::kernels::ref {
namespace {

constexpr float kGone = -std::numeric_limits<float>::infinity();

// Uniform in [0, 1) from (seed, position) alone: two rounds of the splitmix64 finaliser (Steele et al. 2014).
double uniform(uint64_t seed, int64_t position) {
  uint64_t z = seed;
  for (const uint64_t word : {uint64_t(position), uint64_t(0x5851f42d4c957f2dull)}) {
    z += 0x9e3779b97f4a7c15ull + word * 0xd1342543de82ef95ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
  }
  return double(z >> 11) * 0x1.0p-53;
}

bool is_id(int32_t id, int32_t vocab) { return id >= 0 && id < vocab; }

void apply_bias(float* logits, int32_t vocab, const SampleParams& params) {
  for (const auto& [id, bias] : params.logit_bias) {
    if (is_id(id, vocab)) logits[id] += bias;
  }
}

// counts [vocab] is all zero before and after.
void apply_penalties(float* logits, int32_t vocab, const SampleParams& params, int32_t* counts) {
  if (params.frequency_penalty != 0 || params.presence_penalty != 0) {
    for (const int32_t id : params.output) {
      if (is_id(id, vocab)) ++counts[id];
    }
    for (const int32_t id : params.output) {
      if (!is_id(id, vocab) || counts[id] == 0) continue;
      logits[id] -= params.frequency_penalty * float(counts[id]) + params.presence_penalty;
      counts[id] = 0;
    }
  }
  if (params.repetition_penalty != 1.0f) {
    const auto visit = [&](std::span<const int32_t> ids) {
      for (const int32_t id : ids) {
        if (!is_id(id, vocab) || counts[id] != 0) continue;
        counts[id] = 1;
        logits[id] = logits[id] > 0 ? logits[id] / params.repetition_penalty : logits[id] * params.repetition_penalty;
      }
    };
    visit(params.prompt);
    visit(params.output);
    for (const auto ids : {params.prompt, params.output}) {
      for (const int32_t id : ids) {
        if (is_id(id, vocab)) counts[id] = 0;
      }
    }
  }
}

// Best first; a tie goes to the lower id.
struct BestFirst {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; }
};

// The candidates that survive top-k, top-p and min-p are order[0, n); returns n. `scaled` are logits / temperature.
int32_t cut(const float* scaled, int32_t vocab, const SampleParams& params, double sum, int32_t* order) {
  int32_t kept = vocab;
  const int32_t limit = params.top_k > 0 ? std::min(params.top_k, vocab) : vocab;
  std::partial_sort(order, order + limit, order + vocab, BestFirst{scaled});
  kept = limit;
  const float top = scaled[order[0]];
  if (params.top_p < 1.0f) {  // smallest prefix whose probability reaches top_p, of what top-k left
    double total = sum;
    if (limit < vocab) {
      total = 0;
      for (int32_t i = 0; i < limit; ++i) total += std::exp(double(scaled[order[i]]) - top);
    }
    double reached = 0;
    for (int32_t i = 0; i < kept; ++i) {
      reached += std::exp(double(scaled[order[i]]) - top);
      if (reached >= double(params.top_p) * total) kept = i + 1;
    }
  }
  if (params.min_p > 0) {  // relative to the best candidate
    const double floor = std::log(double(params.min_p)) + top;
    while (kept > 1 && double(scaled[order[kept - 1]]) < floor) --kept;
  }
  return kept;
}

int32_t draw(const float* scaled, const int32_t* order, int32_t kept, double at) {
  const float top = scaled[order[0]];
  double total = 0;
  for (int32_t i = 0; i < kept; ++i) total += std::exp(double(scaled[order[i]]) - top);
  double reached = 0;
  for (int32_t i = 0; i < kept; ++i) {
    reached += std::exp(double(scaled[order[i]]) - top);
    if (reached > at * total) return order[i];
  }
  return order[0];  // only when rounding leaves the last sum at the target
}

void report_logprobs(const float* scaled, int32_t vocab, const SampleParams& params, double log_sum, int32_t* order,
                     SampleResult& result) {
  const auto logprob = [&](int32_t id) { return float(double(scaled[id]) - log_sum); };
  if (params.want_logprob) result.logprob = logprob(result.token);
  if (params.top_logprobs > 0) {
    const int32_t count = std::min(params.top_logprobs, vocab);
    std::partial_sort(order, order + count, order + vocab, BestFirst{scaled});
    for (int32_t i = 0; i < count; ++i) result.top.emplace_back(order[i], logprob(order[i]));
  }
  for (const int32_t id : params.token_ids_logprob) {
    result.token_ids.push_back(is_id(id, vocab) ? logprob(id) : kGone);
  }
}

}  // namespace

size_t sample_scratch_bytes(int32_t vocab) { return size_t(vocab) * 2 * sizeof(int32_t); }

void sample_row(float* logits, int32_t vocab, const SampleParams& params, SampleResult& result, void* scratch) {
  int32_t* order = static_cast<int32_t*>(scratch);
  int32_t* counts = order + vocab;
  std::fill_n(counts, vocab, 0);
  result.top.clear();
  result.token_ids.clear();
  result.logprob = 0;
  apply_bias(logits, vocab, params);
  apply_penalties(logits, vocab, params, counts);
  for (const int32_t id : params.banned) {
    if (is_id(id, vocab)) logits[id] = kGone;
  }
  const bool greedy = params.temperature < 1e-6f;
  int32_t best = 0;
  bool nan = false;
  for (int32_t i = 0; i < vocab; ++i) {
    nan |= std::isnan(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  result.finite = !nan && std::isfinite(logits[best]);
  result.token = result.finite ? best : 0;
  if (!result.finite) return;
  const bool report = params.want_logprob || params.top_logprobs > 0 || !params.token_ids_logprob.empty();
  if (greedy && !report) return;
  if (!greedy) {
    for (int32_t i = 0; i < vocab; ++i) logits[i] /= params.temperature;
  }
  const float top = logits[best];
  double sum = 0;
  for (int32_t i = 0; i < vocab; ++i) {
    order[i] = i;
    sum += std::exp(double(logits[i]) - top);
  }
  if (!greedy) {
    const int32_t kept = cut(logits, vocab, params, sum, order);
    result.token = draw(logits, order, kept, uniform(params.seed, params.position));
  }
  if (report) report_logprobs(logits, vocab, params, std::log(sum) + top, order, result);
}

void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t vocab = int32_t(logits.dim(1));
  void* scratch = ctx.workspace->take(sample_scratch_bytes(vocab));
  for (size_t r = 0; r < params.size(); ++r) {
    sample_row(logits.as<float>() + int64_t(r) * vocab, vocab, params[r], results[r], scratch);
  }
}

}  // namespace tandem::kernels::ref
