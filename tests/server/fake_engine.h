// An engine whose every word the test says, or that answers by a script. Any thread.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace tandem::server::testing {

class FakeEngine final : public engine::Engine {
 public:
  using Sink = std::function<void(api::EngineEvent)>;
  // Called for each submitted request, on the submitting thread; may be empty.
  using Script = std::function<void(const api::EngineRequest&, const Sink&)>;

  explicit FakeEngine(Sink sink) : sink_(std::move(sink)) {}

  void set_script(Script script) {
    std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  // How many more commands fit; negative: any number.
  void set_room(int commands) {
    std::lock_guard lock(mutex_);
    room_ = commands;
  }
  void set_snapshot(engine::EngineSnapshot snapshot) {
    std::lock_guard lock(mutex_);
    snapshot_ = snapshot;
  }
  void set_flush_answer(bool flushed) {
    std::lock_guard lock(mutex_);
    flush_answer_ = flushed;
  }
  // Ends an unknown number of sequences as an engine does when it is told to cancel them.
  void set_answers_cancels(bool answers) {
    std::lock_guard lock(mutex_);
    answers_cancels_ = answers;
  }

  // What orders to profile are answered.
  void set_profile_answer(Status status) {
    std::lock_guard lock(mutex_);
    profile_answer_ = std::move(status);
  }

  std::vector<api::EngineRequest> submitted() const { return locked(submitted_); }
  std::vector<engine::ProfileCommand> profiles() const { return locked(profiles_); }
  std::vector<engine::CancelCommand> cancelled() const { return locked(cancelled_); }
  bool drained() const { return locked(drained_); }
  std::vector<engine::SlowDownCommand> slow_downs() const { return locked(slow_downs_); }
  std::vector<engine::HoldCommand> holds() const { return locked(holds_); }
  void say(api::EngineEvent event) const { sink_(std::move(event)); }

  PushResult submit(engine::Command command) override {
    Script script;
    {
      std::lock_guard lock(mutex_);
      if (room_ == 0) return PushResult::kFull;
      if (room_ > 0) --room_;
      script = script_;
      if (auto* submit = std::get_if<engine::SubmitCommand>(&command)) submitted_.push_back(submit->request);
      if (auto* cancel = std::get_if<engine::CancelCommand>(&command)) cancelled_.push_back(*cancel);
      if (auto* slow_down = std::get_if<engine::SlowDownCommand>(&command)) slow_downs_.push_back(*slow_down);
      if (auto* hold = std::get_if<engine::HoldCommand>(&command)) holds_.push_back(*hold);
      if (std::holds_alternative<engine::DrainCommand>(command)) drained_ = true;
      if (auto* profile = std::get_if<engine::ProfileCommand>(&command)) profiles_.push_back(*profile);
    }
    if (auto* submit = std::get_if<engine::SubmitCommand>(&command)) {
      if (script) script(submit->request, sink_);
    } else if (auto* cancel = std::get_if<engine::CancelCommand>(&command)) {
      if (locked(answers_cancels_)) sink_(aborted(cancel->id));
    } else if (auto* flush = std::get_if<engine::FlushCacheCommand>(&command)) {
      flush->done(locked(flush_answer_));
    } else if (auto* profile = std::get_if<engine::ProfileCommand>(&command)) {
      profile->done(locked(profile_answer_));
    }
    return PushResult::kPushed;
  }
  std::vector<engine::EngineSnapshot> snapshots() const override { return {locked(snapshot_)}; }
  void wake() override {}
  bool turn() override { return false; }
  void run(std::stop_token) override {}

  static api::EngineEvent aborted(RequestId id) {
    api::EngineEvent event;
    event.id = id;
    event.finish.emplace();
    event.finish->kind = api::FinishKind::kAbort;
    event.finish->message = "Aborted";
    return event;
  }

 private:
  template <class T>
  T locked(const T& member) const {
    std::lock_guard lock(mutex_);
    return member;
  }

  const Sink sink_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  Script script_;
  int room_ = -1;
  engine::EngineSnapshot snapshot_;
  bool flush_answer_ = true;
  Status profile_answer_ = Ok{};
  std::vector<engine::ProfileCommand> profiles_;
  bool answers_cancels_ = false;
  std::vector<api::EngineRequest> submitted_;
  std::vector<engine::CancelCommand> cancelled_;
  std::vector<engine::SlowDownCommand> slow_downs_;
  std::vector<engine::HoldCommand> holds_;
  bool drained_ = false;
};

}  // namespace tandem::server::testing
