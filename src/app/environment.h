// The environment variables that scripts for SGLang set, read once at start. Only `app` reads the environment.
// SGL_X is taken for SGLANG_X with a warning; booleans are true/1/yes/y.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/flags.h"
#include "app/slurm.h"
#include "base/result.h"

namespace tandem::app {

struct Environment {
  std::optional<int64_t> max_dispatch_tokens_per_rank;  // SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK
  bool bf16_dispatch = false;                           // SGLANG_DEEPEP_BF16_DISPATCH: no FP8 payload
  std::optional<int64_t> num_reserved_decode_tokens;    // SGLANG_NUM_RESERVED_DECODE_TOKENS, old name of the flag
  double bootstrap_timeout_s = 300;                     // SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT
  double waiting_timeout_s = 300;                       // SGLANG_DISAGGREGATION_WAITING_TIMEOUT
  double heartbeat_interval_s = 5;                      // SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL, at least 2
  int64_t heartbeat_max_failures = 2;                   // SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE
  double health_check_timeout_s = 20;                   // SGLANG_HEALTH_CHECK_TIMEOUT
  bool allow_longer_context = false;                    // SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN
  bool log_milliseconds = false;                        // SGLANG_LOG_MS
  bool log_forward_iters = false;                       // SGLANG_LOG_FORWARD_ITERS
  std::string recorder_directory = "/tmp";              // SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR
  std::string profile_directory = "/tmp";               // SGLANG_TORCH_PROFILER_DIR
  std::string home_directory;                           // HOME
  int64_t heatmap_interval = 0;                         // SGLANG_EPLB_HEATMAP_COLLECTION_INTERVAL
  std::string deployment_secret;                        // TANDEM_DEPLOYMENT_SECRET: peers must prove it
  SlurmVariables slurm;                                 // for --slurm
  std::vector<std::string> warnings;
};

// Errors: a value that cannot be parsed, naming variable and value.
Result<Environment> read_environment();

// --deployment-secret-file in the place of TANDEM_DEPLOYMENT_SECRET: the file's text without the line's end. Errors:
// the file cannot be read; a secret, wherever it is from, that is too short or too long. Warns of a file that others
// may read.
Status read_deployment_secret(const FlagValues& flags, Environment& environment);

// Rows of a command's flags, which client_authorization(flags) reads.
inline constexpr Flag kApiKeyFlag = {"--api-key", FlagKind::kString,   nullptr,
                                     nullptr,     FlagSupport::kWorks, "sent as a bearer token (else OPENAI_API_KEY)"};
inline constexpr Flag kAdminApiKeyFlag = {
    "--admin-api-key", FlagKind::kString,   nullptr,
    nullptr,           FlagSupport::kWorks, "sent instead, where the servers have one"};

// What clients send as Authorization, as SGLang's do: OPENAI_API_KEY as a bearer token, else API_KEY as it is, or "".
std::string client_authorization();
// The same for a command with --api-key and --admin-api-key: the admin key if given (it opens everything), else the API
// key, else the environment's.
std::string client_authorization(const FlagValues& flags);

}  // namespace tandem::app
