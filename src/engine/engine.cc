#include "engine/engine.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <mutex>
#include <variant>

#include "base/check.h"
#include "base/log.h"
#include "device/gpu.h"
#include "engine/expert_port.h"
#include "engine/follower.h"
#include "engine/plan_board.h"
#include "engine/roles/combined_worker.h"
#include "engine/roles/decode_worker.h"
#include "engine/roles/prefill_worker.h"
#include "engine/step/batch.h"
#include "engine/step/core.h"
#include "engine/step/flight_notes.h"
#include "engine/step/pace.h"
#include "engine/step/rank_profiler.h"
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
        pace_(config.log_scope),
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
  Status record_decode();

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
  void handle(DrainCommand&) { begin_drain(); }
  void handle(SlowDownCommand& command) { pace_.take(command); }
  void handle(HoldCommand& command) { pace_.take(command, core_.now()); }
  void begin_drain();
  void post_vote();
  void handle(ProfileCommand& command);
  bool step();
  bool follow(const parallel::StepDecision& decision);
  void lose_group(const std::string& reason);
  void end_everything(const std::string& reason, int32_t status_code);
  void run_batch(const parallel::StepDecision& decision);
  void count_experts(const model::ForwardBatch& forward);
  void run_step(const parallel::StepDecision& decision);
  StepFigures add_load(StepFigures figures);
  void finish_plan();
  void leave_batch();
  void count_step(bool is_decode, int64_t tokens);
  void leave_group();
  void sweep();
  void publish();

  Core core_;
  Batch batch_;
  Sampler sampler_;
  Worker worker_;
  Pace pace_;
  BoundedQueue<Command> commands_;
  RankProfiler profiler_{core_.config, core_.parts};
  StepTimes times_;
  uint64_t next_step_ = 0, forward_steps_ = 0;
  bool is_formed_ = false;  // batch_ is the next step's; its requests end after it
  bool vote_posted_ = false;
  bool draining_ = false;
  bool leaving_ = false;    // run() was told to stop
  bool left_ = false;       // and so was every other rank's
  bool lost_ = false;       // a rank did not vote in time
  TimePoint step_began_{};  // the last step's end, or when the batch at hand was formed; {}: there is nothing to run
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
  if (command.request.is_health_check && pace_.sleep_ms() > 0) {
    // Its token would come after the sleep; that the engine answers is what it asks.
    api::EngineEvent event;
    event.id = command.request.id;
    return core_.answer(std::move(event), finished_by_length(0));
  }
  with_worker([&](auto& worker) { worker.submit(std::move(command.request)); });
}

