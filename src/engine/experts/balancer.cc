#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "engine/expert_balancer.h"
#include "engine/experts/mover.h"
#include "engine/experts/node_values.h"
#include "engine/experts/other_nodes.h"
#include "engine/experts/recorder.h"
#include "experts/files.h"
#include "experts/placement_hash.h"
#include "experts/repair.h"

namespace tandem::engine {
namespace {

constexpr size_t kMaxRequests = 64;
constexpr Duration kIdleWait = std::chrono::milliseconds(20);
constexpr Duration kBusyWait = std::chrono::milliseconds(1);
constexpr Duration kLookInterval = std::chrono::milliseconds(200);  // between figures of the running window
constexpr int32_t kMaxBackoff = 6;
constexpr const char* kOwnAlgorithm = "tandem";

}  // namespace

struct BalancerMetrics {
  BalancerMetrics(profile::Metrics& metrics, const std::string& model_name) {
    const profile::Labels labels = {{"model_name", model_name}};
    const auto gauge = [&](const char* name, const char* help) { return metrics.gauge(name, help, labels); };
    const auto counter = [&](const char* name, const char* help) { return metrics.counter(name, help, labels); };
    balancedness = gauge("sglang:eplb_balancedness", "Mean over largest rank load of the running window.");
    planned = gauge("tandem:eplb_planned_balancedness", "Of the last plan under the loads it was made from.");
    worst_layer = gauge("tandem:eplb_worst_layer_balancedness", "Of the running window's least balanced layer.");
    epoch = gauge("tandem:eplb_epoch", "Plans carried out.");
    layers_left = gauge("tandem:eplb_layers_left", "Layers of the plan in work that still have the old placement.");
    planning_ms = gauge("tandem:eplb_planning_ms", "Time that the last plan took to make.");
    plans = counter("tandem:eplb_plans_total", "Plans made.");
    skipped = counter("tandem:eplb_skipped_total", "Plans that were due and not needed.");
    failed = counter("tandem:eplb_failed_total", "Plans that could not be made or carried out.");
    moves = counter("tandem:eplb_experts_moved_total", "Experts copied from place to place.");
    bytes = counter("tandem:eplb_bytes_moved_total", "Bytes copied for that.");
  }
  profile::Gauge balancedness, planned, worst_layer, epoch, layers_left, planning_ms;
  profile::Counter plans, skipped, failed, moves, bytes;
};

ExpertBalancer::ExpertBalancer(ExpertBalancerConfig config, BalancerParts parts)
    : config_(std::move(config)),
      parts_(std::move(parts)),
      metrics_(std::make_unique<BalancerMetrics>(*parts_.metrics, config_.model_name)),
      requests_(kMaxRequests) {
  CHECK(!parts_.ports.empty());
  CHECK(validate(parts_.placement, config_.topology).has_value());
  mover_ = std::make_unique<ExpertMover>(
      config_, ExpertMover::Parts{parts_.ports, 0, parts_.placement, parts_.copy, parts_.reads.get(), parts_.copies});
  pace_ = std::make_unique<CopyPace>(node_pace(config_, parts_.ports.size()));
  recorder_ = std::make_unique<ExpertRecorder>(config_, parts_.ports, *parts_.metrics);
  window_ = parts_.ports[0]->take_load().first;
  std::fill(window_.tokens.begin(), window_.tokens.end(), 0);
  if (parts_.nodes.num_nodes > 1) {
    nodes_ =
        std::make_unique<OtherNodes>(parts_.nodes, window_.tokens.size(), [this](const std::vector<int64_t>& tokens) {
          for (size_t i = 0; i < tokens.size(); ++i) window_.tokens[i] += tokens[i];
        });
  }
  publish();
}

ExpertBalancer::~ExpertBalancer() = default;

void ExpertBalancer::start_recording(std::function<void(Status)> done) {
  if (requests_.push(StartRecording{done}) != PushResult::kPushed) done(exhausted("too many control requests wait"));
}
void ExpertBalancer::stop_recording(std::function<void(Status)> done) {
  if (requests_.push(StopRecording{done}) != PushResult::kPushed) done(exhausted("too many control requests wait"));
}
void ExpertBalancer::dump_recording(std::function<void(Result<std::string>)> done) {
  if (requests_.push(DumpRecording{done}) != PushResult::kPushed) done(exhausted("too many control requests wait"));
}
void ExpertBalancer::rebalance(std::string algorithm, std::string placement,
                               std::function<void(Result<RebalanceReply>)> done) {
  if (requests_.push(Rebalance{std::move(algorithm), std::move(placement), done}) != PushResult::kPushed) {
    done(exhausted("too many control requests wait"));
  }
}

Status ExpertBalancer::on_message(int32_t node, std::string_view bytes) {
  CHECK(nodes_ != nullptr);
  const Status taken = nodes_->on_message(node, bytes);
  requests_.wake();
  return taken;
}

void ExpertBalancer::on_lost(const std::string& reason) {
  CHECK(nodes_ != nullptr);
  nodes_->on_lost(reason);
  requests_.wake();
}

BalancerView ExpertBalancer::view() const {
  std::lock_guard lock(view_mutex_);
  return view_;
}

bool ExpertBalancer::tick() {
  while (std::optional<Request> request = requests_.try_pop()) {
    std::visit([&](auto& value) { serve(value); }, *request);
  }
  collect();
  recorder_->tick();
  const TimePoint now = parts_.clock->now();
  bool more = nodes_ && nodes_->poll(now);
  if (parts_.reads) more = parts_.reads->poll(now) || more;
  if (mover_->is_busy()) {
    more = advance() || more;
  } else if (is_due()) {
    start_due();
  }
  look();
  publish();
  return more;
}

// A plan is made from the counts of all nodes, as far as they are then.
void ExpertBalancer::start_due() {
  is_gathering_ = true;
  with_counts([this](Status counted) {
    is_gathering_ = false;
    if (counted && mover_->is_busy()) return;  // one that was asked for came first
    const Result<RebalanceReply> started =
        counted ? start_plan(config_.algorithm, nullptr) : Result<RebalanceReply>(counted.error());
    if (!started) fail(started.error().message);
  });
}

void ExpertBalancer::run(std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] { requests_.wake(); });
  while (!stop.stop_requested()) {
    if (tick()) continue;
    // The queue's own pop would take the request: only its wake-up is wanted.
    if (std::optional<Request> request = requests_.pop(mover_->is_busy() ? kBusyWait : kIdleWait)) {
      std::visit([&](auto& value) { serve(value); }, *request);
    }
  }
}

