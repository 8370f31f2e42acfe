#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "engine/expert_follower.h"
#include "engine/experts/mover.h"
#include "engine/experts/node_values.h"
#include "engine/slab_reads.h"
#include "experts/placement_hash.h"

namespace tandem::engine {
namespace {

constexpr size_t kMaxMessages = 1024;
constexpr Duration kIdleWait = std::chrono::milliseconds(20);
constexpr Duration kBusyWait = std::chrono::milliseconds(1);
constexpr Duration kReportInterval = std::chrono::milliseconds(200);

}  // namespace

ExpertFollower::ExpertFollower(const ExpertBalancerConfig& config, Parts parts)
    : config_(config), parts_(std::move(parts)), inbox_(kMaxMessages) {
  CHECK(!parts_.ports.empty());
  CHECK(parts_.reads != nullptr);
  CHECK(validate(parts_.placement, config_.topology).has_value());
  mover_ = std::make_unique<ExpertMover>(config_, ExpertMover::Parts{parts_.ports, parts_.first_rank, parts_.placement,
                                                                     parts_.copy, parts_.reads.get(), nullptr});
  pace_ = std::make_unique<CopyPace>(node_pace(config_, parts_.ports.size()));
  counts_ = parts_.ports[0]->take_load().first;
  std::fill(counts_.tokens.begin(), counts_.tokens.end(), 0);
}

ExpertFollower::~ExpertFollower() = default;

uint32_t ExpertFollower::version() const { return mover_->version(); }
const experts::ExpertPlacement& ExpertFollower::placement() const { return mover_->placement(); }

Status ExpertFollower::on_message(std::string_view bytes) {
  ASSIGN_OR_RETURN(api::NodeExpertMessage message, api::decode_expert_message(bytes));
  const bool is_ours =
      std::holds_alternative<api::NodeExpertAsk>(message) || std::holds_alternative<api::NodeExpertPlan>(message) ||
      std::holds_alternative<api::NodeExpertStage>(message) || std::holds_alternative<api::NodeExpertAbort>(message);
  if (!is_ours) return corrupt(fmt::format("a message about experts of type {} out of order", message.index() + 1));
  // Serving does not end because of balancing: what finds no room is missed, and node 0's deadline says so.
  if (inbox_.push(std::move(message)) == PushResult::kFull) log::warning("a message about experts found no room");
  return Ok{};
}

void ExpertFollower::tell(const api::NodeExpertMessage& message) {
  if (parts_.send(api::encode_expert_message(message)) != PushResult::kPushed) {
    log::warning("[EPLBManager] node 0 does not take what this node says of its experts");
  }
}

bool ExpertFollower::tick() {
  bool more = false;
  while (std::optional<api::NodeExpertMessage> message = inbox_.try_pop()) {
    std::visit([&](auto& value) { take(value); }, *message);
    more = true;
  }
  collect();
  more = parts_.reads->poll(parts_.clock->now()) || more;
  if (next_plan_ && !mover_->is_busy()) begin();
  return advance() || more;
}

void ExpertFollower::run(std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] { inbox_.wake(); });
  while (!stop.stop_requested()) {
    if (tick()) continue;
    if (auto message = inbox_.pop(mover_->is_busy() || next_plan_ ? kBusyWait : kIdleWait)) {
      std::visit([&](auto& value) { take(value); }, *message);
    }
  }
}

void ExpertFollower::collect() {
  int64_t steps = 0;
  for (ExpertPort* port : parts_.ports) {
    const auto [load, new_steps] = port->take_load();
    for (size_t i = 0; i < load.tokens.size(); ++i) counts_.tokens[i] += load.tokens[i];
    steps = std::max(steps, new_steps);
  }
  pace_->grant(steps);
}

