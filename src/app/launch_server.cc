// tandem launch_server: flags, resolved configuration, memory plan, then one ServerProcess until a signal.
#include <fmt/format.h>

#include <cstdio>

#include "app/commands.h"
#include "app/config_file.h"
#include "app/machine.h"
#include "app/memory_plan.h"
#include "app/resolve.h"
#include "app/resolve_gpu.h"
#include "app/server_flags.h"
#include "app/server_process.h"
#include "app/signals.h"
#include "base/log.h"
#include "device/gpu.h"

namespace tandem::app {
namespace {

int fail(const std::string& message) {
  fmt::print(stderr, "tandem launch_server: error: {}\n", message);
  return 2;
}

log::Level log_level(const std::string& name) {
  if (name == "debug") return log::Level::kDebug;
  if (name == "warning") return log::Level::kWarning;
  return name == "info" ? log::Level::kInfo : log::Level::kError;
}

// Instruction set: what was asked for, if this CPU has it; else the best there is, or the plain loops.
Status choose_kernels(ResolvedConfig& config) {
  if (is_cuda(config.backend)) {
    for (int32_t rank = 0; rank < config.num_ranks; ++rank) {
      ASSIGN_OR_RETURN(const device::GpuInfo gpu, device::find_gpu(gpu_of(config, rank)));
      log::info("GPU {}: {}, {} multiprocessors, {:.2f} of {:.2f} GB free", gpu.index, gpu.name,
                gpu.num_multiprocessors, double(gpu.free_bytes) / 1e9, double(gpu.total_bytes) / 1e9);
    }
    if (!config.isa_given) config.isa = kernels::best_isa();  // tokens are drawn on the CPU
    return Ok{};
  }
  if (config.backend == kernels::Backend::kRef) return Ok{};
  if (!config.isa_given && kernels::cpu_supports(kernels::Isa::kAvx2)) {
    config.isa = kernels::best_isa();
  } else if (!config.isa_given) {
    config.backend = kernels::Backend::kRef;
    log::warning("this CPU has no AVX2: the plain f32 kernels are used");
  } else if (!kernels::cpu_supports(config.isa)) {
    return invalid_input(fmt::format("--cpu-isa {}: this CPU does not have it", config.flags.text("cpu_isa")));
  }
  return Ok{};
}

}  // namespace

int launch_server(Args args) {
  Result<std::vector<std::string>> all = with_config_file(server_flags(), args);
  if (!all) return fail(all.error().message);
  Result<ParseOutcome> parsed =
      parse_flags("launch_server", "Starts one node of a prefill, decode or combined server.", server_flags(), *all);
  if (!parsed) return fail(parsed.error().message);
  if (parsed->help_shown) return 0;
  Result<Environment> environment = read_environment();
  if (!environment) return fail(environment.error().message);
  if (Status read = read_deployment_secret(parsed->values, *environment); !read) return fail(read.error().message);
  ResolveOutcome outcome = resolve(std::move(parsed->values), std::move(*environment));
  for (const std::string& fault : outcome.faults) fail(fault);
  if (!outcome.faults.empty()) return 2;
  ResolvedConfig& config = outcome.config;
  if (config.flags.enabled("check_config")) {
    fmt::print("{}\n", json::dump(describe(config)));
    return 0;
  }
  for (const std::string& refusal : config.refusals) fail(fmt::format("{}: not in this version", refusal));
  for (const std::string& line : config.missing) fail(line);
  if (!config.refusals.empty() || !config.missing.empty()) return 2;

  log::configure(log_level(config.flags.text("log_level")), config.environment.log_milliseconds);
  watch_signals();
  for (const std::string& line : config.environment.warnings) log::warning("{}", line);
  for (const std::string& line : config.warnings) log::warning("{}", line);
  if (Status chosen = choose_kernels(config); !chosen) return fail(chosen.error().message);
  log::info("server_args={}", json::dump(describe(config)));

  Result<std::unique_ptr<ServerProcess>> process = ServerProcess::start(std::move(config));
  if (!process) {
    fail(process.error().message);
    return process.error().code == ErrorCode::kInvalidInput || process.error().code == ErrorCode::kNotFound ? 2 : 1;
  }
  return (*process)->run();
}

}  // namespace tandem::app
