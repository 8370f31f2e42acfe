// A fleet under virtual time: real engines with the fake model, the simulated network, the router's pair choice, and
// clients that cancel. Checks as it goes that nobody hears of a request after its end; what must hold at the end is
// check().
#pragma once

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "router/pick_pair.h"
#include "tests/engine/engine_rig.h"
#include "tests/sim/sim_network.h"

namespace tandem::testing {

struct SimOptions {
  uint64_t seed = 0;
  int num_prefill = 2, num_decode = 2;
  int num_requests = 200;
  double cancel_rate = 0.3;
  int num_crashes = 2;
  double stall_rate = 0.002;  // chance per turn that an engine stands still for a while
  NetworkFaults faults;
  double digest_sample_rate = -1;                    // -1: all or none, by the seed
  Duration arrivals = std::chrono::milliseconds(2);  // mean time between requests
};

struct SimOutcome {
  int served = 0, cancelled = 0, failed = 0, crashes = 0, retractions = 0;
  uint64_t trace = 0;  // over every event of every engine, in order
  uint64_t handover_bytes = 0, handovers = 0, spoiled_reads = 0;
};

class SimFleet {
 public:
  explicit SimFleet(const SimOptions& options);
  // Runs to the end and checks; failures are reported to GoogleTest with the seed.
  SimOutcome run();

 private:
  struct Process {
    uint64_t id = 0;
    bool is_prefill = false;
    int index = 0;
    kv::TransferPort port{1 << 16};
    std::unique_ptr<kv::KvStorage> storage;
    std::unique_ptr<FakeModel> model;
    std::vector<std::unique_ptr<parallel::Communicator>> communicators;
    profile::Metrics metrics;
    TimePoint stalled_until{};
    std::unique_ptr<engine::Engine> engine;  // last
  };
  struct Leg {  // one side of a request
    uint64_t process = 0;
    bool submitted = false, lost = false;  // lost: its process crashed
    std::vector<int32_t> tokens;
    std::optional<api::FinishReason> finish;
    int retractions = 0;
    bool over() const { return lost || finish.has_value(); }
  };
  struct SimRequest {
    api::EngineRequest wire;
    bool cancelled = false;
    Leg prefill, decode;
  };

  void start_process(bool is_prefill, int index);
  void crash_process(bool is_prefill, int index);
  std::unique_ptr<Process>& slot(bool is_prefill, int index) {
    return (is_prefill ? prefills_ : decodes_)[size_t(index)];
  }
  Process* alive(uint64_t id);
  void plan_requests();
  void arrive(uint64_t id);
  void submit(uint64_t id, Leg& leg);
  void cancel(uint64_t id, Leg& leg);
  void cancel_both(uint64_t id);
  void take(uint64_t process, api::EngineEvent event);
  bool turn_engines();
  bool all_over() const;
  void check(SimOutcome& outcome);
  void check_request(uint64_t id, const SimRequest& request, SimOutcome& outcome);
  void check_process(const Process& process);
  engine::EngineConfig config(bool is_prefill, uint64_t epoch) const;
  uint64_t draw(uint64_t bound) { return random_() % bound; }
  Duration delay() { return std::chrono::microseconds(draw(5000)); }
  void trace(uint64_t value) { outcome_.trace = hash_step(outcome_.trace, int32_t(value)) ^ (value >> 32); }

  const SimOptions options_;
  std::mt19937_64 random_;
  ManualClock clock_;
  Timeline timeline_;
  SimNetwork network_;
  device::ThreadPool pool_;
  device::Workspace workspace_;
  router::Picker pick_prefill_, pick_decode_;
  std::vector<std::unique_ptr<Process>> prefills_, decodes_;
  std::map<uint64_t, SimRequest> requests_;
  std::map<uint64_t, size_t> in_flight_;  // by process
  uint64_t next_process_ = 1;
  SimOutcome outcome_;
};

}  // namespace tandem::testing
