// ExpertBalancer: counts, plans and moves experts of a server's ranks while they serve. Its thread turns tick(); the
// ranks' engines never wait for it. It lives on node 0; each other node has an ExpertFollower, which it asks and
// orders. A plan is carried out in versions: the experts of a few layers are copied into spare places at a bounded
// rate, each copy is compared by digest, and the layers' tables change on all ranks before the same step, as the step
// vote says. Whatever fails before a version is staged leaves the placement as it is.
//
//   idle --due or asked--> planned --> [copying --> staged --all ranks applied--> next version]... --> idle
//                              \________ failed: the rest of the plan is dropped, back off ________/
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "api/node_experts.h"
#include "base/clock.h"
#include "base/queue.h"
#include "base/result.h"
#include "engine/expert_port.h"
#include "experts/balance.h"
#include "experts/balancedness.h"
#include "experts/dispatch.h"
#include "experts/placement.h"
#include "profile/metrics.h"

namespace tandem::engine {

struct ExpertBalancerConfig {
  experts::EpTopology topology;
  experts::DispatchAlgorithm dispatch = experts::DispatchAlgorithm::kStatic;
  int32_t num_groups = 1;            // the model's routing groups
  std::string algorithm = "tandem";  // a row of experts::balance_algorithms(); tandem: repair of the current placement
  bool is_periodic = false;          // --enable-eplb
  int64_t steps_between = 1000;      // --eplb-rebalance-num-iterations
  double skip_above = 1.0;           // balancedness of the window above which a due plan is skipped; 1: never
  double target = 0.97;              // of tandem's repair
  int32_t max_changed_per_layer = 1 << 30;  // slots that one plan of tandem may change
  int32_t layers_per_version = 1 << 30;     // --eplb-rebalance-layers-per-chunk; spare places bound it too
  int64_t bytes_per_step = 0;               // copied while one step runs, all ranks together; 0: as fast as it goes
  Duration progress_deadline = std::chrono::seconds(60);  // of a version: after it the plan is given up
  RecorderMode recorder_mode = RecorderMode::kStat;
  int64_t recorder_steps = 1000;                // passes kept by a recording; negative: as many as fit
  int64_t recorder_bytes = int64_t(512) << 20;  // of one rank; the oldest passes make room
  bool records_at_start = false;
  bool logs_balancedness = false;  // a line per pass
  int64_t heatmap_interval = 0;    // passes between additions to the histogram of rank loads; 0: never
  int32_t experts_per_token = 0;   // of the model
  int32_t first_rank = 0;          // number of the first port's rank, for the names of files
  std::string dump_directory = "/tmp";
  std::string model_name;  // label of the metrics
};

// What a plan is made from, and what it gives. A test may put another in its place.
struct PlanRequest {
  const experts::ExpertLoad& load;
  const experts::ExpertPlacement& current;
  std::string algorithm;
};
using PlanFn = std::function<Result<experts::ExpertPlacement>(const PlanRequest&)>;
// Copies bytes of one expert from rank to rank. A test may put a failing one in its place.
using CopyFn = std::function<Status(std::span<const std::byte> from, std::span<std::byte> to)>;

// How bytes of experts get from place to place within a process, and what is there then. In memory that is done at
// once; GPUs do it meanwhile, for each rank in order. Owner: the mover's thread. Its end waits for what is under way.
class PlaceCopies {
 public:
  virtual ~PlaceCopies() = default;
  virtual Status copy(int32_t to_rank, std::span<const std::byte> from, std::span<std::byte> to) = 0;
  // Of one of the rank's places, after all that was copied there. take: nullopt until it is known; the last one begun.
  virtual void begin_digest(int32_t rank, std::span<const std::byte> place) = 0;
  virtual std::optional<uint64_t> take_digest(int32_t rank) = 0;
};
// gpu_of_rank: of this process, whose slots are in GPU memory and whose ranks are those from 0.
Result<std::shared_ptr<PlaceCopies>> make_gpu_copies(std::span<const int32_t> gpu_of_rank);

// The other nodes of the server, each with an ExpertFollower.
struct NodeLinks {
  int32_t num_nodes = 1;  // with node 0
  // An encoded api::NodeExpertMessage. Ordered per node.
  std::function<PushResult(int32_t node, const std::string& bytes)> send;
  std::function<std::string(int32_t node)> name;
  Duration answer_deadline = std::chrono::seconds(10);  // of a question to a node
};

class SlabReads;

struct BalancerParts {
  const Clock* clock = nullptr;
  profile::Metrics* metrics = nullptr;
  std::vector<ExpertPort*> ports;      // one per rank of this node, in rank order; outlive the balancer
  experts::ExpertPlacement placement;  // what the ranks were loaded with
  PlanFn plan;                         // empty: by config.algorithm
  CopyFn copy;                         // empty: memcpy
  NodeLinks nodes;                     // of one node: nothing to set
  std::shared_ptr<SlabReads> reads;    // with several nodes. Shared only because this header does not know it
  std::shared_ptr<PlaceCopies> copies = nullptr;  // null: in memory, by `copy`
};

// What the world may know, copied under a lock.
struct BalancerFigures {
  uint64_t epoch = 0;    // plans carried out
  uint32_t version = 0;  // switches carried out
  bool in_progress = false;
  int32_t layers_left = 0;
  int64_t moves_done = 0, bytes_moved = 0;  // since the start
  uint64_t plans = 0, skipped = 0, failed = 0;
  double balancedness = 1;                                   // of the running window under the current placement
  double planned_balancedness = 1, before_balancedness = 1;  // of the last plan
  double last_planning_ms = 0;
  std::string last_error;
  bool is_recording = false;
};
struct BalancerView : BalancerFigures {
  experts::ExpertPlacement placement;
};

// What a plan will do, or that it was not made.
struct RebalanceReply {
  int64_t moves = 0;
  int32_t layers = 0;
  double before = 1, after = 1;  // balancedness under the window's load
  uint64_t epoch = 0;            // that it will have
};

class ExpertMover;
class OtherNodes;
struct CopyPace;
class ExpertRecorder;
struct BalancerMetrics;

class ExpertBalancer {
 public:
  ExpertBalancer(ExpertBalancerConfig config, BalancerParts parts);
  ~ExpertBalancer();

