#include "app/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/node_group.h"

namespace tandem::app {
namespace {

constexpr int32_t kDefaultRunning = 256;      // requests of a rank without --max-running-requests
constexpr int64_t kDefaultFullContexts = 32;  // the default pool holds this many sequences of full length
constexpr double kDefaultMemFraction = 0.8;   // of the free memory, as the ceiling of that default

std::string line(const char* what, int64_t bytes, const std::string& why) {
  return fmt::format("memory plan: {:<14} {:>10.2f} MiB  {}", what, double(bytes) / (1 << 20), why);
}

}  // namespace

model::LoadOptions load_options(const ResolvedConfig& config, const model::ForwardLimits& limits, int num_threads) {
  model::LoadOptions options;
  options.directory = config.model_directory;
  options.config_overrides = config.flags.text("json_model_override_args");
  options.dummy_weights = config.dummy_weights;
  options.seed = config.flags.has("random_seed") ? uint64_t(config.flags.integer("random_seed")) : 0;
  options.backend = config.backend;
  options.isa = config.isa;
  options.num_threads = num_threads;
  options.limits = limits;
  options.attention_tp_size = config.attn_tp_size;
  options.experts = config.experts;
  return options;
}

int threads_per_rank(const ResolvedConfig& config, int num_threads) {
  return std::max(1, num_threads / config.num_ranks);
}

Result<MemoryPlan> plan_memory(const ResolvedConfig& config, int num_threads, int64_t available_bytes) {
  const engine::EngineConfig& engine = config.engine;
  MemoryPlan plan;
  plan.available_bytes = available_bytes;
  plan.max_running_requests = engine.max_running_requests > 0 ? engine.max_running_requests : kDefaultRunning;

  engine::EngineConfig sized = engine;
  sized.max_running_requests = plan.max_running_requests;
  plan.limits = engine::forward_limits(sized);

  const model::LoadOptions options = load_options(config, plan.limits, threads_per_rank(config, num_threads));
  ASSIGN_OR_RETURN(model::MemoryPlan model_plan, model::plan_memory(config.model, options));
  plan.weight_bytes = model_plan.weight_bytes;
  plan.expert_bytes = model_plan.expert_bytes;
  plan.workspace_bytes = model_plan.workspace_bytes;
  plan.exchange_bytes = model_plan.exchange_bytes;
  const parallel::ExchangeShape exchange = model::exchange_shape(config.model, options);
  if (exchange.top_k > 0) plan.exchange_bytes += parallel::node_exchange_bytes(exchange, config.num_nodes);
  plan.logits_bytes = plan.limits.max_logit_rows * config.model.vocab_size * int64_t(sizeof(float));

  const int64_t element = int64_t(size_of(config.kv_dtype));
  const int64_t token_bytes =
      int64_t(config.model.num_layers) * (config.model.kv_lora_rank + config.model.rope_dim) * element;
  // The ranks of an attention group share one KV pool, and their first one samples. On GPUs each has one for itself.
  const int64_t ranks = is_cuda(config.backend) ? 1 : config.num_ranks,
                groups = std::max<int64_t>(1, ranks / config.attn_tp_size);
  const int64_t of_rank = plan.expert_bytes + plan.workspace_bytes + plan.exchange_bytes;
  const int64_t fixed = plan.weight_bytes + ranks * of_rank + groups * plan.logits_bytes;
  const double fraction = config.mem_fraction_static > 0 ? config.mem_fraction_static : kDefaultMemFraction;
  const int64_t room = std::max<int64_t>(0, int64_t(double(available_bytes) * fraction) - fixed) / groups;
  int64_t tokens = engine.max_total_tokens;
  std::string why = "--max-total-tokens";
  if (tokens == 0 || config.mem_fraction_static > 0) {
    int64_t most = tokens > 0 ? tokens : INT64_MAX;
    if (tokens == 0 && config.mem_fraction_static == 0) most = kDefaultFullContexts * engine.context_length;
    tokens = std::min(room / token_bytes, most);
    why = config.mem_fraction_static > 0 ? "--mem-fraction-static" : "default";
  }
  tokens = std::min<int64_t>(tokens, INT32_MAX / 2) / engine.block_tokens * engine.block_tokens;
  plan.max_total_tokens = int32_t(tokens);
  plan.kv_bytes = tokens * token_bytes;
  const int64_t sum = fixed + groups * plan.kv_bytes;

  const std::string times = ranks > 1 ? fmt::format(", x {} ranks", ranks) : "";
  const std::string group_times = groups == ranks ? times : fmt::format(", x {} attention groups", groups);
  const auto add = [&](const char* what, int64_t bytes, std::string why_so) {
    plan.lines.push_back(line(what, bytes, why_so));
  };
  add("weights", plan.weight_bytes, fmt::format("{} layers, as stored", config.model.num_layers));
  if (plan.expert_bytes > 0) add("experts", plan.expert_bytes, "routed experts of a rank, as stored" + times);
  add("workspace", plan.workspace_bytes, fmt::format("{} tokens per step", plan.limits.max_tokens) + times);
  if (plan.exchange_bytes > 0) add("exchange", plan.exchange_bytes, "rows and results of all ranks" + times);
  add("logits", plan.logits_bytes, fmt::format("{} rows", plan.limits.max_logit_rows) + group_times);
  add("KV pool", plan.kv_bytes, fmt::format("{} tokens x {} bytes ({})", tokens, token_bytes, why) + group_times);
  add("sum", sum, fmt::format("of {:.2f} MiB available", double(available_bytes) / (1 << 20)));
  if (sum > available_bytes || tokens < engine.block_tokens) {
    return exhausted(fmt::format(
        "the memory plan needs {:.0f} MiB and a KV pool of at least {} tokens, {:.0f} MiB are available: lower "
        "--max-total-tokens, --max-running-requests, --chunked-prefill-size or raise --mem-fraction-static",
        double(sum) / (1 << 20), engine.block_tokens, double(available_bytes) / (1 << 20)));
  }
  return plan;
}

}  // namespace tandem::app
