#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <variant>

#include "base/check.h"
#include "base/log.h"
#include "engine/expert_port.h"
#include "engine/roles/combined_worker.h"
#include "engine/roles/decode_worker.h"
#include "engine/roles/prefill_worker.h"
#include "engine/step/batch.h"
#include "engine/step/core.h"
#include "engine/step/sampler.h"

namespace tandem::engine {
namespace {

// Commands taken per turn: a flood of submits must not keep the running requests from stepping.
constexpr int kMaxCommandsPerTurn = 256;
constexpr size_t kCommandQueue = 65536;
// Longest sleep of an idle loop; deadlines and health are looked at this often at least.
constexpr Duration kIdleWait = std::chrono::milliseconds(20);

// Into two halves with something to do each; a rank without tokens goes along with two empty ones.
bool can_split(const Batch& batch) {
  if (batch.empty()) return true;
  return batch.kind() == parallel::StepKind::kDecode ? batch.entries().size() >= 2 : batch.num_tokens() >= 2;
}

using Worker = std::variant<std::monostate, CombinedWorker, PrefillWorker, DecodeWorker>;

class RankEngine final : public Engine {
 public:
  RankEngine(const EngineConfig& config, const EngineParts& parts, std::function<void(api::EngineEvent)> sink)
      : core_(config, parts, std::move(sink)),
        batch_(forward_limits(config), parts.model->config().vocab_size, config.block_tokens,
               device_of(parts.kernels.backend)),
        sampler_(forward_limits(config).max_logit_rows),
        commands_(kCommandQueue) {
    if (config.role == Role::kCombined) worker_.emplace<CombinedWorker>(core_);
    if (config.role == Role::kPrefill) worker_.emplace<PrefillWorker>(core_);
    if (config.role == Role::kDecode) worker_.emplace<DecodeWorker>(core_);
    publish();
  }

  PushResult submit(Command command) override {
    const PushResult pushed = commands_.push(std::move(command));
    if (is_grouped()) core_.parts.communicator->wake();
    return pushed;
  }
  void wake() override {
    commands_.wake();
    core_.parts.communicator->wake();
  }
  std::vector<EngineSnapshot> snapshots() const override {
    std::lock_guard lock(snapshot_mutex_);
    return {snapshot_};
  }

  bool turn() override;
  void run(std::stop_token stop) override;

 private:
  // Calls f with the worker, whichever it is.
  template <class F>
  auto with_worker(F f) {
    return std::visit(
        [&](auto& worker) {
          if constexpr (std::is_same_v<std::decay_t<decltype(worker)>, std::monostate>) {
            CHECK(false);
            return decltype(f(std::declval<CombinedWorker&>()))();
          } else {
            return f(worker);
          }
        },
        worker_);
  }

  bool is_grouped() const { return core_.parts.communicator->num_ranks() > 1; }
  void handle(Command command);
  void handle(SubmitCommand& command);
  void handle(CancelCommand& command);
  void handle(FlushCacheCommand& command);
  void handle(DrainCommand&) { draining_ = true; }
  bool step();
  void lose_group(const std::string& reason);
  void end_everything(const std::string& reason, int32_t status_code);
  parallel::ExchangeMode exchange_mode(const parallel::StepDecision& decision) const;
  void run_batch(const parallel::StepDecision& decision);
  void leave_batch();
  void leave_group();
  void sweep();
  void publish();