  // Any thread; answered on the balancer's thread, which must only be enqueued from.
  void start_recording(std::function<void(Status)> done);
  void stop_recording(std::function<void(Status)> done);
  // The paths of the files, one a line.
  void dump_recording(std::function<void(Result<std::string>)> done);
  // Plans now, from the counts so far; algorithm "" is the configured one. placement: JSON text of one to take instead
  // of a plan, as --init-expert-location has it; "" for none.
  void rebalance(std::string algorithm, std::string placement, std::function<void(Result<RebalanceReply>)> done);
  BalancerView view() const;
  // Any thread, with several nodes: what an ExpertFollower sent (an error: that is no message of it), and that the
  // group has ended, after which nobody waits for it.
  Status on_message(int32_t node, std::string_view bytes);
  void on_lost(const std::string& reason);

  // One round of bounded work. Returns whether there is more to do at once.
  bool tick();
  void run(std::stop_token stop);

 private:
  struct StartRecording {
    std::function<void(Status)> done;
  };
  struct StopRecording {
    std::function<void(Status)> done;
  };
  struct DumpRecording {
    std::function<void(Result<std::string>)> done;
  };
  struct Rebalance {
    std::string algorithm, placement;
    std::function<void(Result<RebalanceReply>)> done;
  };
  using Request = std::variant<StartRecording, StopRecording, DumpRecording, Rebalance>;

  void serve(StartRecording& request);
  void serve(StopRecording& request);
  void serve(DumpRecording& request);
  void serve(Rebalance& request);
  // To the other nodes, then here; done: with what became of it.
  void ask_all(api::NodeExpertAsk::What what, int64_t amount, std::function<void()> here,
               std::function<void(Status)> done);
  // Counts of all nodes up to now, then `then`.
  void with_counts(std::function<void(Status)> then);
  void look();
  void collect();
  bool is_due() const;
  void start_due();
  Result<RebalanceReply> start_plan(const std::string& algorithm, const experts::ExpertPlacement* given);
  Result<experts::ExpertPlacement> make_plan(const std::string& algorithm);
  Result<experts::ExpertPlacement> read_placement(const std::string& text) const;
  bool advance();
  void settle_version();
  void fail(const std::string& reason);
  void publish();

  const ExpertBalancerConfig config_;
  const BalancerParts parts_;
  const std::unique_ptr<BalancerMetrics> metrics_;
  BoundedQueue<Request> requests_;
  // The balancer's thread.
  std::unique_ptr<ExpertMover> mover_;
  std::unique_ptr<OtherNodes> nodes_;  // null: the only node
  std::unique_ptr<CopyPace> pace_;
  std::unique_ptr<ExpertRecorder> recorder_;
  experts::ExpertLoad window_;  // counts since the last plan
  int64_t window_steps_ = 0;
  bool is_gathering_ = false;                // counts for a plan that is due
  bool is_cut_short_ = false;                // what is staged of a plan that was given up
  int64_t moves_told_ = 0, bytes_told_ = 0;  // to the metrics
  int32_t backoff_ = 0;                      // doublings of steps_between after failures
  BalancerFigures now_;
  uint32_t shown_version_ = 0;  // whose placement is in view_
  TimePoint looked_at_{}, started_at_{};
  mutable std::mutex view_mutex_;
  BalancerView view_;  // guarded by view_mutex_
};

}  // namespace tandem::engine
