// RankProfiler: one rank's part in profiling. Takes orders to start and stop, says in the votes which of them it has
// prepared, and follows each when the whole group has: so every rank records the same steps. What was recorded goes to
// the process's TraceWriter. Owner: the engine thread.
//
//   take() --> vote() --> decision --> agree() --> before_step(), after_step() of each step
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "engine/engine.h"
#include "engine/step/profile_window.h"
#include "engine/step/stats.h"
#include "parallel/step_protocol.h"
#include "profile/span.h"

namespace tandem::engine {

// When the parts of a step before its forward began; read for every step, recorded or not.
struct StepTimes {
  TimePoint formed{};   // the batch began to be formed
  TimePoint voted{};    // the vote was posted
  TimePoint decided{};  // all votes were there
};

// What a rank's own part of a step was.
struct StepFigures {
  int32_t num_tokens = 0, num_sequences = 0;
  LoadFigures load;  // after the step
  int64_t free_blocks = 0, leased_blocks = 0, cached_blocks = 0;
};

class RankProfiler {
 public:
  // Both outlive it.
  RankProfiler(const EngineConfig& config, const EngineParts& parts) : config_(config), parts_(parts) {}
  ~RankProfiler() { close("The server is shutting down."); }
  RankProfiler(const RankProfiler&) = delete;
  RankProfiler& operator=(const RankProfiler&) = delete;

  void take(ProfileCommand command);
  void vote(parallel::StepVote& vote) const;
  void agree(const parallel::StepDecision& decision, const StepTimes& times);
  // number: of the forward step, from 1.
  void before_step(const parallel::StepDecision& decision, int64_t number, const StepTimes& times);
  bool recording() const { return records_step_; }
  bool is_open() const { return window_.has_value(); }
  // After a step that was recorded. own: kNone for a rank without tokens.
  void after_step(parallel::StepKind own, const StepFigures& figures);
  // The engine ends: what is open is written, orders that wait are answered with the reason.
  void close(const std::string& reason);

 private:
  // Whether the directory is there; set by the writer's thread.
  struct Preparation {
    enum State : int { kWaiting, kReady, kRefused };
    std::atomic<int> state{kWaiting};
    Error refusal{ErrorCode::kInvalidInput, ""};  // written before kRefused
  };
  struct Order {
    ProfileCommand command;
    std::shared_ptr<Preparation> preparation;
  };

  void follow(Order& order, bool refused, const StepTimes& times);
  Status start(const Order& order, bool refused, const StepTimes& times);
  void stop(Order& order);
  void open(ProfileStage stage, const StepTimes& times);
  void write(ProfileStage stage, std::function<void(Status)> done);
  void resume(bool on);

  const EngineConfig& config_;
  const EngineParts& parts_;
  std::deque<Order> orders_;  // not agreed upon yet, by version
  uint32_t newest_ = 0;       // taken
  uint32_t agreed_ = 0;
  std::optional<ProfileWindow> window_;
  api::ProfileCall call_;  // of window_
  TimePoint base_{};       // of the open stage's trace
  bool records_step_ = false;
  // Of the step that is recorded.
  StepTimes times_;
  uint64_t number_ = 0;
};

}  // namespace tandem::engine