void ExpertBalancer::serve(StartRecording& request) {
  const auto here = [this] { recorder_->start(); };
  ask_all(api::NodeExpertAsk::What::kStartRecording, recorder_->passes_to_keep(), here, std::move(request.done));
}

void ExpertBalancer::serve(StopRecording& request) {
  const auto here = [this] { recorder_->stop(); };
  ask_all(api::NodeExpertAsk::What::kStopRecording, 0, here, std::move(request.done));
}

void ExpertBalancer::ask_all(api::NodeExpertAsk::What what, int64_t amount, std::function<void()> here,
                             std::function<void(Status)> done) {
  if (!nodes_) {
    here();
    return done(Ok{});
  }
  nodes_->ask(what, amount, parts_.clock->now(), [here, done](Result<OtherNodes::Answers> answers) {
    if (!answers) return done(answers.error());
    here();
    done(Ok{});
  });
}

void ExpertBalancer::with_counts(std::function<void(Status)> then) {
  ask_all(
      api::NodeExpertAsk::What::kCounts, 0, [this] { collect(); }, std::move(then));
}

void ExpertBalancer::serve(DumpRecording& request) {
  const double unix_time = parts_.clock->unix_seconds();
  if (!nodes_) return request.done(recorder_->dump(unix_time, mover_->placement(), {}));
  const auto done = request.done;
  nodes_->take_recordings(parts_.clock->now(), [this, unix_time, done](Result<std::vector<ExpertRecording>> others) {
    if (!others) return done(others.error());
    done(recorder_->dump(unix_time, mover_->placement(), std::move(*others)));
  });
}

void ExpertBalancer::serve(Rebalance& request) {
  with_counts([this, asked = std::move(request)](const Status& counted) {
    if (!counted) return asked.done(counted.error());
    const std::string& algorithm = asked.algorithm.empty() ? config_.algorithm : asked.algorithm;
    if (asked.placement.empty()) return asked.done(start_plan(algorithm, nullptr));
    const Result<experts::ExpertPlacement> given = read_placement(asked.placement);
    asked.done(given ? start_plan(algorithm, &*given) : Result<RebalanceReply>(given.error()));
  });
}

