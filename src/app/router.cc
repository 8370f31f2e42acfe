// tandem router (and mini_lb, its old name): flags to one Router behind one HttpServer.
#include "router/router.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <random>

#include "app/commands.h"
#include "app/flags.h"
#include "app/signals.h"
#include "base/log.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr const char* kPolicies = "random|round_robin|cache_aware|power_of_two|po2|bucket";
constexpr const char* kLevels = "debug|info|warning|warn|error|critical";

constexpr Flag kFlags[] = {
    {"--host", kString, "0.0.0.0", nullptr, kWorks, "address to listen on"},
    {"--port", kInt, nullptr, nullptr, kWorks, "default 30000 (mini_lb: 8000)"},
    {"--pd-disaggregation", kSwitch, nullptr, nullptr, kWorks, "prefill and decode servers (implied by --prefill)"},
    {"--mini-lb", kSwitch, nullptr, nullptr, kWorks, "random policy"},
    {"--prefill", kStringRows, nullptr, nullptr, kWorks,
     "URL [BOOTSTRAP_PORT|none], repeatable; or URLs, comma-separated"},
    {"--decode", kStringRows, nullptr, nullptr, kWorks, "URL, repeatable; or URLs, comma-separated"},
    {"--prefill-bootstrap-ports", kIntList, nullptr, nullptr, kWorks, "one per --prefill URL, or one for all"},
    {"--worker-urls", kStringList, nullptr, nullptr, kWorks, "combined servers, without --pd-disaggregation"},
    {"--policy", kString, "cache_aware", kPolicies, kWorks, "how servers are chosen"},
    {"--prefill-policy", kString, nullptr, kPolicies, kWorks, "for the prefill side (default --policy)"},
    {"--decode-policy", kString, nullptr, kPolicies, kWorks, "for the decode side (default --policy)"},
    {"--cache-threshold", kFloat, "0.3", nullptr, kWorks, "matched share from which the cached place is preferred"},
    {"--balance-abs-threshold", kInt, "64", nullptr, kWorks, "difference of load from which load decides"},
    {"--balance-rel-threshold", kFloat, "1.5", nullptr, kWorks, "ratio of load from which load decides"},
    {"--eviction-interval-secs,--eviction-interval", kFloat, "120", nullptr, kWorks,
     "between evictions of prompt texts"},
    {"--max-tree-size", kInt, "67108864", nullptr, kWorks, "bytes of prompt text remembered"},
    {"--max-payload-size", kInt, "536870912", nullptr, kWorks, "bytes of a request body; more gets 413"},
    {"--dp-aware", kSwitch, nullptr, nullptr, kWorks, "choose the data-parallel rank with the fewest sequences"},
    {"--api-key", kString, nullptr, nullptr, kWorks, "asked of clients, and sent to the servers"},
    {"--admin-api-key", kString, nullptr, nullptr, kWorks,
     "asked where router or servers are changed; the servers' own"},
    {"--log-dir", kString, nullptr, nullptr, kWorks, "log to DIR/router_<date>.log, too; a file each day"},
    {"--log-level", kString, "info", kLevels, kWorks, "lowest level that is logged"},
    {"--log-interval", kInt, "5", nullptr, kHarmless, "there is no periodic line"},
    {"--prometheus-port", kInt, nullptr, nullptr, kWorks, "a second port for /metrics (it is on --port, too)"},
    {"--prometheus-host", kString, "0.0.0.0", nullptr, kWorks, "address of that port"},
    {"--request-timeout-secs,--timeout", kFloat, "1800", nullptr, kWorks, "of one request"},
    {"--worker-startup-timeout-secs", kFloat, "1800", nullptr, kWorks, "until a server must have answered"},
    {"--worker-startup-check-interval", kFloat, "30", nullptr, kWorks, "between polls of /get_load (power_of_two)"},
    {"--max-concurrent-requests", kInt, "-1", nullptr, kWorks, "at a time; -1: no limit"},
    {"--queue-size", kInt, "100", nullptr, kWorks, "requests that wait beyond it; more get 429"},
    {"--queue-timeout-secs", kFloat, "60", nullptr, kWorks, "of a waiting request; then 408"},
    {"--retry-max-retries", kInt, "5", nullptr, kWorks, "attempts of a request"},
    {"--retry-initial-backoff-ms", kInt, "50", nullptr, kWorks, "first wait"},
    {"--retry-max-backoff-ms", kInt, "30000", nullptr, kWorks, "longest wait"},
    {"--retry-backoff-multiplier", kFloat, "1.5", nullptr, kWorks, "growth of the wait"},
    {"--retry-jitter-factor", kFloat, "0.2", nullptr, kWorks, "random share of the wait"},
    {"--disable-retries", kSwitch, nullptr, nullptr, kWorks, "one attempt"},
    {"--cb-failure-threshold", kInt, "10", nullptr, kWorks, "failures that open a server's circuit breaker"},
    {"--cb-success-threshold", kInt, "3", nullptr, kWorks, "trial successes that close it"},
    {"--cb-timeout-duration-secs", kFloat, "60", nullptr, kWorks, "open for this long"},
    {"--cb-window-duration-secs", kFloat, "120", nullptr, kWorks, "failures count for this long"},
    {"--disable-circuit-breaker", kSwitch, nullptr, nullptr, kWorks, "never open"},
    {"--health-failure-threshold", kInt, "3", nullptr, kWorks, "failed checks until a server is out"},
    {"--health-success-threshold", kInt, "2", nullptr, kWorks, "good checks until it is back"},
    {"--health-check-timeout-secs", kFloat, "5", nullptr, kWorks, "of one check"},
    {"--health-check-interval-secs", kFloat, "60", nullptr, kWorks, "between checks"},
    {"--health-check-endpoint", kString, "/health", nullptr, kWorks, "what is asked"},
};

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(',', begin)) != std::string::npos; begin = end + 1) {
    parts.push_back(text.substr(begin, end - begin));
  }
  parts.push_back(text.substr(begin));
  std::erase(parts, "");
  return parts;
}