  Core core_;
  Batch batch_;
  Sampler sampler_;
  Worker worker_;
  BoundedQueue<Command> commands_;
  uint64_t next_step_ = 0, forward_steps_ = 0;
  bool vote_posted_ = false;
  bool draining_ = false;
  bool leaving_ = false;  // run() was told to stop
  bool left_ = false;     // and so was every other rank's
  bool lost_ = false;     // a rank did not vote in time
  mutable std::mutex snapshot_mutex_;
  EngineSnapshot snapshot_;  // guarded by snapshot_mutex_
};

void RankEngine::handle(Command command) {
  std::visit([&](auto& value) { handle(value); }, command);
}

void RankEngine::handle(SubmitCommand& command) {
  if (draining_ || lost_) {
    api::EngineEvent event;
    event.id = command.request.id;
    event.prompt_tokens = int32_t(command.request.input_ids.size());
    core_.answer(std::move(event),
                 aborted(lost_ ? "A rank of this server was lost." : "The server is shutting down.", 503));
    return;
  }
  with_worker([&](auto& worker) { worker.submit(std::move(command.request)); });
}

void RankEngine::handle(CancelCommand& command) {
  Request* request = core_.find(command.id);
  if (request == nullptr) return;  // it ended meanwhile
  with_worker([&](auto& worker) { worker.cancel(*request, command); });
}

void RankEngine::handle(FlushCacheCommand& command) {
  const bool flushed = core_.flush_cache();
  const LoadFigures load = with_worker([](auto& worker) { return worker.load(); });
  const std::string line =
      flushed ? "Cache flushed successfully!"
              : fmt::format("Cache not flushed because there are pending requests. #queue-req: {}, #running-req: {}",
                            load.queued, load.running);
  log::write(flushed ? log::Level::kInfo : log::Level::kWarning, core_.config.log_scope, line);
  if (command.done) command.done(flushed);
}

// Low-latency form where the whole group decodes and every rank's batch fits it.
parallel::ExchangeMode RankEngine::exchange_mode(const parallel::StepDecision& decision) const {
  const int64_t most = core_.config.max_low_latency_tokens;
  const bool fits = decision.kind == parallel::StepKind::kDecode && int64_t(decision.max_tokens) <= most;
  return fits ? parallel::ExchangeMode::kLowLatency : parallel::ExchangeMode::kNormal;
}

// Vote, decide, forward, sample. A vote that the other ranks have not answered yet is asked for again next turn.
bool RankEngine::step() {
  if (lost_) return false;
  parallel::Communicator& communicator = *core_.parts.communicator;
  if (!vote_posted_) {
    with_worker([&](auto& worker) { worker.form(batch_); });
    parallel::StepVote vote;
    vote.step = next_step_;
    vote.num_tokens = uint32_t(batch_.num_tokens());
    vote.num_sequences = uint32_t(batch_.entries().size());
    vote.kind = batch_.kind();
    vote.wants_shutdown = leaving_ ? 1 : 0;
    vote.can_split = core_.config.two_batch_overlap && can_split(batch_) ? 1 : 0;
    if (core_.parts.experts) vote.change_version = core_.parts.experts->staged();
    communicator.post_vote(vote, core_.now());
    vote_posted_ = true;
  }
  const Result<std::optional<parallel::StepDecision>> polled = communicator.poll_decision(core_.now());
  if (!polled) {
    lose_group(polled.error().message);
    return false;
  }
  if (!polled->has_value()) return false;
  const parallel::StepDecision decision = **polled;
  vote_posted_ = false;
  next_step_ += 1;
  left_ = decision.shutdown != 0;
  // Between two steps, and on all ranks before the same one.
  if (core_.parts.experts) core_.parts.experts->switch_staged(decision.change_version);
  if (left_ || decision.kind == parallel::StepKind::kNone) return false;
  run_batch(decision);
  return true;
}

// A rank of the group is gone: no step can run any more, so every request ends here and new ones are refused.
void RankEngine::lose_group(const std::string& reason) {
  lost_ = true;
  log::write(log::Level::kError, core_.config.log_scope, reason);
  end_everything(reason, 500);
}

void RankEngine::leave_batch() {
  for (const BatchEntry& entry : batch_.entries()) core_.leave_step(*entry.request);
  batch_.start(model::Phase::kDecode);
}

void RankEngine::end_everything(const std::string& reason, int32_t status_code) {
  if (vote_posted_) leave_batch();  // it waits for a decision; otherwise its requests may be gone
  batch_.start(model::Phase::kDecode);
  core_.end_all(failed(reason, status_code));
  sweep();
}

void RankEngine::run_batch(const parallel::StepDecision& decision) {
  model::ForwardBatch forward = batch_.forward_batch();
  forward.step = decision.step;
  forward.exchange_mode = exchange_mode(decision);
  forward.two_batches = decision.two_batches != 0;
  ExpertPort* const experts = core_.parts.experts;
  if (experts) forward.expert_counts = experts->counts();
  with_worker([&](auto& worker) { worker.before_forward(batch_); });
  std::function<void(int32_t)> layer_done;  // only prefill servers announce layers, and on a GPU that means waiting
  if (core_.config.role == Role::kPrefill) {
    layer_done = [this](int32_t layer) { with_worker([&](auto& worker) { worker.layer_done(batch_, layer); }); };
  }
  const Status done = core_.parts.model->forward(forward, *core_.parts.cache, layer_done);
  if (!done) {
    leave_batch();
    return lose_group(done.error().message);
  }
  forward_steps_ += 1;
  if (experts) experts->step_done(decision.step);
  if (batch_.empty()) return;  // an idle step: another rank had tokens
  sampler_.run(core_.parts.kernels, batch_);
  with_worker([&](auto& worker) { worker.after_step(batch_, sampler_); });
}

bool RankEngine::turn() {
  bool did = false;
  for (int i = 0; i < kMaxCommandsPerTurn; ++i) {
    std::optional<Command> command = commands_.try_pop();
    if (!command) break;
    handle(std::move(*command));
    did = true;
  }
  with_worker([&](auto& worker) {
    did |= worker.take_reports();
    worker.tick();
  });
  sweep();
  did |= step();
  sweep();
  with_worker([](auto& worker) { worker.idle(); });
  publish();
  return did;
}

// Workers drop their pointers to what ended; only then is it gone.
void RankEngine::sweep() {
  if (!core_.has_ended()) return;
  with_worker([](auto& worker) { worker.forget_ended(); });
  core_.bury();
  if (core_.num_requests() == 0) CHECK(core_.pool.recount() == core_.pool.counts());
}

void RankEngine::publish() {
  EngineSnapshot next;
  const LoadFigures load = with_worker([](auto& worker) { return worker.load(); });
  next.forward_steps = forward_steps_;
  next.last_progress = core_.now();
  next.running = load.running;
  next.queued = int32_t(core_.num_requests()) - load.running - load.inflight;
  next.prealloc = load.prealloc;
  next.transferring = load.transferring;
  next.retracted = load.retracted;
  next.inflight = load.inflight;
  next.used_tokens = load.used_tokens;
  next.total_tokens = load.total_tokens;
  next.waiting_tokens = with_worker([](auto& worker) { return worker.waiting_tokens(); });
  const scheduler::PoolCounts blocks = core_.pool.counts();
  next.free_blocks = blocks.free;
  next.leased_blocks = blocks.leased;
  next.cached_blocks = blocks.cached;
  next.total_blocks = blocks.total;
  next.cached_tokens = int64_t(blocks.cached) * core_.config.block_tokens;
  next.last_gen_throughput = core_.last_gen_throughput;
  next.prompt_tokens_computed = core_.prompt_tokens_computed;
  next.handover_bytes = core_.handover_bytes;
  next.handovers = core_.handovers;
  next.draining = draining_;
  next.lost = lost_;
  std::lock_guard lock(snapshot_mutex_);
  // A vote that nobody answers is no progress.
  if (vote_posted_ || lost_) next.last_progress = snapshot_.last_progress;
  snapshot_ = next;
}

void RankEngine::run(std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] { wake(); });
  while (!stop.stop_requested()) {
    if (turn()) continue;
    if (is_grouped()) {
      core_.parts.communicator->wait(kIdleWait);
    } else if (std::optional<Command> command = commands_.pop(kIdleWait)) {
      handle(std::move(*command));
    }
  }
  draining_ = true;
  end_everything("The server is shutting down.", 503);
  while (std::optional<Command> command = commands_.try_pop()) handle(std::move(*command));
  publish();
  leave_group();
}