Result<experts::ExpertPlacement> ExpertBalancer::read_placement(const std::string& text) const {
  const experts::ExpertShape want{window_.num_layers, window_.num_logical, config_.topology.num_slots()};
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  ASSIGN_OR_RETURN(experts::ExpertFile file, parse_expert_file(bytes, "placement", want, experts::StepDetail::kSum));
  auto* placement = std::get_if<experts::PlacementFile>(&file);
  if (placement == nullptr) return invalid_input("placement: wanted physical_to_logical_map, got a load");
  return std::move(placement->placement);
}

// Counts of all ranks; a step is counted on each of them, so any rank's number of steps is the group's.
void ExpertBalancer::collect() {
  int64_t steps = 0;
  for (ExpertPort* port : parts_.ports) {
    const auto [load, new_steps] = port->take_load();
    for (size_t i = 0; i < load.tokens.size(); ++i) window_.tokens[i] += load.tokens[i];
    steps = std::max(steps, new_steps);
  }
  window_steps_ += steps;
  pace_->grant(steps);
}

bool ExpertBalancer::is_due() const {
  return config_.is_periodic && !is_gathering_ && window_steps_ >= config_.steps_between << backoff_;
}

Result<experts::ExpertPlacement> ExpertBalancer::make_plan(const std::string& algorithm) {
  const experts::ExpertPlacement& current = mover_->placement();
  if (parts_.plan) return parts_.plan({window_, current, algorithm});
  if (algorithm == kOwnAlgorithm) {
    const experts::ExpertPlacement plan =
        experts::repair(window_, current, config_.topology, {config_.target, config_.max_changed_per_layer});
    if (config_.dispatch != experts::DispatchAlgorithm::kStatic) return plan;
    return experts::reshare(window_, plan, config_.topology, experts::ShareGrain::kWholeRanks);
  }
  ASSIGN_OR_RETURN(const experts::BalanceAlgorithm row, experts::find_balance_algorithm(algorithm));
  const experts::BalanceProblem problem{{&window_, 1}, config_.topology, config_.num_groups};
  ASSIGN_OR_RETURN(const experts::ExpertPlacement plan, experts::plan_experts(row, problem));
  // Which rank gets which part of a fresh plan is free: as many experts as possible stay where they are.
  return experts::relabel(plan, current, config_.topology, experts::RelabelScope::kWithinNode);
}

Result<RebalanceReply> ExpertBalancer::start_plan(const std::string& algorithm, const experts::ExpertPlacement* given) {
  if (mover_->is_busy()) return exhausted("a rebalance is under way");
  if (parts_.ports[0]->slots().shape().num_spares == 0) {
    return invalid_input("no spare slots were reserved at start: --enable-eplb or --eplb-spare-slots N reserves them");
  }
  const experts::ExpertPlacement& current = mover_->placement();
  RebalanceReply reply;
  reply.before = experts::balancedness(window_, current, config_.topology).mean;
  if (given == nullptr && config_.skip_above < 1 && reply.before > config_.skip_above) {
    window_steps_ = 0;
    now_.skipped += 1;
    metrics_->skipped.add();
    log::info("[EPLBManager] Skipped ep rebalancing: current utilization {:.2f} > minimum rebalance threshold {:.2f}",
              reply.before, config_.skip_above);
    reply.after = reply.before;
    reply.epoch = now_.epoch;
    return reply;
  }
  const TimePoint begin = parts_.clock->now();
  Result<experts::ExpertPlacement> plan = given ? Result<experts::ExpertPlacement>(*given) : make_plan(algorithm);
  now_.last_planning_ms = seconds(parts_.clock->now() - begin) * 1e3;
  if (!plan) return plan.error();
  RETURN_IF_ERROR(validate(*plan, config_.topology));
  if (plan->num_layers != current.num_layers || plan->num_logical != current.num_logical) {
    return invalid_input(fmt::format("the plan is for {} layers of {} experts, the model has {} of {}",
                                     plan->num_layers, plan->num_logical, current.num_layers, current.num_logical));
  }
  reply.after = experts::balancedness(window_, *plan, config_.topology).mean;
  api::NodeExpertPlan message = plan_message(*plan);
  message.plan = now_.plans + 1;
  message.base_version = mover_->version();
  message.base_digest = placement_hash(current);
  reply.moves = mover_->begin(*plan);
  if (nodes_ && mover_->is_busy()) nodes_->begin_plan(message, begin);
  is_cut_short_ = false;
  reply.layers = mover_->layers_left();
  reply.epoch = now_.epoch + (mover_->is_busy() ? 1 : 0);
  now_.plans += 1;
  now_.before_balancedness = reply.before;
  now_.planned_balancedness = reply.after;
  metrics_->plans.add();
  metrics_->planned.set(reply.after);
  metrics_->planning_ms.set(now_.last_planning_ms);
  log::info("[EPLBManager] rebalance start");
  log::info("[EPLBManager] plan algorithm={} planning_ms={:.2f} balancedness={:.3f} planned={:.3f} layers={} moves={}",
            given ? "given" : algorithm, now_.last_planning_ms, reply.before, reply.after, reply.layers, reply.moves);
  std::fill(window_.tokens.begin(), window_.tokens.end(), 0);
  window_steps_ = 0;
  started_at_ = begin;
  if (!mover_->is_busy()) log::info("[EPLBManager] rebalance end time={:.3f}s", now_.last_planning_ms / 1e3);
  return reply;
}

