#include "app/fan_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "app/environment.h"
#include "base/json.h"
#include "net/http_client.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Duration kAskRouter = std::chrono::seconds(10);

Result<Target> target_of(const std::string& url, std::string_view role) {
  ASSIGN_OR_RETURN(const net::Url parsed, net::parse_url(url));
  return Target{parsed.origin(), std::string(role)};
}

net::Headers headers_of(const std::string& authorization) {
  net::Headers headers{{"Content-Type", "application/json"}};
  if (!authorization.empty()) headers.emplace_back("Authorization", authorization);
  return headers;
}

// One line of an answer, however it was sent.
std::string first_line(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \r\n\t");
  if (begin == std::string_view::npos) return "";
  text.remove_prefix(begin);
  const size_t end = text.find_last_not_of(" \r\n\t");
  std::string line(text.substr(0, end + 1));
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

}  // namespace

Result<std::vector<Target>> router_targets(const std::string& url, const std::string& role,
                                           const std::string& authorization) {
  net::ClientRequest request;
  request.method = "GET";
  ASSIGN_OR_RETURN(request.url, net::parse_url(url));
  const std::string origin = request.url.origin();
  request.url.path = "/workers";
  request.headers = headers_of(authorization);
  auto answer = net::fetch(std::move(request), kAskRouter);
  if (!answer) return Error{answer.error().code, fmt::format("router {}: {}", origin, answer.error().message)};
  if (answer->status != 200) {
    return peer_lost(fmt::format("router {}: GET /workers: HTTP {}: {}", origin, answer->status, answer->body));
  }
  Result<std::vector<Target>> found = parse_workers(answer->body, role);
  if (!found) return Error{found.error().code, fmt::format("router {}: {}", origin, found.error().message)};
  return found;
}

std::vector<Flag> with_target_flags(std::span<const Flag> own, const char* default_role) {
  std::vector<Flag> flags(own.begin(), own.end());
  flags.push_back({"--router", kString, nullptr, nullptr, kWorks, "all servers of this router that have --role"});
  flags.push_back({"--role", kString, default_role, "all|prefill|decode|regular", kWorks, "which of them"});
  flags.push_back(
      {"--url", kStringList, nullptr, nullptr, kWorks, "servers by their URLs, beside or without a router"});
  flags.push_back(kApiKeyFlag);
  flags.push_back(kAdminApiKeyFlag);
  flags.push_back({"--timeout", kFloat, "60", nullptr, kWorks, "seconds to wait for the answers"});
  return flags;
}

Result<std::vector<Target>> parse_workers(std::string_view body, std::string_view role) {
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(body, "GET /workers"));
  simdjson::dom::array workers;
  if (document.root()["workers"].get_array().get(workers)) return invalid_input("GET /workers: no list 'workers'");
  std::vector<Target> found;
  for (const auto worker : workers) {
    std::string_view url, type = "regular";
    if (worker["url"].get_string().get(url)) return invalid_input("GET /workers: a worker without 'url'");
    if (simdjson::error_code wrong = worker["worker_type"].get_string().get(type); wrong == simdjson::INCORRECT_TYPE) {
      return invalid_input("GET /workers: a 'worker_type' that is no string");
    }
    if (role != "all" && role != type) continue;
    ASSIGN_OR_RETURN(Target target, target_of(std::string(url), type));
    found.push_back(std::move(target));
  }
  if (found.empty()) {
    return not_found(role == "all" ? "it has no servers" : fmt::format("it has no server with role {}", role));
  }
  return found;
}

Result<Targets> find_targets(const FlagValues& flags) {
  if (!flags.has("url") && !flags.has("router")) return invalid_input("which servers? --router URL or --url URL ...");
  Targets targets;
  targets.authorization = client_authorization(flags);
  if (flags.has("router")) {
    ASSIGN_OR_RETURN(targets.servers, router_targets(flags.text("router"), flags.text("role"), targets.authorization));
  }
  if (flags.has("url")) {
    for (const std::string& url : flags.texts("url")) {
      ASSIGN_OR_RETURN(Target named, target_of(url, ""));
      const auto same = [&](const Target& other) { return other.url == named.url; };
      if (std::none_of(targets.servers.begin(), targets.servers.end(), same)) {
        targets.servers.push_back(std::move(named));
      }
    }
  }
  return targets;
}

std::vector<FanOutAnswer> fan_out(const Targets& targets, const FanOutRequest& request) {
  std::vector<FanOutAnswer> answers;
  for (const Target& target : targets.servers) {
    answers.push_back({target, 0, "", fmt::format("no answer within {:.0f} s", seconds(request.timeout))});
  }
  net::EventLoop loop;
  net::HttpClient client(loop);
  size_t left = answers.size();
  const auto body = request.body.empty() ? nullptr : std::make_shared<const std::string>(request.body);
  std::vector<std::shared_ptr<net::ClientCall>> calls;
  for (FanOutAnswer& answer : answers) {
    net::ClientRequest sent;
    sent.method = request.method;
    sent.url = *net::parse_url(answer.target.url);
    sent.url.path = request.path;
    sent.headers = headers_of(targets.authorization);
    sent.body = body;
    sent.keep_alive = false;
    auto status = std::make_shared<int>(0);
    net::ClientHandlers handlers;
    handlers.on_headers = [status](int code, const net::Headers&) { *status = code; };
    handlers.on_body = [&answer](std::string_view bytes) { answer.body.append(bytes); };
    handlers.on_done = [&answer, &left, &loop, status](Status done) {
      answer.status = done ? *status : 0;
      answer.failure = done ? "" : done.error().message;
      if (--left == 0) loop.stop();
    };
    calls.push_back(client.start(std::move(sent), std::move(handlers)));
  }
  const auto deadline = loop.after(request.timeout, [&loop] { loop.stop(); });
  if (left > 0) loop.run();
  for (const auto& call : calls) call->cancel();
  return answers;
}

Duration target_timeout(const FlagValues& flags) { return from_seconds(std::max(0.0, flags.number("timeout"))); }

Status print_answers(std::span<const FanOutAnswer> answers) {
  size_t failed = 0;
  for (const FanOutAnswer& answer : answers) {
    std::string said = first_line(answer.body);
    if (!answer.ok()) {
      ++failed;
      said = answer.status == 0 ? "failed: " + answer.failure : fmt::format("HTTP {}: {}", answer.status, said);
    }
    fmt::print("{:<8} {:<28} {}\n", answer.target.role.empty() ? "server" : answer.target.role, answer.target.url,
               said.empty() ? "ok" : said);
  }
  if (failed > 0) return peer_lost(fmt::format("{} of {} servers did not do it", failed, answers.size()));
  return Ok{};
}

}  // namespace tandem::app
