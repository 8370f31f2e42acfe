#include "app/resolve.h"

#include <fmt/format.h>

#include <algorithm>

#include "app/devices.h"
#include "app/embedded_model.h"
#include "app/resolve_experts.h"
#include "app/resolve_gpu.h"
#include "app/server_flags.h"
#include "app/slurm.h"
#include "model/model.h"

namespace tandem::app {
namespace {

constexpr int64_t kDefaultChunk = 2048;  // SGLang's value for small devices
constexpr int64_t kDefaultDispatchTokens = 128;
constexpr int64_t kMaxDispatchTokens = 1024;

struct Resolver {
  ResolvedConfig& config;
  std::vector<std::string>& faults;
  FlagValues& flags = config.flags;

  template <class... Args>
  void fault(fmt::format_string<Args...> format, Args&&... args) {
    faults.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void warn(fmt::format_string<Args...> format, Args&&... args) {
    config.warnings.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void range(const char* field, int64_t low, int64_t high) {
    if (!flags.has(field)) return;
    int64_t value = flags.integer(field);
    if (value < low || value > high) {
      fault("--{}: wanted {} to {}, got {}", dashed(field), low, high, value);
    }
  }

  static std::string dashed(std::string field) {
    std::replace(field.begin(), field.end(), '_', '-');
    return field;
  }

  void check_ranges() {
    constexpr int64_t kMany = int64_t(1) << 31;
    for (const char* field : {"port", "disaggregation_bootstrap_port"}) range(field, 1, 65535);
    for (const char* field : {"tp_size", "dp_size", "ep_size", "pp_size", "nnodes"}) range(field, 1, 65536);
    for (const char* field :
         {"page_size", "max_running_requests", "max_total_tokens", "max_prefill_tokens", "context_length",
          "stream_interval", "decode_log_interval", "num_threads", "max_queued_requests",
          "eplb_rebalance_num_iterations", "eplb_rebalance_layers_per_chunk", "cuda_graph_max_bs", "dist_timeout"}) {
      range(field, 1, kMany);
    }
    range("num_reserved_decode_tokens", 0, kMany);
    range("eplb_spare_slots", 0, kMany);
    range("eplb_bytes_per_step", 1, INT64_MAX);
    range("ep_num_redundant_experts", 0, kMany);
    for (const char* field : {"node_rank", "base_gpu_id", "gpu_id_step"}) range(field, 0, kMany);
    range("log_requests_level", 0, 3);
    range("priority_scheduling_preemption_threshold", 0, kMany - 1);
    range("random_seed", 0, INT64_MAX);
    for (int64_t size : flags.integers("cuda_graph_bs")) {
      if (size < 1) fault("--cuda-graph-bs: wanted batch sizes of at least 1, got {}", size);
    }
    if (flags.has("chunked_prefill_size") && flags.integer("chunked_prefill_size") < 1 &&
        flags.integer("chunked_prefill_size") != -1) {
      fault("--chunked-prefill-size: wanted a positive number or -1, got {}", flags.integer("chunked_prefill_size"));
    }
    fraction("mem_fraction_static", 1.0);
    fraction("tbo_token_distribution_threshold", 0.5);
    fraction("kv_digest_sample_rate", 1.0);
    fraction("eplb_target", 1.0);
    fraction("eplb_min_rebalancing_utilization_threshold", 1.0);
    for (const char* field : {"watchdog_timeout", "drain_timeout", "schedule_conservativeness"}) {
      if (flags.number(field) < 0) fault("--{}: wanted at least 0, got {}", dashed(field), flags.number(field));
    }
  }

  void fraction(const char* field, double high) {
    if (!flags.has(field)) return;
    double value = flags.number(field);
    if (!(value >= 0 && value <= high)) fault("--{}: wanted 0 to {}, got {}", dashed(field), high, value);
  }

  void resolve_model() {
    if (!flags.has("model_path")) {
      Result<std::string> found = embedded_model_directory();
      if (!found) return fault("{}", found.error().message);
      flags.set("model_path", json::Value(std::string_view(*found)));
    }
    config.model_directory = flags.text("model_path");
    if (!flags.has("tokenizer_path")) flags.set("tokenizer_path", flags.at("model_path"));
    config.tokenizer_directory = flags.text("tokenizer_path");
    if (!flags.has("served_model_name")) flags.set("served_model_name", flags.at("model_path"));
    config.served_model_name = flags.text("served_model_name");
    if (config.served_model_name.find(':') != std::string::npos) {
      fault("--served-model-name may not contain ':', got '{}'", config.served_model_name);
    }
    std::string overrides = flags.text("json_model_override_args");
    Result<model::ModelConfig> model = model::load_config(config.model_directory, overrides);
    if (!model) return fault("{}", model.error().message);
    config.model = *model;

    const std::string format = flags.text("load_format");
    config.dummy_weights = format == "dummy";
    if (format != "auto" && format != "safetensors" && format != "dummy") {
      fault("--load-format {}: only auto, safetensors and dummy are supported", format);
    }
    const std::string dtype = flags.text("dtype");
    if (dtype != "auto" && dtype != "bfloat16") fault("--dtype {}: only auto and bfloat16 are supported", dtype);
    if (flags.has("quantization")) {
      if (flags.text("quantization") != "fp8") {
        fault("--quantization {}: only fp8 is supported", flags.text("quantization"));
      } else if (!config.model.fp8_blocks) {
        fault("--quantization fp8: {} holds no FP8 blocks, and weights are served as shipped", config.model_directory);
      }
    }
    resolve_kv_dtype();
    resolve_context();
  }

  void resolve_kv_dtype() {
    const std::string dtype = flags.text("kv_cache_dtype");
    if (dtype == "bf16" || dtype == "bfloat16") config.kv_dtype = device::DType::kBF16;
    if (dtype == "fp8_e4m3") config.kv_dtype = device::DType::kF8E4M3;
    const int32_t width = config.model.kv_lora_rank + config.model.rope_dim, most = kernels::kMaxF8CacheRow;
    if (config.kv_dtype == device::DType::kF8E4M3 && width > most)
      fault("--kv-cache-dtype fp8_e4m3: {} values per token and layer, at most {}", width, most);
    if (dtype == "fp8_e5m2" || dtype == "fp4_e2m1") {
      fault("--kv-cache-dtype {}: only auto, float32, bf16 and fp8_e4m3 are supported", dtype);
    }
  }

  void resolve_context() {
    const int32_t most = config.model.max_position_embeddings;
    int64_t context = flags.has("context_length") ? flags.integer("context_length") : most;
    if (context > most && !config.environment.allow_longer_context) {
      fault(
          "--context-length {}: the model's config.json allows {} (SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 "
          "overrides)",
          context, most);
    }
    flags.set("context_length", context);
    config.engine.context_length = int32_t(context);
  }

  void resolve_device() {
    const std::string device = flags.text("device");
    const std::string backend = flags.text("kernel_backend");
    if (device == "cuda") {
      config.backend = backend == "tensor" ? kernels::Backend::kCuda : kernels::Backend::kCudaF32;
      if (backend == "cpu" || backend == "ref") fault("--kernel-backend {} runs on the CPU only", backend);
      if (backend == "tensor") resolve_tensor_cores();
      refuse_on_gpu(config);
    } else {
      if (device != "auto" && device != "cpu") config.refusals.push_back("--device " + device);
      if (backend == "tensor" || backend == "f32") fault("--kernel-backend {} needs --device cuda", backend);
      config.backend = backend == "ref" ? kernels::Backend::kRef : kernels::Backend::kCpu;
    }
    const std::string isa = flags.text("cpu_isa");
    config.isa_given = isa != "auto";
    if (isa == "avx512") config.isa = kernels::Isa::kAvx512;
    if (isa == "avx512_bf16") config.isa = kernels::Isa::kAvx512Bf16;
  }

  // Their attention reads a bf16 or FP8 cache in blocks of eight tokens or more.
  void resolve_tensor_cores() {
    if (flags.text("kv_cache_dtype") == "auto") config.kv_dtype = device::DType::kBF16;
    if (!flags.given("page_size")) flags.set("page_size", 64);
    const int64_t page = flags.integer("page_size");
    if (page % 64 != 0 && page != 8 && page != 16 && page != 32) {
      fault("--page-size {}: --kernel-backend tensor takes 8, 16, 32 and multiples of 64", page);
    }
  }

  void resolve_parallel() {
    int64_t tp = flags.integer("tp_size"), dp = flags.integer("dp_size"), pp = flags.integer("pp_size");
    int64_t nodes = flags.integer("nnodes"), node = flags.integer("node_rank");
    if (tp * pp % nodes != 0) fault("--tp-size {} x --pp-size {} is not divisible by --nnodes {}", tp, pp, nodes);
    if (pp == 1 && tp < nodes) fault("--tp-size {} is less than --nnodes {}: every node has a rank", tp, nodes);
    if (node >= nodes) fault("--node-rank {}: wanted less than --nnodes {}", node, nodes);
    if (dp == 1) {
      flags.set("enable_dp_attention", false);
      flags.set("enable_dp_lm_head", false);
    }
    bool dp_attention = flags.enabled("enable_dp_attention");
    if (dp_attention && tp % dp != 0) fault("--tp-size {} is not divisible by --dp-size {}", tp, dp);
    if (nodes > 1 && dp > 1 && !dp_attention)
      fault("--nnodes {} with --dp-size {} needs --enable-dp-attention", nodes, dp);
    if (flags.enabled("enable_dp_lm_head") && !dp_attention) fault("--enable-dp-lm-head needs --enable-dp-attention");
    if (nodes > 1 && !flags.has("dist_init_addr")) fault("--nnodes {} needs --dist-init-addr HOST:PORT", nodes);
    if (flags.has("dist_init_addr")) check_address(flags.text("dist_init_addr"));
    if (flags.has("moe_dense_tp_size") && flags.integer("moe_dense_tp_size") != 1) {
      fault("--moe-dense-tp-size: wanted 1 or nothing, got {}", flags.integer("moe_dense_tp_size"));
    }
    config.dp_size = dp_attention ? int32_t(dp) : 1;
    config.attn_tp_size = int32_t(dp_attention && tp % dp == 0 ? tp / dp : tp);
    config.num_nodes = int32_t(nodes);
    config.node_rank = int32_t(node);
    config.num_ranks = int32_t(std::max<int64_t>(1, tp / nodes));
    check_attention_groups();
    if (dp > 1 && !dp_attention) config.refusals.push_back("--dp-size above 1 without --enable-dp-attention");
  }

  // Ranks that share their requests: which they are is settled by the sizes, rank r is in group r / attn_tp_size.
  void check_attention_groups() {
    const int32_t size = config.attn_tp_size, heads = config.model.num_heads;
    config.engine.attn_tp_size = size;
    if (size > 1 && heads % size != 0) {
      fault("attention tensor parallelism: {} heads are not divisible by --tp-size / --dp-size = {}", heads, size);
    }
    if (config.num_ranks % size != 0) {
      config.refusals.push_back(
          fmt::format("an attention tensor-parallel group of {} ranks (--tp-size / --dp-size) over several nodes of {}",
                      size, config.num_ranks));
    }
  }

  void check_address(const std::string& address) {
    size_t colon = address.rfind(':');
    int port = 0;
    if (colon != std::string::npos) port = std::atoi(address.c_str() + colon + 1);
    if (colon == 0 || colon == std::string::npos || port < 1 || port > 65535) {
      fault("--dist-init-addr: wanted HOST:PORT, got '{}'", address);
    }
  }

  void resolve_experts() {
    if (flags.enabled("enable_deepep_moe")) flags.set("moe_a2a_backend", "deepep");
    const std::string a2a = flags.text("moe_a2a_backend");
    if (a2a != "none" && a2a != "deepep") fault("--moe-a2a-backend {}: only none and deepep are supported", a2a);
    int64_t tp = flags.integer("tp_size");
    if (a2a != "none") {
      if (flags.given("ep_size") && flags.integer("ep_size") != tp) {
        warn("--ep-size becomes --tp-size {} with --moe-a2a-backend {}", tp, a2a);
      }
      flags.set("ep_size", tp);
    }
    if (tp > 1 && flags.integer("ep_size") != tp) {
      warn("experts are spread over all {} ranks, whatever --ep-size {} says", tp, flags.integer("ep_size"));
      flags.set("ep_size", tp);
    }
    int64_t ep = flags.integer("ep_size"), redundant = flags.integer("ep_num_redundant_experts");
    config.ep_size = int32_t(ep);
    if (tp % ep != 0) fault("--tp-size {} is not divisible by --ep-size {}", tp, ep);
    int64_t physical = config.model.num_routed_experts + redundant;
    if (physical % ep != 0) {
      fault("{} experts + {} redundant ones are not divisible by --ep-size {}", config.model.num_routed_experts,
            redundant, ep);
    }
    if (flags.enabled("enable_eplb") && ep <= 1) fault("--enable-eplb needs --ep-size above 1");
    if (flags.enabled("enable_eplb_rebalance_async") && !flags.enabled("enable_eplb")) {
      fault("--enable-eplb-rebalance-async needs --enable-eplb");
    }
    if (flags.enabled("enable_eplb") && flags.has("expert_distribution_recorder_buffer_size") &&
        flags.integer("expert_distribution_recorder_buffer_size") > flags.integer("eplb_rebalance_num_iterations")) {
      fault("--expert-distribution-recorder-buffer-size {} is larger than --eplb-rebalance-num-iterations {}",
            flags.integer("expert_distribution_recorder_buffer_size"), flags.integer("eplb_rebalance_num_iterations"));
    }
    resolve_dispatch(redundant, physical);
  }

  void resolve_dispatch(int64_t redundant, int64_t physical) {
    const bool moved = redundant > 0 || flags.enabled("enable_eplb") || flags.text("init_expert_location") != "trivial";
    if (flags.has("ep_dispatch_algorithm")) {
      config.ep_dispatch_algorithm = flags.text("ep_dispatch_algorithm");
    } else if (moved) {
      config.ep_dispatch_algorithm = "static";
      flags.set("ep_dispatch_algorithm", "static");
      warn("--ep-dispatch-algorithm is not given: static");
    }
    // The largest decode batch of a rank, its share where ranks split one, must fit the low-latency exchange.
    int64_t batch = config.engine.max_running_requests;
    for (int64_t size : flags.integers("cuda_graph_bs")) batch = std::max(batch, size);
    batch = parallel::largest_share(batch, config.attn_tp_size);
    const auto& given = config.environment.max_dispatch_tokens_per_rank;
    const bool exchanges = flags.text("moe_a2a_backend") == "deepep" && flags.text("deepep_mode") != "normal" &&
                           flags.text("disaggregation_mode") != "prefill";
    if (given && *given > kMaxDispatchTokens) {
      fault("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK: wanted at most {}, got {}", kMaxDispatchTokens, *given);
    }
    if (given && exchanges && batch > *given) {
      fault("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK={} is less than the largest decode batch of a rank, {}",
            *given, batch);
    }
    int64_t limit = given.value_or(kDefaultDispatchTokens);
    if (!given && exchanges && batch > limit) {
      limit = batch;
      warn("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK is not set: {}, the largest decode batch of a rank", batch);
    }
    config.max_dispatch_tokens_per_rank = int32_t(limit);
    const std::string mode = flags.text("deepep_mode");
    const bool decodes = flags.text("disaggregation_mode") != "prefill";
    if (mode == "low_latency" && !decodes) {
      warn("--deepep-mode low_latency is for decode steps: a prefill server exchanges in normal mode");
    }
    config.engine.max_low_latency_tokens = mode == "normal" ? 0 : int32_t(limit);
    config.experts.max_low_latency_tokens = config.engine.max_low_latency_tokens;
    config.experts.topology.num_nodes = config.num_nodes;
    config.experts.topology.num_ranks = config.num_nodes * config.num_ranks;
    config.experts.topology.slots_per_rank = int32_t(physical / std::max<int64_t>(1, config.ep_size));
    if (!config.ep_dispatch_algorithm.empty()) {
      config.experts.dispatch = *experts::parse_dispatch_algorithm(config.ep_dispatch_algorithm);
    }
    config.experts.two_batches = flags.enabled("enable_two_batch_overlap");
    config.experts.two_batch_threshold = flags.number("tbo_token_distribution_threshold");
    config.engine.two_batch_overlap = config.experts.two_batches;
    if (config.experts.two_batches && config.num_ranks < 2 && flags.integer("nnodes") == 1) {
      warn("--enable-two-batch-overlap: one rank has no exchange to overlap");
    }
    if (config.model.num_routed_experts > 0) resolve_expert_balancing(config, faults);
  }

  void resolve_scheduler() {
    engine::EngineConfig& engine = config.engine;
    const std::string mode = flags.text("disaggregation_mode");
    engine.role = mode == "prefill"  ? engine::Role::kPrefill
                  : mode == "decode" ? engine::Role::kDecode
                                     : engine::Role::kCombined;
    engine.block_tokens = int32_t(flags.integer("page_size"));
    int64_t chunk = flags.has("chunked_prefill_size") ? flags.integer("chunked_prefill_size") : kDefaultChunk;
    if (chunk > 0 && config.dp_size > 1) {
      chunk /= config.dp_size;
      warn("chunked_prefill_size of a rank is {} / dp_size {} = {}",
           flags.has("chunked_prefill_size") ? flags.integer("chunked_prefill_size") : kDefaultChunk, config.dp_size,
           chunk);
      if (chunk == 0) fault("--chunked-prefill-size is less than --dp-size {}", config.dp_size);
    }
    if (chunk > 0 && engine.role != engine::Role::kDecode && chunk % engine.block_tokens != 0) {
      fault("--chunked-prefill-size {} of a rank is not divisible by --page-size {}", chunk, engine.block_tokens);
    }
    engine.chunked_prefill_size = int32_t(std::max<int64_t>(chunk, 0));
    flags.set("chunked_prefill_size", chunk);
    engine.max_prefill_tokens = int32_t(flags.integer("max_prefill_tokens"));
    if (flags.has("max_running_requests")) {
      engine.max_running_requests = int32_t(flags.integer("max_running_requests") / config.dp_size);
      if (engine.max_running_requests == 0) fault("--max-running-requests is less than --dp-size {}", config.dp_size);
    }
    if (flags.has("max_total_tokens")) {
      engine.max_total_tokens = int32_t(flags.integer("max_total_tokens") / engine.block_tokens * engine.block_tokens);
      if (engine.max_total_tokens == 0) fault("--max-total-tokens is less than --page-size {}", engine.block_tokens);
    }
    if (flags.has("max_queued_requests")) engine.max_queued_requests = int32_t(flags.integer("max_queued_requests"));
    if (flags.has("mem_fraction_static")) config.mem_fraction_static = flags.number("mem_fraction_static");
    engine.radix_cache = !flags.enabled("disable_radix_cache") && engine.role != engine::Role::kDecode;
    engine.schedule_conservativeness = flags.number("schedule_conservativeness") * (config.dp_size > 1 ? 0.3 : 1.0);
    engine.log_request_times = flags.enabled("enable_request_time_stats_logging");
    engine.decode_log_interval = int32_t(flags.integer("decode_log_interval"));
    resolve_policy();
  }

  void resolve_policy() {
    const std::string policy = flags.text("schedule_policy");
    engine::EngineConfig& engine = config.engine;
    engine.policy = policy == "lpm"          ? engine::SchedulePolicy::kLpm
                    : policy == "random"     ? engine::SchedulePolicy::kRandom
                    : policy == "dfs-weight" ? engine::SchedulePolicy::kDfsWeight
                    : policy == "lof"        ? engine::SchedulePolicy::kLof
                                             : engine::SchedulePolicy::kFcfs;
    resolve_priorities(policy);
    if (!engine.radix_cache && (policy == "lpm" || policy == "dfs-weight")) {
      engine.policy = engine::SchedulePolicy::kFcfs;
      warn("--schedule-policy {} needs the prefix cache: fcfs", policy);
    }
  }

  void resolve_priorities(const std::string& policy) {
    engine::EngineConfig& engine = config.engine;
    engine.priority_scheduling = flags.enabled("enable_priority_scheduling") || policy == "priority";
    engine.low_priority_values_first = flags.enabled("schedule_low_priority_values_first");
    engine.preemption_threshold = int32_t(flags.integer("priority_scheduling_preemption_threshold"));
    if (!engine.priority_scheduling) {
      for (const char* field : {"schedule_low_priority_values_first", "priority_scheduling_preemption_threshold"}) {
        if (flags.given(field)) fault("--{} needs --enable-priority-scheduling", dashed(field));
      }
    } else if (engine.policy != engine::SchedulePolicy::kFcfs && engine.policy != engine::SchedulePolicy::kLof) {
      fault("--enable-priority-scheduling goes with --schedule-policy fcfs, lof or priority, got {}", policy);
    }
  }

  void resolve_devices() {
    if (!flags.has("disaggregation_ib_device")) return;
    Result<std::vector<std::string>> devices = parse_devices(flags.text("disaggregation_ib_device"));
    if (!devices) return fault("--disaggregation-ib-device: {}", devices.error().message);
    config.network_devices = std::move(*devices);
  }

  void resolve_disaggregation() {
    engine::EngineConfig& engine = config.engine;
    int64_t reserved = flags.integer("num_reserved_decode_tokens");
    if (!flags.given("num_reserved_decode_tokens") && config.environment.num_reserved_decode_tokens) {
      reserved = *config.environment.num_reserved_decode_tokens;
      flags.set("num_reserved_decode_tokens", reserved);
    }
    engine.num_reserved_decode_tokens = int32_t(reserved);
    engine.bootstrap_timeout = from_seconds(config.environment.bootstrap_timeout_s);
    engine.waiting_timeout = from_seconds(config.environment.waiting_timeout_s);
    engine.source_lease_timeout = engine.waiting_timeout;
    engine.default_bootstrap_port = uint16_t(flags.integer("disaggregation_bootstrap_port"));
    engine.digest_sample_rate = flags.number("kv_digest_sample_rate");
    const std::string backend = flags.text("disaggregation_transfer_backend");
    engine.fake_transfer = backend == "fake";
    resolve_devices();
    if (backend == "ascend") fault("--disaggregation-transfer-backend ascend: only mooncake, nixl, ucx and fake");
    if (engine.role == engine::Role::kDecode) {
      for (const char* field : {"disaggregation_decode_tp", "disaggregation_decode_dp"}) {
        if (flags.has(field)) fault("--{} belongs to prefill servers", dashed(field));
      }
    } else if (flags.has("disaggregation_decode_tp")) {
      int64_t decode = flags.integer("disaggregation_decode_tp"), own = flags.integer("tp_size");
      if (decode < 1 || (decode % own != 0 && own % decode != 0)) {
        fault("--disaggregation-decode-tp {} and --tp-size {}: one must be a multiple of the other", decode, own);
      }
    }
    if (engine.role == engine::Role::kPrefill &&
        flags.integer("port") == flags.integer("disaggregation_bootstrap_port")) {
      fault("--port and --disaggregation-bootstrap-port are both {}", flags.integer("port"));
    }
  }

  void collect_support() {
    std::string harmless;
    for (const Flag& flag : server_flags()) {
      const std::string field = field_name(flag);
      if (!flags.given(field)) continue;
      const std::string name = "--" + dashed(field);
      if (is_idle(flag, config.backend)) harmless += (harmless.empty() ? "" : " ") + name;
      if (flag.support == FlagSupport::kLater && !is_default(flag, flags.at(field))) config.refusals.push_back(name);
    }
    if (!harmless.empty()) warn("accepted, with nothing to do here: {}", harmless);
  }

  static bool is_default(const Flag& flag, const json::Value& value) {
    if (flag.kind == FlagKind::kSwitch) return !value.as_bool();
    if (flag.default_text == nullptr) return false;
    std::string text = value.is_string() ? std::string(value.as_string()) : json::dump(value);
    return text == flag.default_text;
  }
};

}  // namespace

ResolveOutcome resolve(FlagValues flags, Environment environment) {
  ResolveOutcome outcome;
  outcome.config.flags = std::move(flags);
  outcome.config.environment = std::move(environment);
  Resolver resolver{outcome.config, outcome.faults};
  if (outcome.config.flags.enabled("slurm")) {
    const Status applied = apply_slurm(outcome.config.environment.slurm, outcome.config.flags);
    if (!applied) resolver.fault("{}", applied.error().message);
  }
  resolver.check_ranges();
  if (!outcome.faults.empty()) return outcome;  // derived values of wrong numbers would only add noise
  resolver.resolve_model();
  resolver.resolve_device();
  resolver.resolve_parallel();
  resolver.resolve_scheduler();
  resolver.resolve_experts();
  resolver.resolve_disaggregation();
  resolver.collect_support();
  return outcome;
}

json::Object describe(const ResolvedConfig& config) {
  json::Object all = printable(config.flags);
  json::Object derived;
  derived["architecture"] = config.model.architecture;
  derived["num_layers"] = config.model.num_layers;
  derived["attn_tp_size"] = config.attn_tp_size;
  derived["dp_size"] = config.dp_size;
  derived["ep_size"] = config.ep_size;
  derived["num_physical_experts"] = config.model.num_routed_experts + config.flags.integer("ep_num_redundant_experts");
  derived["experts_per_rank"] = derived["num_physical_experts"].as_int64() / config.ep_size;
  derived["ep_dispatch_algorithm"] =
      config.ep_dispatch_algorithm.empty() ? json::Value(nullptr) : json::Value(config.ep_dispatch_algorithm);
  derived["max_dispatch_tokens_per_rank"] = config.max_dispatch_tokens_per_rank;
  derived["chunked_prefill_size_per_rank"] = config.engine.chunked_prefill_size;
  auto planned = [](int32_t value) { return value > 0 ? json::Value(value) : json::Value("by the memory plan"); };
  derived["max_running_requests_per_rank"] = planned(config.engine.max_running_requests);
  derived["max_total_tokens_per_rank"] = planned(config.engine.max_total_tokens);
  derived["context_length"] = config.engine.context_length;
  derived["num_reserved_decode_tokens"] = config.engine.num_reserved_decode_tokens;
  derived["radix_cache"] = config.engine.radix_cache;
  json::Array warnings, refusals, missing;
  for (const std::string& line : config.missing) missing.emplace_back(line);
  derived["missing"] = std::move(missing);
  for (const std::string& line : config.warnings) warnings.emplace_back(line);
  for (const std::string& line : config.refusals) refusals.emplace_back(line);
  derived["warnings"] = std::move(warnings);
  derived["not_in_this_version"] = std::move(refusals);
  all["derived"] = std::move(derived);
  return all;
}

}  // namespace tandem::app