// Goes on stepping with what the others still have until they leave too; the vote's deadline bounds it.
void RankEngine::leave_group() {
  leaving_ = true;
  while (is_grouped() && !left_ && !lost_) {
    if (!step()) core_.parts.communicator->wait(kIdleWait);
  }
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const EngineConfig& config, const EngineParts& parts,
                                               std::function<void(api::EngineEvent)> sink) {
  RETURN_IF_ERROR(validate(config));
  CHECK(parts.clock != nullptr);
  CHECK(parts.model != nullptr);
  CHECK(parts.cache != nullptr);
  CHECK(parts.communicator != nullptr);
  CHECK(parts.metrics != nullptr);
  const kv::KvLayout& layout = parts.cache->layout();
  if (layout.block_tokens != config.block_tokens ||
      int64_t(layout.num_blocks) * layout.block_tokens != config.max_total_tokens) {
    return invalid_input(
        fmt::format("the cache has {} blocks of {} tokens, the engine is configured for {} tokens in "
                    "blocks of {}",
                    layout.num_blocks, layout.block_tokens, config.max_total_tokens, config.block_tokens));
  }
  if (config.role != Role::kCombined && parts.transfer == nullptr) {
    return invalid_input("a prefill or decode engine needs a transfer port");
  }
  return std::unique_ptr<Engine>(std::make_unique<RankEngine>(config, parts, std::move(sink)));
}

}  // namespace tandem::engine
