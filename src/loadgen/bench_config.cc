#include "loadgen/bench_config.h"

#include <fmt/format.h>

#include <cmath>

#include "base/json.h"
#include "net/http_client.h"

namespace tandem::loadgen {
namespace {

constexpr Backend kBackends[] = {
    {"sglang", Dialect::kNative, "/generate", 30000},
    {"sglang-native", Dialect::kNative, "/generate", 30000},
    {"sglang-oai", Dialect::kCompletions, "/v1/completions", 30000},
    {"sglang-oai-chat", Dialect::kChat, "/v1/chat/completions", 30000},
    {"vllm", Dialect::kCompletions, "/v1/completions", 8000},
    {"vllm-chat", Dialect::kChat, "/v1/chat/completions", 8000},
    {"lmdeploy", Dialect::kCompletions, "/v1/completions", 23333},
    {"lmdeploy-chat", Dialect::kChat, "/v1/chat/completions", 23333},
};

constexpr int32_t kMaxTokens = 1 << 24;
constexpr int32_t kMaxPrompts = 10'000'000;

Status check_range(const char* flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return Ok{};
  return invalid_input(fmt::format("{} must be between {} and {}, got {}", flag, low, high, value));
}

Status refuse_later(const BenchConfig& c) {
  const std::pair<bool, const char*> later[] = {
      {c.plot_throughput, "--plot-throughput"},
  };
  for (auto [given, flag] : later) {
    if (given) return invalid_input(fmt::format("{}: not in this version", flag));
  }
  return Ok{};
}

Status check_profile(const BenchConfig& c) {
  const bool urls = !c.profile_prefill_url.empty() || !c.profile_decode_url.empty();
  if (urls && !c.pd_separated) {
    return invalid_input("--profile-prefill-url and --profile-decode-url need --pd-separated");
  }
  if (!c.profile_prefill_url.empty() && !c.profile_decode_url.empty()) {
    return invalid_input("--profile-prefill-url and --profile-decode-url exclude each other");
  }
  if (c.profile_num_steps) RETURN_IF_ERROR(check_range("--profile-num-steps", *c.profile_num_steps, 1, INT32_MAX));
  if (c.profile_by_stage && !c.profile_num_steps) return invalid_input("--profile-by-stage needs --profile-num-steps");
  return Ok{};
}

Status check_dataset(const BenchConfig& c) {
  const bool sharegpt = c.dataset_name == "sharegpt";
  const bool random = c.dataset_name == "random", ids = c.dataset_name == "random-ids";
  if (!sharegpt && !random && !ids && c.dataset_name != "generated-shared-prefix") {
    return invalid_input(
        fmt::format("--dataset-name {} is unknown; there are sharegpt, random, random-ids, generated-shared-prefix",
                    c.dataset_name));
  }
  if (sharegpt && c.dataset_path.empty()) {
    return invalid_input("--dataset-name sharegpt needs --dataset-path: nothing is downloaded");
  }
  if (!sharegpt && !random && !c.dataset_path.empty()) {
    return invalid_input(fmt::format("--dataset-path is not used by --dataset-name {}", c.dataset_name));
  }
  if (c.apply_chat_template && !sharegpt) return invalid_input("--apply-chat-template works with sharegpt only");
  if (!c.prompt_suffix.empty() && !sharegpt) return invalid_input("--prompt-suffix works with sharegpt only");
  if (c.tokenize_prompt && !random && !ids) {
    return invalid_input("--tokenize-prompt works with the random and random-ids datasets only");
  }
  RETURN_IF_ERROR(check_range("--random-input-len", c.random_input_len, 1, kMaxTokens));
  RETURN_IF_ERROR(check_range("--random-output-len", c.random_output_len, 0, kMaxTokens));
  if (!(c.random_range_ratio >= 0 && c.random_range_ratio <= 1)) {
    return invalid_input(fmt::format("--random-range-ratio must be between 0 and 1, got {}", c.random_range_ratio));
  }
  if (c.sharegpt_output_len)
    RETURN_IF_ERROR(check_range("--sharegpt-output-len", *c.sharegpt_output_len, 4, kMaxTokens));
  if (c.sharegpt_context_len) {
    RETURN_IF_ERROR(check_range("--sharegpt-context-len", *c.sharegpt_context_len, 1, kMaxTokens));
  }
  RETURN_IF_ERROR(check_range("--gsp-num-groups", c.gsp_num_groups, 1, kMaxPrompts));
  RETURN_IF_ERROR(check_range("--gsp-prompts-per-group", c.gsp_prompts_per_group, 1, kMaxPrompts / c.gsp_num_groups));
  RETURN_IF_ERROR(check_range("--gsp-system-prompt-len", c.gsp_system_prompt_len, 1, kMaxTokens));
  RETURN_IF_ERROR(check_range("--gsp-question-len", c.gsp_question_len, 1, kMaxTokens));
  return check_range("--gsp-output-len", c.gsp_output_len, 1, kMaxTokens);
}

}  // namespace

const Backend* find_backend(std::string_view name) {
  for (const Backend& backend : kBackends) {
    if (name == backend.name) return &backend;
  }
  return nullptr;
}

Status BenchConfig::validate() const {
  const Backend* known = find_backend(backend);
  if (!known) {
    return invalid_input(fmt::format(
        "--backend {} is unknown; there are sglang, sglang-native, sglang-oai, sglang-oai-chat, vllm, vllm-chat, "
        "lmdeploy, lmdeploy-chat",
        backend));
  }
  RETURN_IF_ERROR(refuse_later(*this));
  RETURN_IF_ERROR(check_profile(*this));
  if (base_url.empty()) RETURN_IF_ERROR(check_range("--port", port.value_or(known->default_port), 1, 65535));
  auto url = net::parse_url(origin());
  if (!url) return invalid_input(fmt::format("--base-url {}: {}", origin(), url.error().message));
  RETURN_IF_ERROR(check_range("--num-prompts", num_prompts, 1, kMaxPrompts));
  RETURN_IF_ERROR(check_dataset(*this));
  if (!(request_rate > 0)) return invalid_input(fmt::format("--request-rate must be above 0, got {}", request_rate));
  if (max_concurrency) RETURN_IF_ERROR(check_range("--max-concurrency", *max_concurrency, 1, kMaxPrompts));
  RETURN_IF_ERROR(check_range("--warmup-requests", warmup_requests, 0, kMaxPrompts));
  const bool native = known->dialect == Dialect::kNative;
  if (return_logprob && !native) {
    return invalid_input(fmt::format("--return-logprob works with --backend sglang only, not {}", backend));
  }
  if (tokenize_prompt && !native) {
    return invalid_input(fmt::format("--tokenize-prompt works with --backend sglang only, not {}", backend));
  }
  if (print_requests && known->dialect != Dialect::kChat) {
    return invalid_input(fmt::format("--print-requests works with the chat backends only, not {}", backend));
  }
  if (request_timeout <= Duration::zero()) return invalid_input("the request timeout must be above 0");
  if (!extra_request_body.empty()) {
    auto body = json::Document::parse(extra_request_body, "--extra-request-body");
    if (!body) return body.error();
    if (!body->root().is_object()) return invalid_input("--extra-request-body must be a JSON object");
  }
  return Ok{};
}

std::string BenchConfig::origin() const {
  if (!base_url.empty()) {
    std::string trimmed = base_url;
    while (!trimmed.empty() && trimmed.back() == '/') trimmed.pop_back();
    return trimmed;
  }
  const Backend* known = find_backend(backend);
  const int32_t default_port = known ? known->default_port : 30000;
  const bool bare_ipv6 = host.find(':') != std::string::npos && host.front() != '[';
  return fmt::format("http://{}:{}", bare_ipv6 ? "[" + host + "]" : host, port.value_or(default_port));
}

}  // namespace tandem::loadgen
