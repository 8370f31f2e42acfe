// What `tandem doctor` says of what it found: pure functions from facts to findings, and the findings as a table.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace tandem::app {

enum class Verdict : uint8_t { kOk, kWarn, kFail };
const char* to_string(Verdict verdict);

struct Finding {
  std::string name;
  Verdict verdict = Verdict::kOk;
  std::string found;
  std::string fix;  // "" where there is nothing to do
};

// Of the machine, asked once (doctor_probe.h). Absent: not known here.
struct MachineFacts {
  std::optional<uint64_t> shm_bytes;      // size of /dev/shm
  std::optional<uint64_t> memlock_bytes;  // RLIMIT_MEMLOCK, UINT64_MAX: unlimited
  std::optional<uint64_t> open_files;     // RLIMIT_NOFILE
  std::optional<int64_t> overcommit;      // /proc/sys/vm/overcommit_memory
  std::optional<std::string> huge_pages;  // transparent_hugepage/enabled: "always", "madvise" or "never"
  std::vector<std::string> rdma_nics;     // of /sys/class/infiniband
};
// One finding each.
std::vector<Finding> check_machine(const MachineFacts& facts);

// A port that a server of these flags listens at. what: "HTTP", "KV", "meeting".
struct PortFact {
  std::string what, flag, host;
  uint16_t port = 0;
  Status bound = Ok{};
};
Finding check_port(const PortFact& fact);

// The interface on the way to a host.
struct RouteFact {
  std::string host;
  Result<std::string> own_address = not_found("");
  std::string interface;
  int64_t mtu = 0;  // 0: not known
};
Finding check_route(const RouteFact& fact);

// What the other side of the exchange and the wire to it said (doctor_peer.h).
struct PeerFact {
  std::string address;
  std::string version;  // of the other side
  double round_trip_us = 0, bandwidth_mb_per_s = 0;
  double skew_s = 0;             // the other side's clock ahead of ours
  int64_t own_mtu = 0, mtu = 0;  // 0: not known
};
// Reachability with figures, clock, MTU; or that it was not reached.
std::vector<Finding> check_peer(const std::string& address, const Result<PeerFact>& fact, const std::string& version);

// A running instance of Tandem.
struct InstanceFact {
  int status = 0;                // of /health
  std::optional<double> skew_s;  // of its Date header, to a second
};
std::vector<Finding> check_instance(const std::string& url, const Result<InstanceFact>& fact);

// tolerance_s: how exactly the skew is known.
Finding check_clock(const std::string& name, double skew_s, double tolerance_s);

bool any_failed(std::span<const Finding> findings);
std::string findings_table(std::span<const Finding> findings);
json::Object findings_json(std::span<const Finding> findings);

}  // namespace tandem::app