// What runs is to end, and so do sleeps and holds.
void RankEngine::begin_drain() {
  draining_ = true;
  pace_.release(core_.now());
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

void RankEngine::handle(ProfileCommand& command) {
  if (!lost_) return profiler_.take(std::move(command));
  if (command.done) command.done(peer_lost("A rank of this server was lost."));
}

// A batch is formed for the vote, unless the last one was not run: a prompt's chunk stays as it was planned. A rank
// that sleeps votes without one.
void RankEngine::post_vote() {
  const TimePoint now = core_.now();
  times_.formed = now;
  if (pace_.held_for() > 0) pace_.look(with_worker([](auto& worker) { return worker.load().running; }), now);
  if (!is_formed_ && !pace_.is_asleep(now)) {
    with_worker([&](auto& worker) { worker.form(batch_, pace_.holds_decode()); });
    is_formed_ = true;
  }
  if (batch_.empty()) {
    step_began_ = {};
  } else if (step_began_ == TimePoint{}) {
    step_began_ = now;
  }
  parallel::StepVote vote;
  vote.step = next_step_;
  vote.num_tokens = uint32_t(batch_.num_tokens());
  vote.num_sequences = uint32_t(batch_.entries().size());
  vote.kind = batch_.kind();
  vote.wants_shutdown = leaving_ ? 1 : 0;
  vote.can_split = core_.config.two_batch_overlap && can_split(batch_) ? 1 : 0;
  if (core_.parts.experts) vote.change_version = core_.parts.experts->staged();
  pace_.fill(vote, now);
  if (PlanBoard* plans = core_.parts.plans) {
    plans->write(next_step_, batch_.forward_batch(), core_.config.block_tokens);
  }
  profiler_.vote(vote);
  times_.voted = core_.now();
  core_.parts.communicator->post_vote(vote, times_.voted);
  vote_posted_ = true;
}

// Vote, decide, forward, sample. A vote that the other ranks have not answered yet is asked for again next turn.
bool RankEngine::step() {
  if (lost_) return false;
  if (!vote_posted_) post_vote();
  const Result<std::optional<parallel::StepDecision>> polled = core_.parts.communicator->poll_decision(core_.now());
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
  times_.decided = core_.now();
  profiler_.agree(decision, times_);
  return !left_ && follow(decision);
}

// Runs the step or waits, as all ranks do. Decode batches are left where they do not run: what is ready by then joins
// the next one, and what was cancelled is gone.
bool RankEngine::follow(const parallel::StepDecision& decision) {
  const Pace::Verdict verdict = pace_.judge(decision, core_.now());
  const bool runs = verdict == Pace::Verdict::kRun && decision.kind != parallel::StepKind::kNone;
  const bool is_held = decision.holds != 0 && batch_.kind() == parallel::StepKind::kDecode;
  if (is_held || (!runs && batch_.kind() != parallel::StepKind::kExtend)) leave_batch();
  if (runs) run_step(decision);
  return runs || verdict == Pace::Verdict::kAgain;
}

// A rank of the group is gone: no step can run any more, so every request ends here and new ones are refused.
void RankEngine::lose_group(const std::string& reason) {
  lost_ = true;
  note_end(core_.parts.flight, vote_posted_ ? next_step_ : next_step_ - 1, reason);
  log::write(log::Level::kError, core_.config.log_scope, reason);
  profiler_.close(reason);
  end_everything(reason, 500);
}

void RankEngine::leave_batch() {
  for (const BatchEntry& entry : batch_.entries()) core_.leave_step(*entry.request);
  batch_.start(model::Phase::kDecode);
  is_formed_ = false;
}

void RankEngine::end_everything(const std::string& reason, int32_t status_code) {
  if (is_formed_) leave_batch();  // it waits to be run; otherwise its requests may be gone
  batch_.start(model::Phase::kDecode);
  core_.end_all(failed(reason, status_code));
  sweep();
}

void RankEngine::run_step(const parallel::StepDecision& decision) {
  profiler_.before_step(decision, int64_t(forward_steps_) + 1, times_);
  const bool is_recorded = profiler_.recording();
  StepFigures figures;
  figures.num_tokens = batch_.num_tokens();
  figures.num_sequences = int32_t(batch_.entries().size());
  const parallel::StepKind own = batch_.kind();
  run_batch(decision);
  if (is_recorded) profiler_.after_step(own, add_load(figures));
}

StepFigures RankEngine::add_load(StepFigures figures) {
  figures.load = with_worker([](auto& worker) { return worker.load(); });
  const scheduler::PoolCounts blocks = core_.pool.counts();
  figures.free_blocks = blocks.free;
  figures.leased_blocks = blocks.leased;
  figures.cached_blocks = blocks.cached;
  return figures;
}

void RankEngine::run_batch(const parallel::StepDecision& decision) {
  is_formed_ = false;
  model::ForwardBatch forward = batch_.forward_batch();
  forward.step = decision.step;
  forward.exchange_mode = engine::exchange_mode(core_.config, decision);
  forward.two_batches = decision.two_batches != 0;
  if (core_.parts.experts) core_.parts.experts->before_forward(forward);
  with_worker([&](auto& worker) { worker.before_forward(batch_); });
  std::function<void(int32_t)> layer_done;  // only prefill servers announce layers, and on a GPU that means waiting
  if (core_.config.role == Role::kPrefill) {
    layer_done = [this](int32_t layer) { with_worker([&](auto& worker) { worker.layer_done(batch_, layer); }); };
  }
  note_forward_begin(core_.parts.flight, forward);
  const Status done = core_.parts.model->forward(forward, *core_.parts.cache, layer_done);
  note_forward_end(core_.parts.flight, forward.step, done);
  if (!done) {
    leave_batch();
    return lose_group(done.error().message);
  }
  forward_steps_ += 1;
  if (batch_.empty()) return count_experts(forward);  // an idle step: another rank had tokens
  const bool is_decode = batch_.kind() == parallel::StepKind::kDecode;
  const int64_t tokens = is_decode ? int64_t(batch_.entries().size()) : int64_t(batch_.num_tokens());
  {
    const profile::ScopedSpan span(core_.parts.spans, profile::Track::kScheduler, "sample");
    sampler_.run(core_.parts.kernels, batch_);
  }
  count_experts(forward);
  const profile::ScopedSpan span(core_.parts.spans, profile::Track::kScheduler, "tokens and events");
  with_worker([&](auto& worker) { worker.after_step(batch_, sampler_); });
  count_step(is_decode, tokens);
}

// Behind what waits for the logits, so that a GPU is waited for once. Afterwards the step is over there, too.
void RankEngine::count_experts(const model::ForwardBatch& forward) {
  if (core_.parts.experts == nullptr) return;
  core_.parts.model->finish(forward);
  core_.parts.experts->after_forward(forward);
}

// A step lasts from the end of the one before it, if there was work all along.
void RankEngine::count_step(bool is_decode, int64_t tokens) {
  const TimePoint now = core_.now();
  const Duration lasted = now - step_began_;
  step_began_ = now;
  const auto us = uint64_t(std::chrono::duration_cast<std::chrono::microseconds>(lasted).count());
  (is_decode ? core_.decode_step_us : core_.prefill_step_us) += us;
  (is_decode ? core_.decode_steps : core_.prefill_steps) += 1;
  if (is_decode) core_.generated_tokens += uint64_t(tokens);
  core_.metrics.step_done(is_decode, seconds(lasted), tokens);
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
  core_.metrics.show_handovers(core_.handovers, core_.handover_bytes);
  next.decode_steps = core_.decode_steps;
  next.prefill_steps = core_.prefill_steps;
  next.generated_tokens = core_.generated_tokens;
  next.decode_step_us = core_.decode_step_us;
  next.prefill_step_us = core_.prefill_step_us;
  next.draining = draining_;
  next.lost = lost_;
  next.sleep_ms = pace_.sleep_ms();
  next.asleep = pace_.asleep();
  next.held_for = pace_.held_for();
  next.retractions = uint64_t(core_.metrics.retractions.value());
  next.failed_transfers = uint64_t(core_.metrics.transfer_failed.value());
  next.profiling = profiler_.is_open();
  core_.metrics.show_pace(double(next.sleep_ms) / 1e3, next.held_for);
  std::lock_guard lock(snapshot_mutex_);
  // A vote that nobody answers is no progress.
  if (vote_posted_ || lost_) next.last_progress = snapshot_.last_progress;
  snapshot_ = next;
}

void RankEngine::run(std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] { wake(); });
  while (!stop.stop_requested()) {
    if (turn()) continue;
    const Duration wait = pace_.next_look(kIdleWait, core_.now());
    if (is_grouped()) {
      core_.parts.communicator->wait(wait);
    } else if (std::optional<Command> command = commands_.pop(wait)) {
      handle(std::move(*command));
    }
  }
  begin_drain();
  finish_plan();
  end_everything("The server is shutting down.", 503);
  while (std::optional<Command> command = commands_.try_pop()) handle(std::move(*command));
  profiler_.close("The server is shutting down.");
  publish();
  leave_group();
}

