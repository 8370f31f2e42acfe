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

bool has_penalties(const SampleParams& p) {
  return p.frequency_penalty != 0 || p.presence_penalty != 0 || p.repetition_penalty != 1.0f;
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

// One row after bias, penalties and temperature.
struct Row {
  const float* logits;
  const float* weights;  // exp(logit - best logit)
  double total;          // sum of weights
  int32_t best;
  int32_t vocab;
  int32_t* order;  // scratch [vocab]
};

double sum(const float* x, int32_t count) {
  double parts[4] = {};
  int32_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int32_t j = 0; j < 4; ++j) parts[j] += double(x[i + j]);
  }
  for (; i < count; ++i) parts[0] += double(x[i]);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// First of order[0, kept) (or of all ids, order null) at which the running weight passes `at` of their total.
int32_t draw(const Row& row, const int32_t* order, int32_t kept, double at) {
  double total = row.total;
  if (order != nullptr) {
    total = 0;
    for (int32_t i = 0; i < kept; ++i) total += double(row.weights[order[i]]);
  }
  double reached = 0;
  for (int32_t i = 0; i < kept; ++i) {
    const int32_t id = order == nullptr ? i : order[i];
    reached += double(row.weights[id]);
    if (reached > at * total) return id;
  }
  return row.best;  // rounding left the last sum at the target
}

void sort_best(const Row& row, int32_t count) {
  std::partial_sort(row.order, row.order + count, row.order + row.vocab, BestFirst{row.logits});
}

// Ids that survive top-k, then top-p of what is left, are order[0, n), best first; returns n.
int32_t keep_top(const Row& row, const SampleParams& params) {
  int32_t limit = row.vocab;
  double total = row.total;
  if (params.top_k > 0 && params.top_k < row.vocab) {
    limit = params.top_k;
    sort_best(row, limit);
    total = 0;
    for (int32_t i = 0; i < limit; ++i) total += double(row.weights[row.order[i]]);
    if (params.top_p >= 1.0f) return limit;
  }
  // The smallest prefix that reaches top_p. Without top-k only as much is sorted as turns out to be needed.
  int32_t sorted = limit < row.vocab ? limit : 0;
  double reached = 0;
  for (int32_t i = 0; i < limit; ++i) {
    if (i == sorted) {
      sorted = std::min(limit, sorted == 0 ? 64 : sorted * 4);
      sort_best(row, sorted);
    }
    reached += double(row.weights[row.order[i]]);
    if (reached >= double(params.top_p) * total) return i + 1;
  }
  return limit;
}

int32_t choose(const Row& row, const SampleParams& params) {
  const double at = uniform(params.seed, params.position);
  const bool top = (params.top_k > 0 && params.top_k < row.vocab) || params.top_p < 1.0f;
  if (!top && params.min_p <= 0) return draw(row, nullptr, row.vocab, at);
  for (int32_t i = 0; i < row.vocab; ++i) row.order[i] = i;
  int32_t kept = top ? keep_top(row, params) : row.vocab;
  if (params.min_p > 0) {  // relative to the best, whose weight is 1
    int32_t strong = 0;
    for (int32_t i = 0; i < kept; ++i) {
      if (row.weights[row.order[i]] >= params.min_p || row.order[i] == row.best) row.order[strong++] = row.order[i];
    }
    kept = strong;
  }
  return draw(row, row.order, kept, at);
}

void report_logprobs(const Row& row, const SampleParams& params, SampleResult& result) {
  const double log_sum = std::log(row.total) + double(row.logits[row.best]);
  const auto logprob = [&](int32_t id) { return float(double(row.logits[id]) - log_sum); };
  if (params.want_logprob) result.logprob = logprob(result.token);
  if (params.top_logprobs > 0) {
    const int32_t count = std::min(params.top_logprobs, row.vocab);
    for (int32_t i = 0; i < row.vocab; ++i) row.order[i] = i;
    sort_best(row, count);
    for (int32_t i = 0; i < count; ++i) result.top.emplace_back(row.order[i], logprob(row.order[i]));
  }
  for (const int32_t id : params.token_ids_logprob) {
    result.token_ids.push_back(is_id(id, row.vocab) ? logprob(id) : kGone);
  }
}

int64_t plain_argmax(const float* x, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(x[i])) return -1;
    if (x[i] > x[best]) best = i;
  }
  return best;
}

void plain_exp_below(const float* x, int64_t count, float top, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = std::exp(x[i] - top);
}

}  // namespace

size_t sample_scratch_bytes(int32_t vocab) { return size_t(vocab) * (sizeof(int32_t) + sizeof(float)); }

void sample_row(const RowMath& math, float* logits, int32_t vocab, const SampleParams& params, SampleResult& result,
                void* scratch) {
  int32_t* order = static_cast<int32_t*>(scratch);
  float* weights = reinterpret_cast<float*>(order + vocab);
  result = SampleResult{};
  apply_bias(logits, vocab, params);
  if (has_penalties(params)) {
    std::fill_n(order, vocab, 0);
    apply_penalties(logits, vocab, params, order);
  }
  for (const int32_t id : params.banned) {
    if (is_id(id, vocab)) logits[id] = kGone;
  }
  const int64_t best = math.argmax(logits, vocab);
  result.finite = best >= 0 && std::isfinite(logits[best]);
  result.token = result.finite ? int32_t(best) : 0;
  if (!result.finite) return;
  const bool greedy = params.temperature < 1e-6f;
  const bool report = params.want_logprob || params.top_logprobs > 0 || !params.token_ids_logprob.empty();
  if (greedy && !report) return;
  if (!greedy && params.temperature != 1.0f) {
    for (int32_t i = 0; i < vocab; ++i) logits[i] /= params.temperature;
  }
  math.exp_below(logits, vocab, logits[best], weights);
  const Row row{logits, weights, sum(weights, vocab), int32_t(best), vocab, order};
  if (!greedy) result.token = choose(row, params);
  if (report) report_logprobs(row, params, result);
}

void sample(const Context& ctx, device::TensorView logits, std::span<const SampleParams> params,
            std::span<SampleResult> results) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int32_t vocab = int32_t(logits.dim(1));
  void* scratch = ctx.workspace->take(sample_scratch_bytes(vocab));
  for (size_t r = 0; r < params.size(); ++r) {
    sample_row({plain_argmax, plain_exp_below}, logits.as<float>() + int64_t(r) * vocab, vocab, params[r], results[r],
               scratch);
  }
}

}  // namespace tandem::kernels::ref