void ExpertFollower::take(api::NodeExpertAsk& ask) {
  using What = api::NodeExpertAsk::What;
  api::NodeExpertAnswer answer;
  answer.ask = ask.ask;
  const size_t cells = counts_.tokens.size();
  if (ask.what == What::kCounts) {
    collect();
    answer.tokens = counts_.tokens;
    std::fill(counts_.tokens.begin(), counts_.tokens.end(), 0);
  } else if (ask.what == What::kStartRecording) {
    taken_ = {};
    const int64_t most = std::max<int64_t>(1, config_.recorder_bytes / int64_t(cells * sizeof(int32_t)));
    if (ask.amount < 1 || ask.amount > most) {
      answer.error = fmt::format("a recording of {} steps, at most {}", ask.amount, most);
    }
    for (ExpertPort* port : parts_.ports) {
      if (answer.error.empty()) port->start_recording(ask.amount);
    }
  } else if (ask.what == What::kStopRecording) {
    for (ExpertPort* port : parts_.ports) port->stop_recording();
  } else {
    if (ask.what == What::kTakeRecording) {
      std::vector<ExpertRecording> recordings;
      for (ExpertPort* port : parts_.ports) recordings.push_back(port->take_recording());
      taken_ = sum_recordings(recordings, cells);
    }
    move_steps(taken_, cells, parts_.answer_bytes, answer);
  }
  tell(answer);
}

// The ranks here may be a moment behind node 0's: the last switch of the plan before is awaited.
void ExpertFollower::take(api::NodeExpertPlan& plan) { next_plan_ = std::move(plan); }

void ExpertFollower::begin() {
  const api::NodeExpertPlan plan = *std::exchange(next_plan_, std::nullopt);
  plan_ = plan.plan;
  if (const Status begun = begin_plan(plan); !begun) fail(begun.error().message);
}

Status ExpertFollower::begin_plan(const api::NodeExpertPlan& plan) {
  if (parts_.ports[0]->slots().shape().num_spares == 0) return invalid_input("no spare slots were reserved at start");
  const uint64_t digest = placement_hash(mover_->placement());
  if (plan.base_version != mover_->version() || plan.base_digest != digest) {
    return invalid_input(
        fmt::format("the plan changes version {} with digest {:016x}, here serves version {} with {:016x}",
                    plan.base_version, plan.base_digest, mover_->version(), digest));
  }
  ASSIGN_OR_RETURN(const experts::ExpertPlacement target, read_plan(plan, mover_->placement(), config_.topology));
  const int64_t moves = mover_->begin(target);
  log::info("[EPLBManager] plan {} of node 0: {} layers, {} moves on all nodes", plan.plan, mover_->layers_left(),
            moves);
  return Ok{};
}

// An order for another plan is one that crossed with its failure here.
void ExpertFollower::take(api::NodeExpertStage& stage) {
  if (stage.plan != plan_ || !mover_->is_copied() || stage.version != mover_->working_on()) return;
  mover_->stage();
}

void ExpertFollower::take(api::NodeExpertAbort& abort) {
  if (next_plan_ && next_plan_->plan == abort.plan) next_plan_.reset();
  if (abort.plan != plan_ || !mover_->is_busy()) return;
  log::warning("[EPLBManager] node 0 gave plan {} up: {}; the placement of version {} serves on", abort.plan,
               abort.reason, mover_->version());
  mover_->give_up();
}

bool ExpertFollower::advance() {
  if (!mover_->is_busy()) return false;
  const bool was_copied = mover_->is_copied();
  const Status advanced = mover_->advance(parts_.clock->now(), pace_->allowance);
  if (!advanced && !mover_->is_busy()) {
    fail(advanced.error().message);
  } else if (!advanced) {
    log::error("[EPLBManager] {}", advanced.error().message);  // node 0 sees the same of its own ranks
  } else {
    report(mover_->is_copied() && !was_copied);
  }
  return mover_->can_copy(pace_->allowance);
}

void ExpertFollower::report(bool at_once) {
  const TimePoint now = parts_.clock->now();
  const bool moved = mover_->bytes_moved() != told_.bytes;
  if (!at_once && (!moved || now - told_at_ < kReportInterval)) return;
  told_at_ = now;
  told_.plan = plan_;
  told_.version = mover_->working_on();
  told_.copied = mover_->is_copied();
  told_.digest = told_.copied ? placement_hash(mover_->pending()) : 0;
  told_.moves = mover_->moves_done();
  told_.bytes = mover_->bytes_moved();
  tell(told_);
}

// The placement in use serves on.
void ExpertFollower::fail(const std::string& reason) {
  log::error("[EPLBManager] rebalance failed: {}; the placement of version {} serves on", reason, mover_->version());
  tell(api::NodeExpertFailed{plan_, reason});
}

}  // namespace tandem::engine
