#include "app/doctor_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tandem::app {
namespace {

constexpr uint64_t kSmallShm = uint64_t(64) << 20;  // what containers get by default
constexpr uint64_t kFewFiles = 4096, kTooFewFiles = 256;
constexpr int64_t kSmallMtu = 1500;
constexpr double kClockWarn_s = 0.1, kClockFail_s = 30;
constexpr double kSlowMbPerS = 100, kSlowRoundTrip_us = 5000;

std::string size_text(uint64_t bytes) {
  if (bytes == UINT64_MAX) return "unlimited";
  if (bytes >= uint64_t(1) << 30) return fmt::format("{:.1f} GiB", double(bytes) / double(1 << 30));
  if (bytes >= uint64_t(1) << 20) return fmt::format("{:.0f} MiB", double(bytes) / (1 << 20));
  return fmt::format("{} KiB", bytes >> 10);
}

Finding check_shm(const MachineFacts& facts) {
  if (!facts.shm_bytes) return {"/dev/shm", Verdict::kWarn, "not there", "mount a tmpfs at /dev/shm"};
  Finding finding{"/dev/shm", Verdict::kOk, size_text(*facts.shm_bytes), ""};
  if (*facts.shm_bytes <= kSmallShm) {
    finding.verdict = Verdict::kWarn;
    finding.fix = "give the container more: docker run --shm-size=8g, or an emptyDir of medium Memory at /dev/shm";
  }
  return finding;
}

// Pinning is what RDMA does; over TCP nothing is pinned.
Finding check_memlock(const MachineFacts& facts) {
  if (!facts.memlock_bytes) return {"locked memory", Verdict::kOk, "limit not known", ""};
  Finding finding{"locked memory", Verdict::kOk, size_text(*facts.memlock_bytes), ""};
  if (*facts.memlock_bytes == UINT64_MAX || facts.rdma_nics.empty()) return finding;
  finding.verdict = Verdict::kWarn;
  finding.found += fmt::format(", with RDMA NIC {}", facts.rdma_nics.front());
  finding.fix = "ulimit -l unlimited (limits.conf memlock, LimitMEMLOCK=infinity, docker run --ulimit memlock=-1)";
  return finding;
}

Finding check_files(const MachineFacts& facts) {
  if (!facts.open_files) return {"open files", Verdict::kOk, "limit not known", ""};
  Finding finding{"open files", Verdict::kOk, fmt::format("at most {}", *facts.open_files), ""};
  if (*facts.open_files == UINT64_MAX) finding.found = "unlimited";
  if (*facts.open_files >= kFewFiles) return finding;
  finding.verdict = *facts.open_files < kTooFewFiles ? Verdict::kFail : Verdict::kWarn;
  finding.fix = "ulimit -n 65536 (a connection takes one)";
  return finding;
}

Finding check_overcommit(const MachineFacts& facts) {
  if (!facts.overcommit) return {"overcommit", Verdict::kOk, "not known", ""};
  Finding finding{"overcommit", Verdict::kOk, fmt::format("vm.overcommit_memory={}", *facts.overcommit), ""};
  if (*facts.overcommit == 2) {
    finding.verdict = Verdict::kWarn;
    finding.fix = "sysctl vm.overcommit_memory=0: mapped checkpoints count against the limit";
  }
  return finding;
}

Finding check_huge_pages(const MachineFacts& facts) {
  if (!facts.huge_pages) return {"huge pages", Verdict::kOk, "not known", ""};
  Finding finding{"huge pages", Verdict::kOk, "transparent: " + *facts.huge_pages, ""};
  if (*facts.huge_pages == "never") {
    finding.verdict = Verdict::kWarn;
    finding.fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
  }
  return finding;
}

}  // namespace

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk: return "ok";
    case Verdict::kWarn: return "warn";
    case Verdict::kFail: return "fail";
  }
  return "?";
}

std::vector<Finding> check_machine(const MachineFacts& facts) {
  return {check_shm(facts), check_memlock(facts), check_files(facts), check_overcommit(facts), check_huge_pages(facts)};
}

Finding check_port(const PortFact& fact) {
  Finding finding{fmt::format("port {}", fact.what), Verdict::kOk, fmt::format("{}:{} is free", fact.host, fact.port),
                  ""};
  if (fact.bound) return finding;
  finding.verdict = Verdict::kFail;
  finding.found = fmt::format("{}:{}: {}", fact.host, fact.port, fact.bound.error().message);
  finding.fix = fmt::format("end what listens there (ss -ltnp), or give another {}", fact.flag);
  return finding;
}

