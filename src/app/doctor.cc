// tandem doctor: would a server with these flags start here, and reach who it has to? Probing is in doctor_probe and
// doctor_peer, judging in doctor_checks.
#include <fmt/format.h>

#include <charconv>
#include <filesystem>

#include "app/commands.h"
#include "app/config_file.h"
#include "app/doctor_checks.h"
#include "app/doctor_peer.h"
#include "app/doctor_probe.h"
#include "app/machine.h"
#include "app/memory_plan.h"
#include "app/resolve.h"
#include "app/server_flags.h"
#include "app/signals.h"
#include "device/gpu.h"
#include "model/model.h"
#include "transport/transport.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Flag kOwnFlags[] = {
    {"--peer", kStringList, nullptr, nullptr, kWorks, "HOST:PORT of others that listen: reach, speed, clock"},
    {"--listen", kInt, nullptr, nullptr, kWorks, "no checks: answer others' --peer at this port until a signal"},
    {"--listen-seconds", kFloat, "600", nullptr, kWorks, "or until so long"},
    {"--instance", kStringList, nullptr, nullptr, kWorks, "URLs of running servers: health and clock"},
    {"--check-timeout", kFloat, "10", nullptr, kWorks, "seconds to wait for a peer or an instance"},
    {"--format", kString, "table", "table|json", kWorks, "how the findings are printed"},
};

struct HostPort {
  std::string host;
  uint16_t port = 0;
};

// "gpu001:4000", "[::1]:4000".
Result<HostPort> parse_host_port(const std::string& text) {
  const size_t colon = text.rfind(':');
  uint16_t port = 0;
  if (colon != std::string::npos && colon > 0) {
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, port);
    if (error != std::errc() || stop != end) port = 0;
  }
  if (port == 0) return invalid_input(fmt::format("wanted HOST:PORT, got '{}'", text));
  return HostPort{text.substr(0, colon), port};
}

class Doctor {
 public:
  explicit Doctor(const ResolveOutcome& outcome) : outcome_(outcome), config_(outcome.config) {}

  std::vector<Finding> examine() {
    check_flags();
    if (outcome_.faults.empty()) {
      check_model();
      check_memory();
      check_ports();
    }
    check_devices();
    for (Finding& finding : check_machine(machine_facts())) findings_.push_back(std::move(finding));
    check_gpu();
    check_nodes();
    check_peers();
    check_instances();
    return std::move(findings_);
  }

 private:
  Duration timeout() const { return from_seconds(config_.flags.number("check_timeout")); }

  void fail(std::string name, std::string found, std::string fix) {
    findings_.push_back({std::move(name), Verdict::kFail, std::move(found), std::move(fix)});
  }

  void check_flags() {
    for (const std::string& fault : outcome_.faults) fail("flags", fault, "change the flag");
    for (const std::string& line : config_.refusals) fail("flags", line + ": not in this version", "leave it out");
    for (const std::string& line : config_.missing) fail("flags", line, "put the file there, or name another");
    if (outcome_.faults.empty() && config_.refusals.empty() && config_.missing.empty()) {
      findings_.push_back({"flags", Verdict::kOk, fmt::format("{} warnings", config_.warnings.size()), ""});
    }
  }

  void check_model() {
    const std::string& directory = config_.model_directory;
    if (config_.dummy_weights) {
      findings_.push_back({"model", Verdict::kOk, directory + ": weights are made up", ""});
    } else if (auto text = model::describe_checkpoint(directory, config_.flags.text("json_model_override_args"));
               text) {
      findings_.push_back({"model", Verdict::kOk, directory + ": all files are there and whole", ""});
    } else {
      fail("model", text.error().message, "fetch the checkpoint again; every node reads it");
    }
    const std::string tokenizer = config_.tokenizer_directory + "/tokenizer.json";
    if (config_.flags.enabled("skip_tokenizer_init")) return;
    if (std::filesystem::exists(tokenizer)) {
      findings_.push_back({"tokenizer", Verdict::kOk, tokenizer, ""});
    } else {
      fail("tokenizer", tokenizer + " is missing", "fetch it, or --tokenizer-path, or --skip-tokenizer-init");
    }
  }

  void check_memory() {
    const bool given = config_.flags.has("num_threads");
    const int threads = given ? int(config_.flags.integer("num_threads")) : num_usable_cpus();
    int64_t free_bytes = available_memory_bytes();
    if (is_cuda(config_.backend)) {
      const Result<device::GpuInfo> gpu = device::find_gpu(0);
      if (!gpu) return;  // check_gpu() says so
      free_bytes = gpu->free_bytes;
    }
    const Result<MemoryPlan> plan = plan_memory(config_, threads, free_bytes);
    if (!plan) {
      return fail("memory", plan.error().message,
                  "lower --max-total-tokens, --max-running-requests or --chunked-prefill-size");
    }
    std::string sum = plan->lines.back();
    for (size_t at; (at = sum.find("  ")) != std::string::npos;) sum.erase(at, 1);
    findings_.push_back({"memory", Verdict::kOk, sum, ""});
  }

  void check_gpu() {
    if (!is_cuda(config_.backend)) {
      const char* const found = device::built_with_cuda() ? "ranks run on the CPU; --device cuda would take a GPU"
                                                          : "this build has no CUDA: ranks run on the CPU";
      return findings_.push_back({"GPU", Verdict::kOk, found, ""});
    }
    const Result<device::GpuInfo> gpu = device::find_gpu(0);
    if (!gpu) return fail("GPU", gpu.error().message, "leave --device cuda out, or fix what is named");
    findings_.push_back(
        {"GPU", Verdict::kOk, fmt::format("{}, {:.1f} GB free", gpu->name, double(gpu->free_bytes) / 1e9), ""});
  }