std::optional<uint16_t> port_number(const std::string& word) {
  uint16_t port = 0;
  auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), port);
  if (error != std::errc() || stop != word.data() + word.size() || port == 0) return std::nullopt;
  return port;
}

// "--prefill URL 8998", "--prefill URL none", "--prefill URL URL", "--prefill URL,URL".
Status add_instances(const FlagValues& flags, const char* field, router::Role role,
                     std::vector<router::InstanceAddress>& instances) {
  const size_t first = instances.size();
  for (const std::vector<std::string>& row : flags.rows(field)) {
    for (const std::string& word : row) {
      const bool port_word = word == "none" || port_number(word).has_value();
      if (port_word && (role != router::Role::kPrefill || instances.size() == first)) {
        return invalid_input(fmt::format("argument --{}: wanted a URL, got '{}'", field, word));
      }
      if (port_word) {
        instances.back().bootstrap_port = port_number(word);
        continue;
      }
      for (const std::string& url : split_commas(word)) instances.push_back({url, role, std::nullopt});
    }
  }
  return Ok{};
}

Status set_bootstrap_ports(const FlagValues& flags, std::vector<router::InstanceAddress>& instances) {
  const std::vector<int64_t> ports = flags.integers("prefill_bootstrap_ports");
  if (ports.empty()) return Ok{};
  size_t next = 0;
  for (router::InstanceAddress& instance : instances) {
    if (instance.role != router::Role::kPrefill) continue;
    const size_t index = ports.size() == 1 ? 0 : next++;
    if (index >= ports.size()) break;
    if (ports[index] < 1 || ports[index] > 65535) {
      return invalid_input(fmt::format("argument --prefill-bootstrap-ports: wanted a port, got {}", ports[index]));
    }
    instance.bootstrap_port = uint16_t(ports[index]);
  }
  if (ports.size() > 1 && next != ports.size()) {
    return invalid_input(fmt::format("--prefill-bootstrap-ports: {} ports for {} --prefill URLs", ports.size(), next));
  }
  return Ok{};
}

