#include "engine/follower.h"

#include <fmt/format.h>

#include <mutex>
#include <variant>

#include "base/check.h"
#include "base/log.h"
#include "engine/expert_port.h"
#include "engine/plan_board.h"
#include "engine/step/flight_notes.h"
#include "engine/step/pace.h"

namespace tandem::engine {
namespace {

constexpr Duration kFollowerWait = std::chrono::milliseconds(20);

class Follower final : public Engine {
 public:
  Follower(const EngineConfig& config, const EngineParts& parts, std::function<void(api::EngineEvent)> sink)
      : config_(config), parts_(parts), sink_(std::move(sink)), pace_(config.log_scope) {
    publish();
  }

  PushResult submit(Command command) override;
  void wake() override { parts_.communicator->wake(); }
  std::vector<EngineSnapshot> snapshots() const override {
    std::lock_guard lock(snapshot_mutex_);
    return {snapshot_};
  }
  bool turn() override {
    const bool did = step();
    publish();
    return did;
  }
  void run(std::stop_token stop) override;

 private:
  bool step();
  void post_vote();
  void run_plan(const parallel::StepDecision& decision);
  void lose_group(const std::string& reason);
  void publish();

  const EngineConfig config_;
  const EngineParts parts_;
  const std::function<void(api::EngineEvent)> sink_;
  Pace pace_;  // has no orders of its own: goes along with the sleeps that the group decides
  uint64_t next_step_ = 0, forward_steps_ = 0;
  bool vote_posted_ = false;
  bool leaving_ = false, left_ = false, lost_ = false;  // as the leader's engine has them
  mutable std::mutex snapshot_mutex_;
  EngineSnapshot snapshot_;  // guarded by snapshot_mutex_
};

// Cancels and drains have nothing to find here; nothing is cached that a flush could free.
PushResult Follower::submit(Command command) {
  if (auto* flush = std::get_if<FlushCacheCommand>(&command)) {
    if (flush->done) flush->done(true);
  }
  if (const auto* submitted = std::get_if<SubmitCommand>(&command)) {
    api::EngineEvent refused;
    refused.id = submitted->request.id;
    refused.prompt_tokens = int32_t(submitted->request.input_ids.size());
    refused.finish = api::FinishReason{};
    refused.finish->kind = api::FinishKind::kAbort;
    refused.finish->status_code = 500;
    refused.finish->message = "This rank takes no requests of its own.";
    sink_(std::move(refused));
  }
  return PushResult::kPushed;
}

// As a rank without tokens: what the leader wants is counted once.
void Follower::post_vote() {
  parallel::StepVote vote;
  vote.step = next_step_;
  vote.wants_shutdown = leaving_ ? 1 : 0;
  vote.follows = 1;
  if (parts_.experts) vote.change_version = parts_.experts->staged();
  const TimePoint now = parts_.clock->now();
  pace_.fill(vote, now);
  parts_.communicator->post_vote(vote, now);
  vote_posted_ = true;
}

bool Follower::step() {
  if (lost_) return false;
  if (!vote_posted_) post_vote();
  const Result<std::optional<parallel::StepDecision>> polled = parts_.communicator->poll_decision(parts_.clock->now());
  if (!polled) {
    lose_group(polled.error().message);
    return false;
  }
  if (!polled->has_value()) return false;
  const parallel::StepDecision decision = **polled;
  vote_posted_ = false;
  next_step_ += 1;
  left_ = decision.shutdown != 0;
  if (parts_.experts) parts_.experts->switch_staged(decision.change_version);
  if (left_) return false;
  const Pace::Verdict verdict = pace_.judge(decision, parts_.clock->now());
  const bool runs = verdict == Pace::Verdict::kRun && decision.kind != parallel::StepKind::kNone;
  if (runs) run_plan(decision);
  return runs || verdict == Pace::Verdict::kAgain;
}

void Follower::run_plan(const parallel::StepDecision& decision) {
  model::ForwardBatch batch = parts_.plans->read(decision.step);
  // The leader leaves a decode batch that is held back.
  if (decision.holds != 0 && batch.phase == model::Phase::kDecode) {
    batch = {};
    batch.phase = model::Phase::kDecode;
  }
  batch.step = decision.step;
  batch.exchange_mode = exchange_mode(config_, decision);
  batch.two_batches = decision.two_batches != 0;
  if (parts_.experts) parts_.experts->before_forward(batch);
  note_forward_begin(parts_.flight, batch);
  const Status done = parts_.model->forward(batch, *parts_.cache, {});
  note_forward_end(parts_.flight, batch.step, done);
  if (!done) return lose_group(done.error().message);
  forward_steps_ += 1;
  parts_.model->finish(batch);
  if (parts_.experts) parts_.experts->after_forward(batch);
}

void Follower::lose_group(const std::string& reason) {
  lost_ = true;
  note_end(parts_.flight, vote_posted_ ? next_step_ : next_step_ - 1, reason);
  log::write(log::Level::kError, config_.log_scope, reason);
}

void Follower::publish() {
  std::lock_guard lock(snapshot_mutex_);
  snapshot_.forward_steps = forward_steps_;
  snapshot_.lost = lost_;
  if (!vote_posted_ && !lost_) snapshot_.last_progress = parts_.clock->now();
}

// Goes on stepping with what the others still have until all want to leave; the vote's deadline bounds it.
void Follower::run(std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] { wake(); });
  while (!stop.stop_requested()) {
    if (!turn()) parts_.communicator->wait(pace_.next_look(kFollowerWait, parts_.clock->now()));
  }
  leaving_ = true;
  pace_.release(parts_.clock->now());
  while (!left_ && !lost_) {
    if (!turn()) parts_.communicator->wait(kFollowerWait);
  }
}

}  // namespace

std::unique_ptr<Engine> make_follower(const EngineConfig& config, const EngineParts& parts,
                                      std::function<void(api::EngineEvent)> sink) {
  CHECK(parts.plans != nullptr);
  return std::make_unique<Follower>(config, parts, std::move(sink));
}

}  // namespace tandem::engine
