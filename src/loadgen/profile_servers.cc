#include "loadgen/profile_servers.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "base/json.h"
#include "loadgen/target.h"

namespace tandem::loadgen {
namespace {

// A start is answered between two steps; a stop when the files are written.
constexpr Duration kStartTimeout = std::chrono::seconds(600);
constexpr Duration kLook = std::chrono::milliseconds(50);

std::string body_of(const ProfileOrder& order, const std::string& prefix) {
  json::Object body;
  if (!order.output_dir.empty()) body["output_dir"] = order.output_dir;
  if (order.num_steps) body["num_steps"] = *order.num_steps;
  if (order.start_step) body["start_step"] = *order.start_step;
  if (!order.activities.empty()) body["activities"] = json::Array(order.activities.begin(), order.activities.end());
  if (!order.stages.empty()) body["profile_stages"] = json::Array(order.stages.begin(), order.stages.end());
  body["profile_by_stage"] = order.by_stage;
  body["record_shapes"] = order.record_shapes;
  body["merge_profiles"] = order.merge;
  if (!prefix.empty()) body["profile_prefix"] = prefix;
  return json::dump(body);
}

// As many as the server has ranks; 1 where it does not say.
int32_t ranks_of(const Target& target) {
  const auto info = target.server_info();
  int64_t ranks = 0;
  if (info && info->root()["tp_size"].get(ranks) == simdjson::SUCCESS && ranks > 0 && ranks < (1 << 20)) {
    return int32_t(ranks);
  }
  return 1;
}

std::string joined(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "-" + name;
}

}  // namespace

Result<std::vector<ProfiledServer>> find_servers(const std::string& url, const std::string& authorization) {
  ASSIGN_OR_RETURN(const Target target, Target::create(url, authorization));
  const auto listed = target.get("/workers");
  if (!listed) {
    if (listed.error().code != ErrorCode::kNotFound) return listed.error();
    return std::vector<ProfiledServer>{{url, "", "", 1}};  // no router
  }
  ASSIGN_OR_RETURN(const json::Document document, json::Document::parse(*listed, url + "/workers"));
  simdjson::dom::array workers;
  if (document.root()["workers"].get(workers) != simdjson::SUCCESS) {
    return invalid_input(fmt::format("{}/workers: no list of workers", url));
  }
  std::vector<ProfiledServer> servers;
  for (const simdjson::dom::element worker : workers) {
    std::string_view where, role;
    if (worker["url"].get(where) != simdjson::SUCCESS) continue;
    if (worker["worker_type"].get(role) != simdjson::SUCCESS) role = "";
    servers.push_back({std::string(where), std::string(role), "", 1});
  }
  if (servers.empty()) return not_found(fmt::format("{}: the router has no servers", url));
  return servers;
}

Result<std::vector<ProfiledServer>> start_profiles(const ProfileOrder& order) {
  std::vector<ProfiledServer> servers;
  for (const std::string& url : order.urls) {
    ASSIGN_OR_RETURN(const std::vector<ProfiledServer> found, find_servers(url, order.authorization));
    servers.insert(servers.end(), found.begin(), found.end());
  }
  for (size_t i = 0; i < servers.size(); ++i) {
    ProfiledServer& server = servers[i];
    const std::string role = server.role.empty() || server.role == "regular" ? "server" : server.role;
    server.prefix = servers.size() > 1 ? joined(order.prefix, fmt::format("{}{}", role, i)) : order.prefix;
    ASSIGN_OR_RETURN(const Target target, Target::create(server.url, order.authorization));
    server.num_ranks = ranks_of(target);
    const auto answer = target.post("/start_profile", body_of(order, server.prefix), kStartTimeout);
    if (answer) continue;
    const Error error{answer.error().code, fmt::format("{}: {}", server.url, answer.error().message)};
    servers.resize(i);
    static_cast<void>(stop_profiles(servers, order.authorization));
    return error;
  }
  return servers;
}

Status stop_profiles(const std::vector<ProfiledServer>& servers, const std::string& authorization) {
  Status first = Ok{};
  for (const ProfiledServer& server : servers) {
    const auto target = Target::create(server.url, authorization);
    if (!target) return target.error();
    const auto answer = target->post("/stop_profile", "", kStartTimeout);
    if (!answer && first) {
      first = Error{answer.error().code, fmt::format("{}: {}", server.url, answer.error().message)};
    }
  }
  return first;
}

std::vector<std::string> wait_for_traces(const std::string& directory, const std::vector<ProfiledServer>& servers,
                                         Duration patience, const Clock& clock) {
  const TimePoint deadline = clock.now() + patience;
  for (;;) {
    std::vector<std::string> paths;
    bool complete = true;
    for (const ProfiledServer& server : servers) {
      int32_t count = 0;
      std::error_code error;
      for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
        const std::string name = entry.path().filename().string();
        const bool is_its = server.prefix.empty() || name.starts_with(server.prefix + "-");
        if (!is_its || !name.ends_with(".trace.json.gz") || name.find("-TP-") == std::string::npos) continue;
        paths.push_back(entry.path().string());
        ++count;
      }
      complete = complete && count >= server.num_ranks;
    }
    std::ranges::sort(paths);
    // Not std::ranges::unique: clang 14 (the fuzz preset) does not compile it with this standard library.
    paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
    if (complete || clock.now() >= deadline) return paths;
    std::this_thread::sleep_for(kLook);
  }
}

}  // namespace tandem::loadgen
