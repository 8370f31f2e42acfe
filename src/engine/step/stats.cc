#include "engine/step/stats.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/step/times.h"

namespace tandem::engine {
namespace {

double share(int64_t part, int64_t whole) { return whole > 0 ? double(part) / double(whole) : 0; }

using scheduler::RequestState;

void observe(const profile::Histogram& histogram, const std::optional<double>& value) {
  if (value) histogram.observe(*value);
}

const std::vector<double> kSecondsBounds = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                                            1,     2,     5,     10,   20,   50,   100, 200, 500};

}  // namespace

std::string prefill_line(const PrefillFigures& batch, const LoadFigures& load, bool is_pd_prefill) {
  std::string line = fmt::format(
      "Prefill batch, #new-seq: {}, #new-token: {}, #cached-token: {}, token usage: {:.2f}, #running-req: {}, "
      "#queue-req: {}, ",
      batch.new_sequences, batch.new_tokens, batch.cached_tokens, share(load.used_tokens, load.total_tokens),
      load.running, load.queued);
  if (is_pd_prefill) {
    line += fmt::format("#prealloc-req: {}, #inflight-req: {}, input throughput (token/s): {:.2f}, ", load.prealloc,
                        load.inflight, batch.input_throughput);
  }
  return line;
}

std::string decode_line(const DecodeFigures& batch, const LoadFigures& load, bool is_pd_decode) {
  std::string line = fmt::format("Decode batch, #running-req: {}, #token: {}, token usage: {:.2f}, ", batch.running,
                                 load.used_tokens, share(load.used_tokens, load.total_tokens));
  if (is_pd_decode) {
    line += fmt::format("pre-allocated usage: {:.2f}, #prealloc-req: {}, #transfer-req: {}, #retracted-req: {}, ",
                        share(load.preallocated_tokens, load.total_tokens), load.prealloc, load.transferring,
                        load.retracted);
  }
  line += fmt::format("cuda graph: {}, gen throughput (token/s): {:.2f}, #queue-req: {}, ",
                      batch.is_recorded ? "True" : "False", batch.throughput, load.queued);
  return line;
}

double RateMeter::take(TimePoint now) {
  const double elapsed = since_ == TimePoint{} ? 0 : seconds(now - since_);
  const double rate = elapsed > 0 ? double(tokens_) / elapsed : 0;
  tokens_ = 0;
  since_ = now;
  return rate;
}

SchedulerMetrics::SchedulerMetrics(profile::Metrics& metrics, const std::string& model_name, int32_t dp_rank,
                                   int32_t tp_rank) {
  const profile::Labels labels = {{"model_name", model_name},
                                  {"engine_type", "unified"},
                                  {"tp_rank", std::to_string(tp_rank)},
                                  {"pp_rank", "0"},
                                  {"dp_rank", std::to_string(dp_rank)}};
  const auto gauge = [&](const char* name, const char* help) { return metrics.gauge(name, help, labels); };
  const auto counter = [&](const char* name, const char* help) { return metrics.counter(name, help, labels); };
  bootstrap_failed = counter("sglang:num_bootstrap_failed_reqs_total", "Requests whose handshake failed.");
  transfer_failed = counter("sglang:num_transfer_failed_reqs_total", "Requests whose KV handover failed.");
  digest_mismatches = counter("tandem:handover_digest_mismatches_total", "Handovers whose bytes did not compare.");
  retractions = counter("tandem:retractions_total", "Requests that gave way to others.");
  running_ = gauge("sglang:num_running_reqs", "Requests that decode.");
  used_tokens_ = gauge("sglang:num_used_tokens", "KV tokens in use.");
  token_usage_ = gauge("sglang:token_usage", "Share of the KV pool in use.");
  gen_throughput_ = gauge("sglang:gen_throughput", "Generated tokens per second.");
  queued_ = gauge("sglang:num_queue_reqs", "Requests that wait.");
  cache_hit_rate_ = gauge("sglang:cache_hit_rate", "Share of prompt tokens served from the prefix cache.");
  total_tokens_ = gauge("sglang:max_total_num_tokens", "KV pool, tokens.");
  retracted_ = gauge("sglang:num_retracted_reqs", "Requests that are retracted now.");
  utilization_ = gauge("sglang:utilization", "Share of the KV pool in use; -1 on prefill servers.");
  new_token_ratio_ = gauge("sglang:new_token_ratio", "Expected share of max_new_tokens.");
  prefill_prealloc_ = gauge("sglang:num_prefill_prealloc_queue_reqs", "Prefill: decode has not asked yet.");
  prefill_inflight_ = gauge("sglang:num_prefill_inflight_queue_reqs", "Prefill: KV kept for decode.");
  decode_prealloc_ = gauge("sglang:num_decode_prealloc_queue_reqs", "Decode: waiting for handshake and blocks.");
  decode_transfer_ = gauge("sglang:num_decode_transfer_queue_reqs", "Decode: KV being read.");
  transfer_speed_ = gauge("sglang:kv_transfer_speed_gb_s", "Of the last handover.");
  transfer_latency_ = gauge("sglang:kv_transfer_latency_ms", "Of the last handover.");
  sleep_seconds_ = gauge("tandem:forward_sleep_seconds", "Sleep before each step (slow_down).");
  held_for_ = gauge("tandem:held_for_requests", "Requests that decode waits for (hold_admission).");
  queue_time_ =
      metrics.histogram("sglang:queue_time_seconds", "Time before a request first ran.", labels, kSecondsBounds);
  const auto stage = [&](const char* name) {
    profile::Labels with_stage = labels;
    with_stage["stage"] = name;
    return metrics.histogram("sglang:per_stage_req_latency_seconds", "Time in each stage.", with_stage, kSecondsBounds);
  };
  handovers_ = counter("tandem:handovers_total", "Requests whose KV went from prefill to decode.");
  handover_bytes_ = counter("tandem:handover_bytes_total", "KV bytes of those: given on prefill, read on decode.");
  // Of a server without speculative decoding these stay 0; dashboards ask for them.
  gauge("sglang:spec_accept_length", "Tokens per request and verification.");
  gauge("sglang:spec_accept_rate", "Share of drafted tokens that were accepted.");
  const auto of_kind = [&](const char* kind) {
    profile::Labels with_kind = labels;
    with_kind["kind"] = kind;
    return with_kind;
  };
  const auto step_seconds = [&](const char* kind) {
    return metrics.histogram("tandem:step_seconds", "From a step's end to the next one's while there was work.",
                             of_kind(kind), kSecondsBounds);
  };
  const auto step_tokens = [&](const char* kind) {
    return metrics.counter("tandem:step_tokens_total", "Tokens drawn by decode steps, computed by prefill steps.",
                           of_kind(kind));
  };
  decode_step_ = step_seconds("decode");
  prefill_step_ = step_seconds("prefill");
  decode_tokens_ = step_tokens("decode");
  prefill_tokens_ = step_tokens("prefill");
  stage_bootstrap_ = stage("bootstrap");
  stage_prefill_ = stage("prefill_forward");
  stage_inflight_ = stage("prefill_transfer_kv_cache");
  stage_transfer_ = stage("decode_transferred");
  stage_decode_ = stage("decode_forward");
}