Result<router::RouterConfig> router_config(const FlagValues& flags) {
  router::RouterConfig config;
  RETURN_IF_ERROR(add_instances(flags, "prefill", router::Role::kPrefill, config.instances));
  RETURN_IF_ERROR(set_bootstrap_ports(flags, config.instances));
  RETURN_IF_ERROR(add_instances(flags, "decode", router::Role::kDecode, config.instances));
  config.disaggregated = flags.enabled("pd_disaggregation") || flags.enabled("mini_lb") || !config.instances.empty();
  for (const std::string& url : flags.texts("worker_urls")) {
    if (config.disaggregated)
      return invalid_input("--worker-urls does not go with --prefill, --decode or --pd-disaggregation");
    config.instances.push_back({url, router::Role::kPlain, std::nullopt});
  }
  ASSIGN_OR_RETURN(config.policy.policy,
                   router::parse_policy(flags.enabled("mini_lb") ? "random" : flags.text("policy")));
  if (flags.has("prefill_policy")) {
    ASSIGN_OR_RETURN(config.prefill_policy, router::parse_policy(flags.text("prefill_policy")));
  }
  if (flags.has("decode_policy")) {
    ASSIGN_OR_RETURN(config.decode_policy, router::parse_policy(flags.text("decode_policy")));
  }
  config.dp_aware = flags.enabled("dp_aware");
  config.policy.cache_threshold = flags.number("cache_threshold");
  config.policy.balance_abs_threshold = size_t(std::max<int64_t>(0, flags.integer("balance_abs_threshold")));
  config.policy.balance_rel_threshold = flags.number("balance_rel_threshold");
  config.policy.eviction_interval = from_seconds(flags.number("eviction_interval_secs"));
  config.policy.max_tree_size = size_t(std::max<int64_t>(0, flags.integer("max_tree_size")));
  config.retry.enabled = !flags.enabled("disable_retries");
  config.retry.max_attempts = int(flags.integer("retry_max_retries"));
  config.retry.initial_backoff = std::chrono::milliseconds(flags.integer("retry_initial_backoff_ms"));
  config.retry.max_backoff = std::chrono::milliseconds(flags.integer("retry_max_backoff_ms"));
  config.retry.multiplier = flags.number("retry_backoff_multiplier");
  config.retry.jitter = flags.number("retry_jitter_factor");
  config.breaker.enabled = !flags.enabled("disable_circuit_breaker");
  config.breaker.failure_threshold = int(flags.integer("cb_failure_threshold"));
  config.breaker.success_threshold = int(flags.integer("cb_success_threshold"));
  config.breaker.timeout = from_seconds(flags.number("cb_timeout_duration_secs"));
  config.breaker.window = from_seconds(flags.number("cb_window_duration_secs"));
  config.health.failure_threshold = int(flags.integer("health_failure_threshold"));
  config.health.success_threshold = int(flags.integer("health_success_threshold"));
  config.health.timeout = from_seconds(flags.number("health_check_timeout_secs"));
  config.health.interval = from_seconds(flags.number("health_check_interval_secs"));
  config.health.endpoint = flags.text("health_check_endpoint");
  config.request_timeout = from_seconds(flags.number("request_timeout_secs"));
  config.startup_timeout = from_seconds(flags.number("worker_startup_timeout_secs"));
  config.load_interval = from_seconds(flags.number("worker_startup_check_interval"));
  config.max_concurrent_requests = int(flags.integer("max_concurrent_requests"));
  config.queue_size = size_t(std::max<int64_t>(0, flags.integer("queue_size")));
  config.queue_timeout = from_seconds(flags.number("queue_timeout_secs"));
  if (flags.has("api_key")) config.api_key = flags.text("api_key");
  if (flags.has("admin_api_key")) config.admin_api_key = flags.text("admin_api_key");
  for (const Flag& flag : kFlags) {
    if (flag.support == kLater && flags.given(field_name(flag))) {
      return invalid_input(fmt::format("{}: not in this version", flag.names));
    }
  }
  RETURN_IF_ERROR(config.validate());
  return config;
}

log::Level level_of(const std::string& name) {
  if (name == "debug") return log::Level::kDebug;
  if (name == "info") return log::Level::kInfo;
  return name == "warning" || name == "warn" ? log::Level::kWarning : log::Level::kError;
}

