// ProfileWindow: which steps of a rank a profile records. Pure: the same decisions give the same window on every rank.
#pragma once

#include <cstdint>
#include <optional>

#include "parallel/step_protocol.h"

namespace tandem::engine {

enum class ProfileStage : uint8_t { kAll, kExtend, kDecode };
const char* stage_name(ProfileStage stage);  // "", "EXTEND", "DECODE"

struct ProfilePlan {
  std::optional<int64_t> num_steps;   // of each stage; absent: until stop()
  std::optional<int64_t> start_step;  // absent: at once
  // A window for prefill steps and one for decode steps, each once. One is open at a time: a decode step ends a prefill
  // window, prefill steps inside a decode window are left out. Steps count by what the group runs.
  bool by_stage = false;
  bool wants_extend = true, wants_decode = true;
};

class ProfileWindow {
 public:
  explicit ProfileWindow(const ProfilePlan& plan);

  // At creation: a window that waits for nothing is open at once.
  bool is_open() const { return open_.has_value(); }
  // Nothing is open and nothing will be.
  bool is_done() const { return !open_ && (plan_.by_stage ? !extend_left_ && !decode_left_ : !all_left_); }
  bool has_recorded() const { return has_recorded_; }

  struct Moves {
    std::optional<ProfileStage> closes, opens;  // in this order, before the step
    bool records = false;                       // the step belongs to the open window
  };
  // number: of the forward step that begins, from 1. kind: the group's.
  Moves before_step(int64_t number, parallel::StepKind kind);
  // The window that ended with the step, if one did.
  std::optional<ProfileStage> after_step();
  // Ends everything; the window that was open.
  std::optional<ProfileStage> stop();

 private:
  void open(ProfileStage stage);
  std::optional<ProfileStage> close();

  const ProfilePlan plan_;
  std::optional<ProfileStage> open_;
  bool all_left_ = true, extend_left_ = false, decode_left_ = false;  // still to be opened
  bool records_ = false, has_recorded_ = false;
  int64_t num_recorded_ = 0;  // of the open window
};

}  // namespace tandem::engine
