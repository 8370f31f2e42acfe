// What the thin clients of the control endpoints share (experts record, slow_down, profile): which servers are meant,
// and one request to all of them at the same time. Blocking, with an own loop; not from a loop's thread.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "app/flags.h"
#include "base/clock.h"
#include "base/result.h"

namespace tandem::app {

struct Target {
  std::string url;   // "http://host:port"
  std::string role;  // prefill, decode or regular, as the router calls it; "" where --url names the server
};

struct Targets {
  std::vector<Target> servers;
  std::string authorization;  // header value, or empty
};

// A command's own rows and those that say which servers are meant: --url, --router, --role, --api-key,
// --admin-api-key, --timeout.
// default_role: which of a router's servers without --role: "all", "prefill" or "decode".
std::vector<Flag> with_target_flags(std::span<const Flag> own, const char* default_role);

// The servers that the flags mean: every --url, and the router's servers of --role (GET /workers), each once.
// Errors: neither is named, a URL that is none, a router that does not answer or has no server of that role.
Result<Targets> find_targets(const FlagValues& flags);

// A router's servers of one role, or "all".
Result<std::vector<Target>> router_targets(const std::string& url, const std::string& role,
                                           const std::string& authorization);

// The part of find_targets that reads a router's answer; pure. role: "all" or one role.
Result<std::vector<Target>> parse_workers(std::string_view body, std::string_view role);

struct FanOutRequest {
  const char* method = "POST";
  std::string path;  // "/slow_down"
  std::string body;  // JSON; empty: none
  Duration timeout = std::chrono::seconds(60);
};

struct FanOutAnswer {
  Target target;
  int status = 0;  // 0: no answer
  std::string body;
  std::string failure;  // why there is no answer
  bool ok() const { return status == 200; }
};

// Sends to all at once and waits for the last answer or the timeout. In the order of the targets.
std::vector<FanOutAnswer> fan_out(const Targets& targets, const FanOutRequest& request);

// --timeout as a duration.
Duration target_timeout(const FlagValues& flags);

// A line per server on stdout: role, URL, and what it said. Error: not all answered 200.
Status print_answers(std::span<const FanOutAnswer> answers);

}  // namespace tandem::app