// Looks at the signal flag; drains at the first signal, stops at the second or at the deadline.
struct RouterProcess {
  static constexpr Duration kSignalPoll = std::chrono::milliseconds(50);
  static constexpr Duration kDrain = std::chrono::seconds(4);

  const SystemClock clock;
  profile::Metrics metrics;
  net::EventLoop loop;
  std::unique_ptr<router::Router> router;
  std::unique_ptr<net::HttpServer> http, metrics_http;
  std::shared_ptr<net::EventLoop::Timer> timer;
  std::optional<TimePoint> drain_deadline;

  Status listen(const FlagValues& flags, uint16_t default_port) {
    net::HttpServerOptions options;
    options.host = flags.text("host");
    options.port = flags.has("port") ? uint16_t(flags.integer("port")) : default_port;
    options.max_body_bytes = size_t(flags.integer("max_payload_size"));
    ASSIGN_OR_RETURN(http, net::HttpServer::listen(loop, options, router->handler()));
    log::info("router listens on {}:{}", options.host, http->port());
    if (!flags.has("prometheus_port")) return Ok{};
    net::HttpServerOptions scraped;
    scraped.host = flags.text("prometheus_host");
    scraped.port = uint16_t(flags.integer("prometheus_port"));
    net::HttpHandler handler = router->handler();
    auto metrics_only = [handler](net::HttpRequest request, std::shared_ptr<net::ResponseWriter> writer) {
      if (request.path == "/metrics") return handler(std::move(request), std::move(writer));
      net::HttpResponse missing;
      missing.status = 404;
      missing.body = R"({"detail":"Not Found"})";
      writer->send(std::move(missing));
    };
    ASSIGN_OR_RETURN(metrics_http, net::HttpServer::listen(loop, scraped, metrics_only));
    return Ok{};
  }

  void watch() {
    if (signals_seen() > 0 && !drain_deadline) {
      log::info("draining: {} requests are running", router->running());
      drain_deadline = clock.now() + kDrain;
      router->drain();
      http->drain();
    }
    if (drain_deadline && (router->running() == 0 || clock.now() > *drain_deadline || signals_seen() > 1)) {
      return loop.stop();
    }
    timer = loop.after(kSignalPoll, [this] { watch(); });
  }
};

int fail(const std::string& message) {
  fmt::print(stderr, "tandem router: error: {}\n", message);
  return 2;
}

int run(Args args, uint16_t default_port, bool mini) {
  Result<ParseOutcome> parsed =
      parse_flags(mini ? "mini_lb" : "router", "Routes requests to prefill and decode servers.", kFlags, args);
  if (!parsed) return fail(parsed.error().message);
  if (parsed->help_shown) return 0;
  FlagValues& flags = parsed->values;
  if (mini && !flags.given("policy")) flags.set("policy", "random");
  for (const char* field : {"port", "prometheus_port"}) {
    if (flags.has(field) && (flags.integer(field) < 1 || flags.integer(field) > 65535)) {
      return fail(fmt::format("--{}: wanted 1 to 65535, got {}", field, flags.integer(field)));
    }
  }
  if (flags.integer("max_payload_size") < 1) return fail("--max-payload-size: wanted at least 1");
  Result<router::RouterConfig> config = router_config(flags);
  if (!config) return fail(config.error().message);

  log::configure(level_of(flags.text("log_level")), false);
  if (flags.has("log_dir")) {
    if (Status kept = log::keep_daily_files(flags.text("log_dir"), "router"); !kept) return fail(kept.error().message);
  }
  watch_signals();
  RouterProcess process;
  std::random_device device;
  auto made = router::Router::create(process.loop, std::move(*config), process.clock,
                                     (uint64_t(device()) << 32) | device(), process.metrics);
  if (!made) return fail(made.error().message);
  process.router = std::move(*made);
  if (Status listening = process.listen(flags, default_port); !listening) return fail(listening.error().message);
  process.loop.post([&process] { process.watch(); });
  process.loop.run();
  log::info("stopped");
  return 0;
}

}  // namespace

int run_router(Args args) { return run(args, 30000, false); }

int run_mini_lb(Args args) { return run(args, 8000, true); }

}  // namespace tandem::app
