#include "engine/step/rank_profiler.h"

#include <fmt/format.h>

#include "base/log.h"
#include "profile/trace_writer.h"

namespace tandem::engine {
namespace {

// About 23 MB a rank, touched as it fills: 500 steps of the trained model, 130 of DeepSeek-V3's 61 layers.
constexpr size_t kSpans = size_t(1) << 18;
constexpr size_t kTransferSpans = size_t(1) << 16;

int64_t nanoseconds(TimePoint time) { return time.time_since_epoch().count(); }

const char* kind_name(parallel::StepKind kind) {
  if (kind == parallel::StepKind::kExtend) return "extend";
  return kind == parallel::StepKind::kDecode ? "decode" : "idle";
}

const char* role_name(Role role) {
  if (role == Role::kPrefill) return "prefill";
  return role == Role::kDecode ? "decode" : "server";
}

}  // namespace

void RankProfiler::take(ProfileCommand command) {
  if (command.version == 0) command.version = newest_ + 1;  // no group numbers them
  if (command.version <= newest_) {
    if (command.done) command.done(cancelled("an order to profile came twice"));
    return;
  }
  newest_ = command.version;
  Order order{std::move(command), std::make_shared<Preparation>()};
  const auto settle = [preparation = order.preparation](const Status& status) {
    if (!status) preparation->refusal = status.error();
    preparation->state = status ? Preparation::kReady : Preparation::kRefused;
  };
  if (parts_.spans == nullptr || parts_.traces == nullptr) {
    settle(invalid_input("This server cannot profile."));
  } else if (order.command.kind == ProfileCommand::Kind::kStart) {
    parts_.traces->prepare(order.command.call.output_dir, settle);
  } else {
    settle(Ok{});
  }
  orders_.push_back(std::move(order));
}

void RankProfiler::vote(parallel::StepVote& vote) const {
  vote.profile_version = agreed_;
  for (const Order& order : orders_) {
    const int state = order.preparation->state.load();
    if (state == Preparation::kWaiting) return;
    vote.profile_version = order.command.version;
    if (state == Preparation::kRefused) vote.profile_refused = order.command.version;
  }
}

void RankProfiler::agree(const parallel::StepDecision& decision, const StepTimes& times) {
  while (!orders_.empty() && orders_.front().command.version <= decision.profile_version) {
    Order order = std::move(orders_.front());
    orders_.pop_front();
    agreed_ = order.command.version;
    follow(order, decision.profile_refused == agreed_, times);
  }
}

void RankProfiler::follow(Order& order, bool refused, const StepTimes& times) {
  if (order.command.kind == ProfileCommand::Kind::kStop) return stop(order);
  const Status started = start(order, refused, times);
  if (order.command.done) order.command.done(started);
}

Status RankProfiler::start(const Order& order, bool refused, const StepTimes& times) {
  if (order.preparation->state == Preparation::kRefused) return order.preparation->refusal;
  if (refused) return cancelled("another rank cannot write there");
  // A call of which one stage was recorded and the other never came gives way.
  if (window_ && (window_->is_open() || !window_->has_recorded())) {
    return invalid_input("Profiling is already in progress. Call /stop_profile first.");
  }
  call_ = order.command.call;
  ProfilePlan plan;
  plan.num_steps = call_.num_steps;
  plan.start_step = call_.start_step;
  plan.by_stage = call_.by_stage;
  plan.wants_extend = call_.wants_extend && config_.role != Role::kDecode;
  plan.wants_decode = call_.wants_decode && config_.role != Role::kPrefill;
  if (call_.by_stage && !plan.wants_extend && !plan.wants_decode) {
    return invalid_input("This server runs none of the stages that are to be profiled.");
  }
  window_.emplace(plan);
  if (window_->is_open()) open(ProfileStage::kAll, times);
  return Ok{};
}

void RankProfiler::stop(Order& order) {
  if (order.preparation->state == Preparation::kRefused || !window_) {
    if (order.command.done)
      order.command.done(invalid_input("Profiling is not in progress. Call /start_profile first."));
    return;
  }
  const std::optional<ProfileStage> open = window_->stop();
  window_.reset();
  if (open) return write(*open, std::move(order.command.done));
  log::write(log::Level::kInfo, config_.log_scope, "Stop profiling...");  // it waited for its first step
  if (order.command.done) order.command.done(Ok{});
}

void RankProfiler::open(ProfileStage stage, const StepTimes& times) {
  base_ = times.formed;
  const std::string for_stage = stage == ProfileStage::kAll ? "" : fmt::format(" for {}", stage_name(stage));
  log::write(log::Level::kInfo, config_.log_scope,
             fmt::format("Profiling starts{}. Traces will be saved to: {} (with profile id: {})", for_stage,
                         call_.output_dir, call_.profile_id));
  parts_.spans->start(profile::SpanBuffer(kSpans), call_.operators);
  if (parts_.transfer_spans != nullptr) parts_.transfer_spans->start(profile::SpanBuffer(kTransferSpans));
}

void RankProfiler::write(ProfileStage stage, std::function<void(Status)> done) {
  const std::string for_stage = stage == ProfileStage::kAll ? "" : fmt::format("-{}", stage_name(stage));
  log::write(log::Level::kInfo, config_.log_scope, fmt::format("Stop profiling{}...", for_stage));
  profile::TraceJob job;
  job.spans = parts_.spans->stop();
  if (parts_.transfer_spans != nullptr) job.transfer_spans = parts_.transfer_spans->stop();
  job.info.profile_id = call_.profile_id;
  job.info.rank = parts_.communicator->rank().value;
  job.info.rank_name = config_.log_scope;
  job.info.role = role_name(config_.role);
  job.info.stage = stage_name(stage);
  job.info.base_ns = nanoseconds(base_);
  job.info.base_unix_ns = int64_t(parts_.clock->unix_seconds() * 1e9) - (parts_.clock->now() - base_).count();
  job.info.with_shapes = call_.record_shapes;
  job.directory = call_.output_dir;
  job.prefix = call_.prefix;
  job.log_scope = config_.log_scope;
  job.num_ranks = parts_.communicator->num_ranks();
  job.merge = call_.merge && job.info.rank == 0;
  job.done = std::move(done);
  parts_.traces->submit(std::move(job));
}

void RankProfiler::resume(bool on) {
  parts_.spans->resume(on);
  if (parts_.transfer_spans != nullptr) parts_.transfer_spans->resume(on);
}

void RankProfiler::before_step(const parallel::StepDecision& decision, int64_t number, const StepTimes& times) {
  records_step_ = false;
  if (!window_) return;
  const ProfileWindow::Moves moves = window_->before_step(number, decision.kind);
  if (moves.closes) write(*moves.closes, {});
  if (moves.opens) open(*moves.opens, times);
  if (window_->is_open()) resume(moves.records);
  if (!moves.records) return;
  records_step_ = true;
  times_ = times;
  number_ = uint64_t(number);
  profile::Recorder& spans = *parts_.spans;
  spans.enter(-1, 0);
  const auto span = [&](const char* name, TimePoint begin, TimePoint end) {
    spans.push(make_span(spans, profile::Track::kScheduler, name, nanoseconds(begin), nanoseconds(end)));
  };
  span("form batch", times.formed, times.voted);
  span("vote wait", times.voted, times.decided);
}

void RankProfiler::after_step(parallel::StepKind own, const StepFigures& figures) {
  if (!std::exchange(records_step_, false)) return;
  profile::Recorder& spans = *parts_.spans;
  spans.enter(-1, 0);
  // A rank without tokens waits for others between its steps; that is not part of them.
  const TimePoint begin = own == parallel::StepKind::kNone ? times_.decided : times_.formed;
  profile::Span step = make_span(spans, profile::Track::kStep, "step", nanoseconds(begin), spans.now_ns());
  step.id = number_;
  step.text = kind_name(own);
  step.labels = "num_tokens,num_sequences";
  step.dims = {figures.num_tokens, figures.num_sequences};
  step.num_dims = 2;
  spans.push(step);
  spans.count("requests", "running,queued", {figures.load.running, figures.load.queued});
  spans.count("KV blocks", "free,leased,cached",
              {int32_t(figures.free_blocks), int32_t(figures.leased_blocks), int32_t(figures.cached_blocks)});
  const profile::Recorder::ExpertLoad load = spans.take_expert_load();
  if (load.num_layers > 0) {
    spans.count("expert pairs", "pairs", {int32_t(load.pairs)});
    profile::Span balance = make_span(spans, profile::Track::kStep, "expert balance", spans.now_ns(), 0);
    balance.kind = profile::SpanKind::kCounter;
    balance.labels = "mean_over_max";
    balance.values[0] = load.balance();
    balance.num_values = 1;
    spans.push(balance);
  }
  const std::optional<ProfileStage> closed = window_->after_step();
  if (closed) write(*closed, {});
  if (window_->is_done()) window_.reset();
}

void RankProfiler::close(const std::string& reason) {
  for (Order& order : orders_) {
    if (order.command.done) order.command.done(cancelled(reason));
  }
  orders_.clear();
  records_step_ = false;
  if (!window_) return;
  const std::optional<ProfileStage> open = window_->stop();
  window_.reset();
  if (open) write(*open, {});
}

}  // namespace tandem::engine