// Returns whether there is more to copy at once.
bool ExpertBalancer::advance() {
  const Status advanced = mover_->advance(parts_.clock->now(), pace_->allowance);
  if (!advanced) {
    if (nodes_ && !mover_->is_busy()) nodes_->abort(advanced.error().message);
    fail(advanced.error().message);
  } else if (nodes_ && mover_->is_busy() && !mover_->is_staged()) {
    settle_version();
  }
  if (!mover_->is_busy() && advanced && !is_cut_short_) {
    now_.epoch += 1;
    backoff_ = 0;
    window_steps_ = 0;
    log::info("[EPLBManager] rebalance end time={:.3f}s", seconds(parts_.clock->now() - started_at_));
  }
  return mover_->can_copy(pace_->allowance);
}

// A version is staged when every node has copied it, so that none can fail any more when one has staged it.
void ExpertBalancer::settle_version() {
  const uint32_t version = mover_->working_on();
  const uint64_t digest = mover_->is_copied() ? placement_hash(mover_->pending()) : 0;
  const Result<bool> copied = nodes_->has_copied(version, digest, parts_.clock->now(), config_.progress_deadline);
  if (!copied) {
    mover_->give_up();
    nodes_->abort(copied.error().message);
    is_cut_short_ = true;
    return fail(copied.error().message);
  }
  if (!*copied || !mover_->is_copied()) return;
  nodes_->stage(version);
  mover_->stage();
}

// The old placement serves on; the next plan waits longer.
void ExpertBalancer::fail(const std::string& reason) {
  log::error("[EPLBManager] rebalance failed: {}; the placement of version {} serves on", reason, mover_->version());
  now_.failed += 1;
  now_.last_error = reason;
  metrics_->failed.add();
  backoff_ = std::min(backoff_ + 1, kMaxBackoff);
  window_steps_ = 0;
}

// The running window's figures need the other nodes' counts, too.
void ExpertBalancer::look() {
  if (!nodes_ || parts_.clock->now() - looked_at_ < kLookInterval) return;
  nodes_->ask(api::NodeExpertAsk::What::kCounts, 0, parts_.clock->now(), [](Result<OtherNodes::Answers>) {});
}

void ExpertBalancer::publish() {
  now_.version = mover_->version();
  now_.in_progress = mover_->is_busy();
  now_.layers_left = mover_->layers_left();
  now_.moves_done = mover_->moves_done() + (nodes_ ? nodes_->moves_done() : 0);
  now_.bytes_moved = mover_->bytes_moved() + (nodes_ ? nodes_->bytes_moved() : 0);
  metrics_->moves.add(double(now_.moves_done - std::exchange(moves_told_, now_.moves_done)));
  metrics_->bytes.add(double(now_.bytes_moved - std::exchange(bytes_told_, now_.bytes_moved)));
  now_.is_recording = recorder_->is_recording();
  const TimePoint now = parts_.clock->now();
  if (now - looked_at_ >= kLookInterval) {
    looked_at_ = now;
    const experts::Balancedness balance = experts::balancedness(window_, mover_->placement(), config_.topology);
    now_.balancedness = balance.mean;
    metrics_->balancedness.set(balance.mean);
    metrics_->worst_layer.set(balance.worst);
  }
  metrics_->epoch.set(double(now_.epoch));
  metrics_->layers_left.set(now_.layers_left);
  std::lock_guard lock(view_mutex_);
  static_cast<BalancerFigures&>(view_) = now_;
  if (shown_version_ == mover_->version() && view_.placement.num_layers > 0) return;
  shown_version_ = mover_->version();
  view_.placement = mover_->placement();
}

}  // namespace tandem::engine
