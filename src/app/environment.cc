#include "app/environment.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "transport/transport.h"

namespace tandem::app {
namespace {

struct Reader {
  std::vector<std::string>* warnings;
  std::optional<Error> fault;

  std::optional<std::string> text(const std::string& suffix) {
    if (const char* value = std::getenv(("SGLANG_" + suffix).c_str())) return value;
    if (const char* value = std::getenv(("SGL_" + suffix).c_str())) {
      warnings->push_back(fmt::format("SGL_{} is taken as SGLANG_{}", suffix, suffix));
      return value;
    }
    return std::nullopt;
  }

  template <class T>
  std::optional<T> number(const std::string& suffix, T lowest) {
    std::optional<std::string> given = text(suffix);
    if (!given) return std::nullopt;
    T value{};
    const char* end = given->data() + given->size();
    auto [stop, error] = std::from_chars(given->data(), end, value);
    if (error != std::errc() || stop != end || !(value >= lowest)) {
      fault = invalid_input(fmt::format("environment variable SGLANG_{}: wanted a number of at least {}, got '{}'",
                                        suffix, lowest, *given));
      return std::nullopt;
    }
    return value;
  }

  bool flag(const std::string& suffix) {
    std::string value = text(suffix).value_or("");
    for (char& c : value) c = char(std::tolower(static_cast<unsigned char>(c)));
    return value == "1" || value == "true" || value == "yes" || value == "y";
  }
};

std::optional<std::string> first_set(const char* name, const char* other = nullptr) {
  if (const char* value = std::getenv(name)) return value;
  if (const char* value = other != nullptr ? std::getenv(other) : nullptr) return value;
  return std::nullopt;
}

SlurmVariables read_slurm() {
  SlurmVariables slurm;
  slurm.node_id = first_set("SLURM_NODEID");
  slurm.num_nodes = first_set("SLURM_STEP_NUM_NODES", "SLURM_NNODES");
  slurm.num_tasks = first_set("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS");
  slurm.node_list = first_set("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST");
  slurm.job_id = first_set("SLURM_JOB_ID");
  slurm.step_id = first_set("SLURM_STEP_ID");
  return slurm;
}

}  // namespace

Result<Environment> read_environment() {
  Environment env;
  Reader reader{&env.warnings, {}};
  env.max_dispatch_tokens_per_rank = reader.number<int64_t>("DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", 1);
  env.bf16_dispatch = reader.flag("DEEPEP_BF16_DISPATCH");
  env.num_reserved_decode_tokens = reader.number<int64_t>("NUM_RESERVED_DECODE_TOKENS", 0);
  env.bootstrap_timeout_s = reader.number<double>("DISAGGREGATION_BOOTSTRAP_TIMEOUT", 0).value_or(300);
  env.waiting_timeout_s = reader.number<double>("DISAGGREGATION_WAITING_TIMEOUT", 0).value_or(300);
  env.heartbeat_interval_s = reader.number<double>("DISAGGREGATION_HEARTBEAT_INTERVAL", 2).value_or(5);
  env.heartbeat_max_failures = reader.number<int64_t>("DISAGGREGATION_HEARTBEAT_MAX_FAILURE", 1).value_or(2);
  env.health_check_timeout_s = reader.number<double>("HEALTH_CHECK_TIMEOUT", 0).value_or(20);
  env.allow_longer_context = reader.flag("ALLOW_OVERWRITE_LONGER_CONTEXT_LEN");
  env.log_milliseconds = reader.flag("LOG_MS");
  env.log_forward_iters = reader.flag("LOG_FORWARD_ITERS");
  env.recorder_directory = reader.text("EXPERT_DISTRIBUTION_RECORDER_DIR").value_or("/tmp");
  env.profile_directory = reader.text("TORCH_PROFILER_DIR").value_or("/tmp");
  if (const char* home = std::getenv("HOME")) env.home_directory = home;
  env.heatmap_interval = reader.number<int64_t>("EPLB_HEATMAP_COLLECTION_INTERVAL", 0).value_or(0);
  if (const char* secret = std::getenv("TANDEM_DEPLOYMENT_SECRET")) env.deployment_secret = secret;
  env.slurm = read_slurm();
  if (reader.fault) return *reader.fault;
  return env;
}

Status read_deployment_secret(const FlagValues& flags, Environment& environment) {
  std::string& secret = environment.deployment_secret;
  std::string from = "TANDEM_DEPLOYMENT_SECRET";
  if (flags.has("deployment_secret_file")) {
    const std::string path = flags.text("deployment_secret_file");
    from = "--deployment-secret-file " + path;
    std::ifstream file(path, std::ios::binary);
    secret.assign(std::istreambuf_iterator<char>(file), {});
    if (!file) return invalid_input(fmt::format("{}: cannot be read", from));
    while (secret.ends_with('\n') || secret.ends_with('\r')) secret.pop_back();
    std::error_code unknown;
    const auto rights = std::filesystem::status(path, unknown).permissions();
    constexpr auto kOthers = std::filesystem::perms::group_all | std::filesystem::perms::others_all;
    if (!unknown && (rights & kOthers) != std::filesystem::perms::none) {
      environment.warnings.push_back(fmt::format("{}: others may read it (chmod 600)", from));
    }
    if (secret.empty()) return invalid_input(fmt::format("{}: is empty", from));
  }
  if (secret.empty()) return Ok{};
  if (secret.size() < transport::kMinSecretBytes || secret.size() > transport::kMaxSecretBytes) {
    return invalid_input(fmt::format("{}: wanted {} to {} bytes, got {}", from, transport::kMinSecretBytes,
                                     transport::kMaxSecretBytes, secret.size()));
  }
  return Ok{};
}

std::string client_authorization() {
  if (const char* key = std::getenv("OPENAI_API_KEY")) return "Bearer " + std::string(key);
  if (const char* key = std::getenv("API_KEY")) return key;
  return "";
}

std::string client_authorization(const FlagValues& flags) {
  for (const char* key : {"admin_api_key", "api_key"}) {
    if (flags.has(key)) return "Bearer " + flags.text(key);
  }
  return client_authorization();
}

}  // namespace tandem::app