Finding check_route(const RouteFact& fact) {
  Finding finding{"route " + fact.host, Verdict::kOk, "", ""};
  if (!fact.own_address) {
    finding.verdict = Verdict::kFail;
    finding.found = fact.own_address.error().message;
    finding.fix = "check the name (getent hosts) and the routes (ip route get)";
    return finding;
  }
  finding.found = fmt::format("from {}", *fact.own_address);
  if (!fact.interface.empty()) finding.found += fmt::format(" on {}, MTU {}", fact.interface, fact.mtu);
  if (fact.mtu > 0 && fact.mtu < kSmallMtu) {
    finding.verdict = Verdict::kWarn;
    finding.fix = fmt::format("ip link set {} mtu 9000, or a network without a tunnel", fact.interface);
  }
  return finding;
}

Finding check_clock(const std::string& name, double skew_s, double tolerance_s) {
  const double off = std::max(0.0, std::abs(skew_s) - tolerance_s);
  Finding finding{"clock " + name, Verdict::kOk, fmt::format("{:+.3f} s against ours (+-{:.3f})", skew_s, tolerance_s),
                  ""};
  if (off <= kClockWarn_s) return finding;
  finding.verdict = off > kClockFail_s ? Verdict::kFail : Verdict::kWarn;
  finding.fix = "run chronyd or ntpd on both hosts (chronyc makestep): logs and traces cannot be laid side by side";
  return finding;
}

std::vector<Finding> check_peer(const std::string& address, const Result<PeerFact>& fact, const std::string& version) {
  Finding reach{"peer " + address, Verdict::kOk, "", ""};
  if (!fact) {
    reach.verdict = Verdict::kFail;
    reach.found = fact.error().message;
    reach.fix =
        "start `tandem doctor --listen PORT` there; else look for a firewall, or a device that --disaggregation-"
        "ib-device should leave out";
    return {reach};
  }
  reach.found =
      fmt::format("round trip {:.0f} us, {:.0f} MB/s from there", fact->round_trip_us, fact->bandwidth_mb_per_s);
  if (fact->round_trip_us > kSlowRoundTrip_us || fact->bandwidth_mb_per_s < kSlowMbPerS) {
    reach.verdict = Verdict::kWarn;
    reach.fix = "choose faster devices with --disaggregation-ib-device; a busy machine looks slow, too";
  }
  if (fact->version != version) {
    reach.verdict = Verdict::kFail;
    reach.found += fmt::format("; it is tandem {}, this is {}", fact->version, version);
    reach.fix = "install the same version on all nodes";
  }
  std::vector<Finding> findings = {reach, check_clock(address, fact->skew_s, fact->round_trip_us / 2e6)};
  if (fact->mtu > 0 && fact->own_mtu > 0) {
    Finding mtu{"MTU " + address, Verdict::kOk, fmt::format("{} here, {} there", fact->own_mtu, fact->mtu), ""};
    if (fact->mtu != fact->own_mtu) {
      mtu.verdict = Verdict::kWarn;
      mtu.fix = "set the same MTU on both interfaces (ip link set DEVICE mtu N)";
    }
    findings.push_back(mtu);
  }
  return findings;
}

std::vector<Finding> check_instance(const std::string& url, const Result<InstanceFact>& fact) {
  Finding health{"instance " + url, Verdict::kOk, "", ""};
  if (!fact) {
    health.verdict = Verdict::kFail;
    health.found = fact.error().message;
    health.fix = "start it, or check --host (127.0.0.1 is not reachable from elsewhere) and the firewall";
    return {health};
  }
  health.found = fmt::format("/health: {}", fact->status);
  if (fact->status != 200) {
    health.verdict = Verdict::kFail;
    health.fix = "it starts, drains or is stuck: see its log";
  }
  std::vector<Finding> findings = {health};
  if (fact->skew_s) findings.push_back(check_clock(url, *fact->skew_s, 1.0));
  return findings;
}

bool any_failed(std::span<const Finding> findings) {
  return std::any_of(findings.begin(), findings.end(), [](const auto& one) { return one.verdict == Verdict::kFail; });
}

std::string findings_table(std::span<const Finding> findings) {
  size_t width = 5;
  for (const Finding& finding : findings) width = std::max(width, finding.name.size());
  std::string text;
  size_t counts[3] = {};
  for (const Finding& finding : findings) {
    ++counts[size_t(finding.verdict)];
    text += fmt::format("{:<4}  {:<{}}  {}\n", to_string(finding.verdict), finding.name, width, finding.found);
    if (!finding.fix.empty()) text += fmt::format("{:<{}}fix: {}\n", "", width + 8, finding.fix);
  }
  return text + fmt::format("{} ok, {} warn, {} fail\n", counts[0], counts[1], counts[2]);
}

json::Object findings_json(std::span<const Finding> findings) {
  json::Array checks;
  for (const Finding& finding : findings) {
    checks.push_back(json::Object{{"name", finding.name},
                                  {"verdict", to_string(finding.verdict)},
                                  {"found", finding.found},
                                  {"fix", finding.fix}});
  }
  return json::Object{{"ok", !any_failed(findings)}, {"checks", std::move(checks)}};
}

}  // namespace tandem::app