// The other ranks of an attention group may be running the batch of the posted vote already: so does this one.
void RankEngine::finish_plan() {
  while (core_.parts.plans && vote_posted_ && !lost_) {
    if (!step()) core_.parts.communicator->wait(kIdleWait);
    sweep();
  }
}

// As SGLang reports it.
Status RankEngine::record_decode() {
  const auto say = [this](const std::string& line) { log::write(log::Level::kInfo, core_.config.log_scope, line); };
  const model::DecodeRecording& what = core_.config.recorded_decode;
  const int64_t free_before = device::gpu_free_bytes();
  const TimePoint begin = core_.now();
  say(fmt::format("Capture cuda graph begin. This can take up to several minutes. avail mem={:.2f} GB",
                  double(free_before) / 1e9));
  if (core_.config.tp_rank == 0) say(fmt::format("Capture cuda graph bs [{}]", fmt::join(what.batch_sizes, ", ")));
  RETURN_IF_ERROR(core_.parts.model->record_decode(what, *core_.parts.cache, batch_.forward_batch().logits));
  const int64_t free = device::gpu_free_bytes();
  say(fmt::format("Capture cuda graph end. Time elapsed: {:.2f} s. mem usage={:.2f} GB. avail mem={:.2f} GB.",
                  seconds(core_.now() - begin), double(free_before - free) / 1e9, double(free) / 1e9));
  return Ok{};
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
  CHECK((parts.plans != nullptr) == (config.attn_tp_size > 1));
  if (config.attn_tp_rank > 0) return make_follower(config, parts, std::move(sink));
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
  auto engine = std::make_unique<RankEngine>(config, parts, std::move(sink));
  if (!config.recorded_decode.batch_sizes.empty()) RETURN_IF_ERROR(engine->record_decode());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace tandem::engine
