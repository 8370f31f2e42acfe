#include "engine/step/profile_window.h"

#include <utility>

namespace tandem::engine {

const char* stage_name(ProfileStage stage) {
  if (stage == ProfileStage::kAll) return "";
  return stage == ProfileStage::kExtend ? "EXTEND" : "DECODE";
}

ProfileWindow::ProfileWindow(const ProfilePlan& plan)
    : plan_(plan),
      all_left_(!plan.by_stage),
      extend_left_(plan.by_stage && plan.wants_extend),
      decode_left_(plan.by_stage && plan.wants_decode) {
  if (!plan.by_stage && !plan.start_step) open(ProfileStage::kAll);
}

void ProfileWindow::open(ProfileStage stage) {
  open_ = stage;
  num_recorded_ = 0;
  (stage == ProfileStage::kAll ? all_left_ : stage == ProfileStage::kExtend ? extend_left_ : decode_left_) = false;
}

std::optional<ProfileStage> ProfileWindow::close() {
  has_recorded_ = has_recorded_ || open_.has_value();
  return std::exchange(open_, std::nullopt);
}

ProfileWindow::Moves ProfileWindow::before_step(int64_t number, parallel::StepKind kind) {
  Moves moves;
  records_ = false;
  if (!open_ && number < plan_.start_step.value_or(0)) return moves;
  if (!plan_.by_stage) {
    if (!open_ && all_left_) moves.opens = ProfileStage::kAll;
  } else if (kind == parallel::StepKind::kDecode) {
    if (open_ == ProfileStage::kExtend) moves.closes = close();
    if (!open_ && decode_left_) moves.opens = ProfileStage::kDecode;
  } else if (kind == parallel::StepKind::kExtend && !open_ && extend_left_) {
    moves.opens = ProfileStage::kExtend;
  }
  if (moves.opens) open(*moves.opens);
  const ProfileStage stage = kind == parallel::StepKind::kDecode ? ProfileStage::kDecode : ProfileStage::kExtend;
  records_ = open_ && (!plan_.by_stage || *open_ == stage);
  moves.records = records_;
  return moves;
}

std::optional<ProfileStage> ProfileWindow::after_step() {
  if (!std::exchange(records_, false)) return std::nullopt;
  num_recorded_ += 1;
  if (!plan_.num_steps || num_recorded_ < *plan_.num_steps) return std::nullopt;
  return close();
}

std::optional<ProfileStage> ProfileWindow::stop() {
  all_left_ = extend_left_ = decode_left_ = false;
  return close();
}

}  // namespace tandem::engine
