#include "app/flight_files.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "app/flight_sweep.h"
#include "base/log.h"
#include "profile/flight_explain.h"

namespace tandem::app {
namespace {

namespace fs = std::filesystem;

profile::FlightRole role_of(engine::Role role) {
  switch (role) {
    case engine::Role::kPrefill: return profile::FlightRole::kPrefill;
    case engine::Role::kDecode: return profile::FlightRole::kDecode;
    case engine::Role::kCombined: break;
  }
  return profile::FlightRole::kCombined;
}

const char* role_name(engine::Role role) {
  return role == engine::Role::kPrefill ? "prefill" : role == engine::Role::kDecode ? "decode" : "combined";
}

// Memory rather than a disk: a page that the kernel writes back can hold its writer up for a moment.
std::string default_parent() {
  constexpr const char* kMemory = "/dev/shm";
  if (std::getenv("TMPDIR") == nullptr && access(kMemory, W_OK | X_OK) == 0) return kMemory;
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  return error ? "/tmp" : parent.string();
}

Result<std::string> make_default_directory(engine::Role role, const Clock& clock) {
  const std::string parent = default_parent();
  const int removed = sweep_flight_folders(parent, clock);
  if (removed > 0)
    log::info("flight recorder: {} old folder(s) of servers that are gone removed in {}", removed, parent);
  std::string name = fmt::format("{}/{}{}-{}-XXXXXX", parent, kFlightFolderPrefix, role_name(role), getpid());
  if (mkdtemp(name.data()) == nullptr) return invalid_input(fmt::format("flight recorder: {}: cannot be made", name));
  return name;
}

// The time tells processes apart that have the same number after a restart, as in containers.
Result<std::string> make_named_directory(const ResolvedConfig& config, const Clock& clock) {
  const std::string name =
      fmt::format("{}/{}-node{}-{}-{:.0f}", config.flags.text("flight_recorder_dir"), role_name(config.engine.role),
                  config.node_rank, getpid(), clock.unix_seconds() * 1e3);
  std::error_code error;
  fs::create_directories(name, error);
  if (error) return invalid_input(fmt::format("--flight-recorder-dir: {}: {}", name, error.message()));
  return name;
}

}  // namespace

Result<std::unique_ptr<FlightFiles>> FlightFiles::create(const ResolvedConfig& config, uint64_t group,
                                                         const Clock& clock) {
  std::unique_ptr<FlightFiles> files(new FlightFiles());
  const bool is_named = config.flags.has("flight_recorder_dir");
  if (is_named && config.flags.text("flight_recorder_dir") == "none") return files;
  const Status opened = files->open(config, group, clock);
  if (!opened && is_named) return opened.error();
  if (!opened) {
    log::warning("{}: nothing is recorded", opened.error().message);
    return std::unique_ptr<FlightFiles>(new FlightFiles());
  }
  files->keeps_ = is_named;
  log::info("flight recorder: {} (read it with: tandem explain {})", files->directory_, files->directory_);
  return files;
}

Status FlightFiles::open(const ResolvedConfig& config, uint64_t group, const Clock& clock) {
  const bool is_named = config.flags.has("flight_recorder_dir");
  ASSIGN_OR_RETURN(directory_,
                   is_named ? make_named_directory(config, clock) : make_default_directory(config.engine.role, clock));
  for (int32_t i = 0; i < config.num_ranks; ++i) {
    profile::FlightIdentity identity;
    identity.epoch = config.engine.epoch;
    identity.group = group;
    identity.role = role_of(config.engine.role);
    identity.rank = config.node_rank * config.num_ranks + i;
    identity.num_ranks = config.num_nodes * config.num_ranks;
    identity.node = config.node_rank;
    identity.num_nodes = config.num_nodes;
    identity.num_layers = config.model.num_layers;
    identity.attention_size = config.attn_tp_size;
    const std::string path = fmt::format("{}/rank-{}{}", directory_, identity.rank, profile::kFlightSuffix);
    ASSIGN_OR_RETURN(auto recorder, profile::FlightRecorder::create(path, identity, clock));
    recorders_.push_back(std::move(recorder));
  }
  return Ok{};
}

FlightFiles::~FlightFiles() {
  recorders_.clear();
  if (directory_.empty() || keeps_) return;
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

std::vector<const profile::FlightRecorder*> FlightFiles::all() const {
  std::vector<const profile::FlightRecorder*> all;
  for (const auto& recorder : recorders_) all.push_back(recorder.get());
  return all;
}

Duration flight_patience(double watchdog_s) {
  return std::min(profile::ExplainOptions().patience, from_seconds(watchdog_s / 2));
}

void FlightFiles::explain_fault(Duration patience) {
  if (recorders_.empty()) return;
  keeps_ = true;
  const profile::Explanation explanation = profile::explain(profile::read_flights(all()), {patience});
  std::istringstream lines(profile::explanation_sentences(explanation));
  for (std::string line; std::getline(lines, line);) log::error("flight recorder: {}", line);
  log::error("flight recorder: kept in {} (tandem explain {})", directory_, directory_);
}

}  // namespace tandem::app
