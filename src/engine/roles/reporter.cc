#include "engine/roles/reporter.h"

#include "base/log.h"

namespace tandem::engine {
namespace {

constexpr Duration kIdleRefresh = std::chrono::seconds(30);

}  // namespace

Reporter::Reporter(Core& core) : core_(core) {
  generated_.take(core.now());  // rates count from here
  prefilled_.take(core.now());
}

void Reporter::show(const LoadFigures& load, double new_token_ratio) {
  const bool is_prefill = core_.config.role == Role::kPrefill;
  core_.metrics.show(load, core_.last_gen_throughput, new_token_ratio, is_prefill);
  const uint64_t prompt_tokens = core_.prompt_tokens_computed + core_.prompt_tokens_cached;
  if (prompt_tokens > 0) core_.metrics.show_cache_hit_rate(double(core_.prompt_tokens_cached) / double(prompt_tokens));
  shown_at_ = core_.now();
}

void Reporter::prefill_formed(const PrefillFigures& figures, const LoadFigures& load, double new_token_ratio) {
  const bool is_pd = core_.config.role == Role::kPrefill;
  PrefillFigures line = figures;
  line.input_throughput = prefilled_.take(core_.now());
  prefilled_.add(figures.new_tokens);
  if (is_pd) core_.last_gen_throughput = line.input_throughput;
  log::write(log::Level::kInfo, core_.config.log_scope, prefill_line(line, load, is_pd));
  if (core_.config.log_forward_iters) {
    log::write(
        log::Level::kInfo, core_.config.log_scope,
        fmt::format("forward mode=extend new_sequences={} tokens={}", figures.new_sequences, figures.new_tokens));
  }
  show(load, new_token_ratio);
}

void Reporter::decode_done(int32_t num_running, int64_t tokens, const LoadFigures& load, double new_token_ratio) {
  generated_.add(tokens);
  steps_since_line_ += 1;
  if (core_.config.log_forward_iters) {
    log::write(log::Level::kInfo, core_.config.log_scope,
               fmt::format("forward mode=decode batch_size={} tokens={}", num_running, tokens));
  }
  if (steps_since_line_ < core_.config.decode_log_interval) return;
  steps_since_line_ = 0;
  core_.last_gen_throughput = generated_.take(core_.now());
  const DecodeFigures figures{num_running, core_.last_gen_throughput, core_.parts.model->ran_recorded()};
  log::write(log::Level::kInfo, core_.config.log_scope, decode_line(figures, load, core_.config.role == Role::kDecode));
  show(load, new_token_ratio);
}

void Reporter::idle(const LoadFigures& load, double new_token_ratio) {
  if (core_.now() - shown_at_ >= kIdleRefresh) show(load, new_token_ratio);
}

}  // namespace tandem::engine