void SchedulerMetrics::show(const LoadFigures& load, double gen_throughput, double new_token_ratio, bool is_prefill) {
  const double usage = share(load.used_tokens, load.total_tokens);
  running_.set(load.running);
  used_tokens_.set(double(load.used_tokens));
  token_usage_.set(usage);
  gen_throughput_.set(gen_throughput);
  queued_.set(load.queued);
  total_tokens_.set(double(load.total_tokens));
  retracted_.set(load.retracted);
  utilization_.set(is_prefill ? -1 : usage);
  new_token_ratio_.set(new_token_ratio);
  prefill_prealloc_.set(is_prefill ? load.prealloc : 0);
  prefill_inflight_.set(load.inflight);
  decode_prealloc_.set(is_prefill ? 0 : load.prealloc);
  decode_transfer_.set(load.transferring);
}

void SchedulerMetrics::observe_end(const scheduler::Lifecycle& life) {
  const RequestState end = life.state;
  observe(queue_time_, between(life, RequestState::kWaiting, RequestState::kPrefilling));
  observe(queue_time_, between(life, RequestState::kArrived, RequestState::kRunning));
  observe(stage_bootstrap_, between(life, RequestState::kBootstrapping, RequestState::kWaiting));
  observe(stage_bootstrap_, between(life, RequestState::kPreparing, RequestState::kReserved));
  observe(stage_inflight_, between(life, RequestState::kInflight, end));
  observe(stage_transfer_, between(life, RequestState::kReserved, RequestState::kArrived));
  observe(stage_decode_, between(life, RequestState::kRunning, end));
  const RequestState after =
      life.kind == scheduler::LifeKind::kPrefill ? RequestState::kInflight : RequestState::kRunning;
  observe(stage_prefill_, between(life, RequestState::kPrefilling, after));
}

void SchedulerMetrics::show_pace(double sleep_seconds, int32_t held_for) {
  sleep_seconds_.set(sleep_seconds);
  held_for_.set(held_for);
}

void SchedulerMetrics::step_done(bool is_decode, double seconds, int64_t tokens) {
  (is_decode ? decode_step_ : prefill_step_).observe(seconds);
  (is_decode ? decode_tokens_ : prefill_tokens_).add(double(tokens));
}

void SchedulerMetrics::show_handovers(uint64_t handovers, uint64_t bytes) {
  handovers_.add(double(handovers) - handovers_.value());
  handover_bytes_.add(double(bytes) - handover_bytes_.value());
}

void SchedulerMetrics::handover_done(double gigabytes_per_s, double latency_ms) {
  transfer_speed_.set(gigabytes_per_s);
  transfer_latency_.set(latency_ms);
}

}  // namespace tandem::engine
