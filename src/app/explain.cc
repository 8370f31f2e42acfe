// tandem explain: who waits for whom, from flight recordings in directories and of running servers.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "app/commands.h"
#include "app/environment.h"
#include "app/fan_out.h"
#include "app/flags.h"
#include "net/http_client.h"
#include "profile/flight_explain.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Flag kFlags[] = {
    {"--json", kSwitch, nullptr, nullptr, kWorks, "the explanation as JSON"},
    {"--stuck-after", kFloat, "3", nullptr, kWorks, "seconds after which a wait counts as stuck"},
    kApiKeyFlag,
    kAdminApiKeyFlag,
    {"--timeout", kFloat, "5", nullptr, kWorks, "seconds to wait for a server's answer"},
};

struct Order {
  std::vector<std::string> sources;  // directories and URLs
  FlagValues flags;
};

// Sources stand anywhere between the flags.
Result<Order> read_order(Args args, bool& help_shown) {
  Order order;
  std::vector<std::string> flags;
  for (size_t i = 0; i < args.size(); ++i) {
    if (!args[i].starts_with("-")) {
      order.sources.push_back(args[i]);
      continue;
    }
    flags.push_back(args[i]);
    const auto row = std::ranges::find(kFlags, args[i], [](const Flag& flag) { return std::string_view(flag.names); });
    const bool has_value = row != std::end(kFlags) && row->kind != kSwitch;  // "--timeout=5" is no row's name
    if (has_value && i + 1 < args.size()) flags.push_back(args[++i]);
  }
  ASSIGN_OR_RETURN(ParseOutcome parsed,
                   parse_flags("explain DIR|URL...",
                               "Names the rank, step and operation that others wait for. DIR: flight recordings in it "
                               "and below. URL: a running server, or a router, which stands for its servers.",
                               kFlags, flags));
  help_shown = parsed.help_shown;
  order.flags = std::move(parsed.values);
  if (!help_shown && order.sources.empty()) return invalid_input("which recordings? tandem explain DIR|URL...");
  return order;
}

struct Gathered {
  std::vector<profile::FlightLog> logs;
  std::vector<std::string> faults;  // of sources that gave nothing, a line each
  bool is_silent = false;           // a server did not answer
};

struct Server {
  std::string url, authorization;
  Duration timeout;
};

Result<net::HttpResponse> ask(const Server& server) {
  net::ClientRequest request;
  request.method = "GET";
  ASSIGN_OR_RETURN(request.url, net::parse_url(server.url));
  request.url.path = "/flight_recorder?raw=1";
  request.connect_timeout = server.timeout;
  if (!server.authorization.empty()) request.headers.emplace_back("Authorization", server.authorization);
  return net::fetch(std::move(request), server.timeout);
}

// Takes the rings of a server that answers with them.
void take(const Server& server, const net::HttpResponse& answer, Gathered& to) {
  if (answer.status != 200) {
    to.faults.push_back(fmt::format("{}: HTTP {}: {}", server.url, answer.status, answer.body.substr(0, 200)));
    return;
  }
  Result<std::vector<profile::FlightLog>> logs = profile::parse_flight_logs(answer.body, server.url);
  if (!logs) return to.faults.push_back(logs.error().message);
  for (profile::FlightLog& log : *logs) to.logs.push_back(std::move(log));
}

// 0: it did not answer.
int gather_server(const Server& server, Gathered& to) {
  const Result<net::HttpResponse> answer = ask(server);
  if (answer) {
    take(server, *answer, to);
    return answer->status;
  }
  to.is_silent = true;
  to.faults.push_back(fmt::format("{}: {}", server.url, answer.error().message));
  return 0;
}

Status gather(const std::string& source, const FlagValues& flags, Gathered& to) {
  if (std::filesystem::is_directory(source)) {
    const SystemClock clock;
    ASSIGN_OR_RETURN(profile::FlightDirectory found, profile::read_flight_directory(source, clock));
    for (profile::FlightLog& log : found.logs) to.logs.push_back(std::move(log));
    to.faults.insert(to.faults.end(), found.faults.begin(), found.faults.end());
    return Ok{};
  }
  if (source.find('/') != std::string::npos && source.find("://") == std::string::npos) {
    return not_found(fmt::format("{}: no such directory", source));
  }
  RETURN_IF_ERROR(net::parse_url(source));
  const Server server{source, client_authorization(flags), target_timeout(flags)};
  if (gather_server(server, to) != 404) return Ok{};
  // A router has no rings, but servers that do.
  const Result<std::vector<Target>> behind = router_targets(source, "all", server.authorization);
  if (!behind) return Ok{};
  to.faults.pop_back();
  for (const Target& target : *behind) gather_server({target.url, server.authorization, server.timeout}, to);
  return Ok{};
}

int fail(const std::string& message) {
  fmt::print(stderr, "tandem explain: error: {}\n", message);
  return 2;
}

}  // namespace

// 0: nothing is stuck. 1: something is, or a server does not answer. 2: wrong flags, no recordings.
int run_explain(Args args) {
  bool help_shown = false;
  const Result<Order> order = read_order(args, help_shown);
  if (help_shown) return 0;
  if (!order) return fail(order.error().message);
  Gathered gathered;
  for (const std::string& source : order->sources) {
    const Status found = gather(source, order->flags, gathered);
    if (!found) return fail(found.error().message);
  }
  for (const std::string& fault : gathered.faults) fmt::print(stderr, "tandem explain: {}\n", fault);
  if (gathered.logs.empty()) return gathered.is_silent ? 1 : 2;
  constexpr double kMostPatience_s = 1e9;  // what a Duration holds is not much more
  const Duration patience = from_seconds(std::clamp(order->flags.number("stuck_after"), 0.0, kMostPatience_s));
  const profile::Explanation explanation = profile::explain(gathered.logs, {patience});
  fmt::print("{}", order->flags.enabled("json") ? profile::explanation_json(explanation) + "\n"
                                                : profile::explanation_text(explanation));
  return explanation.is_stuck || gathered.is_silent ? 1 : 0;
}

}  // namespace tandem::app
