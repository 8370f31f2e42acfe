// Engine: one rank's loop. Takes commands, plans, votes, steps the model, gives events. One engine thread runs it; the
// other threads only push commands, read the snapshot and receive events through the sink. A server with several ranks
// talks to all of them through one EngineGroup (engine/group.h).
//   server --Command--> [queue] --> turn(): admit, plan, vote, decide, forward, sample --> sink(EngineEvent)
// The same object runs prefill, decode and combined servers; the simulation calls turn() itself with a virtual clock.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <variant>
#include <vector>

#include "api/generate.h"
#include "api/handover.h"
#include "api/profile.h"
#include "base/clock.h"
#include "base/queue.h"
#include "kv/storage.h"
#include "kv/transfer_thread.h"
#include "model/model.h"
#include "parallel/communicator.h"
#include "profile/metrics.h"

namespace tandem::profile {
class FlightRecorder;
class Recorder;
class SharedRecorder;
class TraceWriter;
}  // namespace tandem::profile

namespace tandem::engine {

class ExpertPort;
class PlanBoard;

enum class Role : uint8_t { kCombined, kPrefill, kDecode };
enum class SchedulePolicy : uint8_t { kFcfs, kLpm, kRandom, kDfsWeight, kLof };

struct EngineConfig {
  Role role = Role::kCombined;
  int32_t block_tokens = 1;            // --page-size
  int32_t max_total_tokens = 0;        // KV pool, tokens; multiple of block_tokens
  int32_t max_running_requests = 0;    // per rank
  int32_t max_queued_requests = 0;     // 0: unbounded by the user, still bounded by the command queue; ignored in PD
  int32_t chunked_prefill_size = 0;    // tokens; 0: no chunking
  int32_t max_prefill_tokens = 16384;  // new tokens of one prefill step
  int32_t context_length = 0;
  bool radix_cache = true;  // always off on decode
  SchedulePolicy policy = SchedulePolicy::kFcfs;
  bool priority_scheduling = false;        // requests of higher priority go first; first come, first served within one
  bool low_priority_values_first = false;  // the lower value is the higher priority
  int32_t preemption_threshold = 10;       // combined: a waiting request retracts running ones that much less urgent
  double schedule_conservativeness = 1.0;
  int32_t num_reserved_decode_tokens = 512;
  bool two_batch_overlap = false;          // --enable-two-batch-overlap
  model::DecodeRecording recorded_decode;  // GPU backends: --cuda-graph-bs
  int32_t max_low_latency_tokens = 0;  // largest decode batch of a rank that the low-latency exchange takes; 0: never
  int32_t decode_log_interval = 40;
  Duration bootstrap_timeout = std::chrono::seconds(300);     // prefill: decode neither asked nor said that it will
  Duration waiting_timeout = std::chrono::seconds(300);       // decode: no completion after it asked
  Duration source_lease_timeout = std::chrono::seconds(300);  // prefill: no acknowledgement after the last announcement
  uint16_t default_bootstrap_port = 8998;
  std::vector<api::RankAddress> rank_addresses;  // prefill with several ranks: where each hands over; told to decode
  bool fake_transfer = false;        // --disaggregation-transfer-backend fake: every request as with host 2.2.2.2
  double digest_sample_rate = 0.01;  // share of handovers whose bytes are compared; 1 in tests
  uint64_t epoch = 0;                // this process's random epoch
  uint64_t seed = 0;                 // for policies and requests without a seed
  int32_t dp_rank = 0;               // this rank's number among those with requests of their own; label of the metrics
  int32_t tp_rank = 0;               // this rank's number among all; label of the metrics
  int32_t attn_tp_size = 1;          // ranks that share this one's requests; all sizes here are of them together
  int32_t attn_tp_rank = 0;          // 0: leads them; others only follow (engine/follower.h)
  std::string log_scope;             // "" or "DP0 TP0 EP0"
  bool log_forward_iters = false;    // SGLANG_LOG_FORWARD_ITERS
  bool log_request_times = false;    // a Req Time Stats line at the end of every request
  std::string model_name;            // label of the metrics: --served-model-name
};
Status validate(const EngineConfig& config);
// What the model must be able to run in one step under this configuration.
model::ForwardLimits forward_limits(const EngineConfig& config);
// Low-latency form where the whole group decodes and every rank's share of its batch fits it.
parallel::ExchangeMode exchange_mode(const EngineConfig& config, const parallel::StepDecision& decision);

// Borrowed; all outlive the engine.
struct EngineParts {
  const Clock* clock = nullptr;
  model::Model* model = nullptr;
  kernels::Context kernels;  // for sampling
  kv::KvStorage* cache = nullptr;
  kv::TransferPort* transfer = nullptr;  // null for combined servers
  parallel::Communicator* communicator = nullptr;
  profile::Metrics* metrics = nullptr;
  ExpertPort* experts = nullptr;              // null: experts are neither counted nor moved
  PlanBoard* plans = nullptr;                 // of the attention group; null where attn_tp_size is 1
  profile::FlightRecorder* flight = nullptr;  // of this rank; null: nothing is noted
  // Profiling; without the first and the last it is refused.
  profile::Recorder* spans = nullptr;                 // of this rank's engine thread
  profile::SharedRecorder* transfer_spans = nullptr;  // of its transfer thread; null: none
  profile::TraceWriter* traces = nullptr;
};

// Server -> engine.
struct SubmitCommand {
  api::EngineRequest request;
};
enum class CancelReason : uint8_t { kAborted, kDisconnected, kStopText };
struct CancelCommand {  // ends a request wherever it is; unknown ids are a no-op
  RequestId id;
  CancelReason reason;
  std::string matched_text;  // kStopText: the event's finish then says so
};
struct FlushCacheCommand {         // done(true): flushed; false: requests are pending
  std::function<void(bool)> done;  // called on the engine thread; must only enqueue
};
struct DrainCommand {};   // finish what runs, take nothing new (submits answer 503 aborts)
struct SlowDownCommand {  // the whole group sleeps before each step, as long as the rank that wants it longest says
  uint32_t sleep_ms = 0;  // 0: full speed, and a sleep under way ends
};
// Decode steps wait until every rank has this many requests ready or the deadline passes; then all ranks begin at once.
struct HoldCommand {
  uint8_t version = 0;           // counts the orders of a server, modulo 256; the same one again changes nothing
  int32_t running_requests = 0;  // per rank; 0: hold no longer
  Duration timeout{};
};
// Starts or stops profiling, on all ranks before the same step. done: the order is followed, after a stop also written;
// kInvalidInput: it cannot be. Called on an engine's or the trace writer's thread; must only enqueue.
struct ProfileCommand {
  enum class Kind : uint8_t { kStart, kStop };
  Kind kind = Kind::kStart;
  api::ProfileCall call;  // kStart; its output_dir and profile_id are set
  uint32_t version = 0;   // rises by one with each order to the group, which sets it
  std::function<void(Status)> done;
};
using Command = std::variant<SubmitCommand, CancelCommand, FlushCacheCommand, DrainCommand, SlowDownCommand,
                             HoldCommand, ProfileCommand>;

// What other threads may know, copied under a lock once per turn.
struct EngineSnapshot {
  uint64_t forward_steps = 0;       // batches run, idle ones too
  TimePoint last_progress{};        // a step finished, or the idle loop came round
  int32_t running = 0, queued = 0;  // queued: everything admitted to the engine that does not run yet
  int32_t prealloc = 0, transferring = 0, retracted = 0, inflight = 0;
  int64_t used_tokens = 0, cached_tokens = 0, total_tokens = 0, waiting_tokens = 0;
  int64_t free_blocks = 0, leased_blocks = 0, cached_blocks = 0, total_blocks = 0;
  double last_gen_throughput = 0;
  uint64_t prompt_tokens_computed = 0;  // tokens that went through a prefill step here (decode in PD: stays 0)
  uint64_t handover_bytes = 0, handovers = 0;
  // Batches of this rank's own by kind, the tokens of the decode ones, and the time that they took with everything
  // between them while there was something to run; what tokens/s are worked out from.
  uint64_t decode_steps = 0, prefill_steps = 0, generated_tokens = 0;
  uint64_t decode_step_us = 0, prefill_step_us = 0;
  bool draining = false;
  bool lost = false;      // a rank of the group is gone: this one answers everything with an error
  uint32_t sleep_ms = 0;  // slow_down as it was ordered
  bool asleep = false;    // in such a sleep right now
  int32_t held_for = 0;   // decode waits for so many requests; 0: it does not
  uint64_t retractions = 0, failed_transfers = 0;
  bool profiling = false;  // spans are being recorded, or wait for their step
};

// The figures of a group as those of one engine: sums; of progress and steps the least, since a group is as alive as
// its slowest rank. REQUIRES at least one.
EngineSnapshot combine(std::span<const EngineSnapshot> ranks);

// What a server talks to: one rank, or all ranks of a group.
class EngineDoor {
 public:
  virtual ~EngineDoor() = default;
  // Any thread. kFull: answer 503 at once.
  virtual PushResult submit(Command command) = 0;
  virtual std::vector<EngineSnapshot> snapshots() const = 0;  // by data-parallel rank
  EngineSnapshot snapshot() const { return combine(snapshots()); }
};

class Engine : public EngineDoor {
 public:
  // sink: called on the engine thread, in order per request; must only enqueue.
  static Result<std::unique_ptr<Engine>> create(const EngineConfig& config, const EngineParts& parts,
                                                std::function<void(api::EngineEvent)> sink);
  // Any thread: ends a wait in run() early (the transfer thread calls it after reports).
  virtual void wake() = 0;

  // One turn of the loop: commands, transfer reports, deadlines, then at most one step. Returns whether it did
  // anything.
  virtual bool turn() = 0;
  // turn() until stopped; waits when idle. At the end what is still there is answered with a 503 abort. Returns once
  // every rank of the group wants to leave, so that nobody waits for a rank that is gone.
  virtual void run(std::stop_token stop) = 0;
};

}  // namespace tandem::engine
