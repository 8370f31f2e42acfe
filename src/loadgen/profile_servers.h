// Profiling from outside: starts and stops it on servers, or on all servers behind a router, and gathers the files of
// one capture. Blocking; not from a loop's thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace tandem::loadgen {

struct ProfileOrder {
  std::vector<std::string> urls;  // servers, and routers, which stand for their servers
  std::string authorization;      // value of the Authorization header; empty: none
  std::string output_dir;         // on the servers' machines; empty: their default
  std::string prefix;
  std::optional<int64_t> num_steps, start_step;
  std::vector<std::string> activities, stages;  // empty: the servers' default
  bool by_stage = false, record_shapes = true;
  bool merge = false;  // by each server, its own ranks
};

struct ProfiledServer {
  std::string url;
  std::string role;       // "prefill", "decode", or "" where nobody says
  std::string prefix;     // of its files
  int32_t num_ranks = 1;  // files that it will write, for each stage
};

// The servers that `url` stands for: itself, or what a router lists in /workers.
Result<std::vector<ProfiledServer>> find_servers(const std::string& url, const std::string& authorization);

// Starts profiling on all of them. With several servers their prefixes differ: "decode0", "prefill1". An error of one
// stops the others again.
Result<std::vector<ProfiledServer>> start_profiles(const ProfileOrder& order);
// Returns when all files are written.
Status stop_profiles(const std::vector<ProfiledServer>& servers, const std::string& authorization);

// The files of these servers in a directory of this machine, once each has written one per rank (of either stage); what
// is there when `patience` is over.
std::vector<std::string> wait_for_traces(const std::string& directory, const std::vector<ProfiledServer>& servers,
                                         Duration patience, const Clock& clock);

}  // namespace tandem::loadgen
