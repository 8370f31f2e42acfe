#include "engine/step/sampler.h"

#include <algorithm>

#include "base/check.h"

namespace tandem::engine {
namespace {

kernels::SampleParams params_of(const Request& request) {
  const api::SamplingParams& asked = *request.input.sampling;
  kernels::SampleParams params;
  params.temperature = float(asked.temperature);
  params.top_k = asked.top_k;
  params.top_p = float(asked.top_p);
  params.min_p = float(asked.min_p);
  params.frequency_penalty = float(asked.frequency_penalty);
  params.presence_penalty = float(asked.presence_penalty);
  params.repetition_penalty = float(asked.repetition_penalty);
  params.seed = request.seed;
  params.position = request.num_tokens();
  const std::span<const int32_t> tokens(request.tokens);
  params.prompt = tokens.first(size_t(request.prompt_tokens));
  params.output = tokens.subspan(size_t(request.prompt_tokens));
  params.logit_bias = asked.logit_bias;
  if (request.output_tokens() < asked.min_new_tokens) params.banned = request.stop_ids;
  params.want_logprob = request.input.return_logprob;
  if (request.input.return_logprob) {
    params.top_logprobs = request.input.top_logprobs_num;
    params.token_ids_logprob = request.input.token_ids_logprob;
  }
  return params;
}

}  // namespace

Sampler::Sampler(int64_t max_rows) {
  params_.reserve(size_t(max_rows));
  results_.reserve(size_t(max_rows));
}

// An input row is not drawn from: its distribution is read at the token that the prompt has next.
void Sampler::prepare_input_row(const Request& request, int32_t position, kernels::SampleParams& params) {
  const size_t begin = wanted_ids_.size();
  wanted_ids_.push_back(request.tokens[size_t(position) + 1]);
  const std::vector<int32_t>& more = request.input.token_ids_logprob;
  wanted_ids_.insert(wanted_ids_.end(), more.begin(), more.end());
  params.temperature = 0;
  params.top_logprobs = request.input.top_logprobs_num;
  params.want_logprob = true;
  params.token_ids_logprob = std::span<const int32_t>(wanted_ids_).subspan(begin);
}

void Sampler::run(const kernels::Context& context, const Batch& batch) {
  const auto num_rows = size_t(batch.num_rows());
  size_t num_wanted = 0;
  for (const BatchEntry& entry : batch.entries()) {
    num_wanted += size_t(entry.input_rows()) * (1 + entry.request->input.token_ids_logprob.size());
  }
  wanted_ids_.clear();
  wanted_ids_.reserve(num_wanted);  // spans into it stay valid below
  params_.assign(num_rows, {});
  results_.resize(num_rows);
  for (const BatchEntry& entry : batch.entries()) {
    const Request& request = *entry.request;
    const int32_t first = std::max(entry.first_token, request.first_logprob_position());
    for (int32_t i = 0; i < entry.input_rows(); ++i) {
      prepare_input_row(request, first + i, params_[size_t(entry.first_row + i)]);
    }
    if (entry.samples) params_[size_t(entry.first_row + entry.num_rows - 1)] = params_of(request);
  }
  if (num_rows == 0) return;
  kernels::sample(context, batch.logits(), params_, results_);
  for (const BatchEntry& entry : batch.entries()) {
    Request& request = *entry.request;
    const int32_t first = std::max(entry.first_token, request.first_logprob_position());
    for (int32_t i = 0; i < entry.input_rows(); ++i) {
      const kernels::SampleResult& row = results_[size_t(entry.first_row + i)];
      CHECK(!row.token_ids.empty());
      api::TokenLogprob logprob;
      logprob.token = request.tokens[size_t(first + i) + 1];
      logprob.logprob = row.token_ids.front();
      logprob.top = row.top;
      logprob.token_ids.assign(row.token_ids.begin() + 1, row.token_ids.end());
      request.input_logprobs.push_back(std::move(logprob));
    }
  }
}

const kernels::SampleResult& Sampler::result(const BatchEntry& entry) const {
  CHECK(entry.samples);
  return results_[size_t(entry.first_row + entry.num_rows - 1)];
}

api::TokenLogprob to_logprob(const kernels::SampleResult& result) {
  api::TokenLogprob logprob;
  logprob.logprob = result.logprob;
  logprob.token = result.token;
  logprob.top = result.top;
  logprob.token_ids = result.token_ids;
  return logprob;
}

std::optional<Ending> check_finish(const Request& request) {
  CHECK(request.output_tokens() > 0);
  if (request.output_tokens() >= request.max_new_tokens) return finished_by_length(request.output_tokens());
  if (request.input.sampling->ignore_eos) return std::nullopt;
  const int32_t token = request.tokens.back();
  if (std::ranges::find(request.stop_ids, token) == request.stop_ids.end()) return std::nullopt;
  Ending ending;
  ending.finish.kind = api::FinishKind::kStopToken;
  ending.finish.matched_token = token;
  return ending;
}

}  // namespace tandem::engine