  void add_port(const std::string& what, const std::string& flag, const std::string& host, int64_t port) {
    findings_.push_back(check_port({what, flag, host, uint16_t(port), try_bind(host, uint16_t(port))}));
  }

  void check_ports() {
    const std::string host = config_.flags.text("host");
    add_port("HTTP", "--port", host, config_.flags.integer("port"));
    const bool first = config_.node_rank == 0;
    if (first && config_.engine.role == engine::Role::kPrefill && !config_.engine.fake_transfer) {
      add_port("KV", "--disaggregation-bootstrap-port", host, config_.engine.default_bootstrap_port);
    }
    if (!first || config_.num_nodes == 1) return;
    const auto meeting = parse_host_port(config_.flags.text("dist_init_addr"));
    if (meeting) add_port("meeting", "--dist-init-addr", meeting->host, meeting->port);
  }

  // One list serves KV transfer, node links and expert exchange: each makes its context from it.
  void check_devices() {
    const auto context = transport::Context::create({}, true, config_.network_devices);
    if (!context) {
      return fail("devices", context.error().message, "name one that is there with --disaggregation-ib-device");
    }
    const bool chosen = !config_.network_devices.empty();
    findings_.push_back({"devices", Verdict::kOk,
                         fmt::format("{} for KV, node links and exchange{}", transport::list_of((*context)->devices()),
                                     chosen ? ", as --disaggregation-ib-device says" : ", all there are"),
                         ""});
  }

  void check_nodes() {
    if (!outcome_.faults.empty() || config_.num_nodes == 1 || config_.node_rank == 0) return;
    if (auto meeting = parse_host_port(config_.flags.text("dist_init_addr")); meeting) {
      findings_.push_back(check_route(route_to(meeting->host)));
    }
  }

  void check_peers() {
    if (!config_.flags.has("peer")) return;
    for (const std::string& text : config_.flags.texts("peer")) {
      const auto at = parse_host_port(text);
      if (!at) {
        fail("peer " + text, at.error().message, "--peer HOST:PORT");
        continue;
      }
      const RouteFact route = route_to(at->host);
      findings_.push_back(check_route(route));
      if (!route.own_address) continue;
      const PeerOptions options{TANDEM_VERSION, config_.network_devices, config_.environment.deployment_secret,
                                route.mtu};
      for (Finding& finding : check_peer(text, call_peer(at->host, at->port, options, timeout()), TANDEM_VERSION)) {
        findings_.push_back(std::move(finding));
      }
    }
  }

  void check_instances() {
    if (!config_.flags.has("instance")) return;
    for (const std::string& url : config_.flags.texts("instance")) {
      for (Finding& finding : check_instance(url, ask_instance(url, timeout()))) {
        findings_.push_back(std::move(finding));
      }
    }
  }

  const ResolveOutcome& outcome_;
  const ResolvedConfig& config_;
  std::vector<Finding> findings_;
};

int fail(const std::string& message, int status) {
  fmt::print(stderr, "tandem doctor: error: {}\n", message);
  return status;
}

int listen(const ResolvedConfig& config) {
  const int64_t port = config.flags.integer("listen");
  if (port < 0 || port > 65535) return fail(fmt::format("--listen: wanted 0 to 65535, got {}", port), 2);
  const std::string host = config.flags.given("host") ? config.flags.text("host") : "0.0.0.0";
  const SystemClock clock;
  const TimePoint end = clock.now() + from_seconds(config.flags.number("listen_seconds"));
  const PeerOptions options{TANDEM_VERSION, config.network_devices, config.environment.deployment_secret,
                            route_to(host).mtu};
  const auto started = [&host](uint16_t bound) {
    fmt::print("tandem doctor listens on {}:{}\n", host, bound);
    std::fflush(stdout);
  };
  const Status done =
      listen_for_peers(host, uint16_t(port), options, started, [&] { return signals_seen() > 0 || clock.now() > end; });
  return done ? 0 : fail(done.error().message, 1);
}

}  // namespace

int run_doctor(Args args) {
  std::vector<Flag> table(server_flags().begin(), server_flags().end());
  table.insert(table.end(), std::begin(kOwnFlags), std::end(kOwnFlags));
  Result<std::vector<std::string>> all = with_config_file(table, args);
  if (!all) return fail(all.error().message, 2);
  Result<ParseOutcome> parsed =
      parse_flags("doctor", "Checks what a server with these flags would need here, before it starts.", table, *all);
  if (!parsed) return fail(parsed.error().message, 2);
  if (parsed->help_shown) return 0;
  Result<Environment> environment = read_environment();
  if (!environment) return fail(environment.error().message, 2);
  if (Status read = read_deployment_secret(parsed->values, *environment); !read) return fail(read.error().message, 2);
  const ResolveOutcome outcome = resolve(std::move(parsed->values), std::move(*environment));
  watch_signals();
  const FlagValues& flags = outcome.config.flags;
  if (flags.has("listen")) return listen(outcome.config);
  const std::vector<Finding> findings = Doctor(outcome).examine();
  if (flags.text("format") == "json") {
    fmt::print("{}\n", json::dump(findings_json(findings)));
  } else {
    fmt::print("{}", findings_table(findings));
  }
  return any_failed(findings) ? 1 : 0;
}

}  // namespace tandem::app
