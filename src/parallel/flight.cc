#include "parallel/flight.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace tandem::parallel {
namespace {

using profile::FlightEntry;
using profile::FlightKind;
using profile::FlightRecorder;

static_assert(int(StepKind::kNone) == int(profile::FlightStep::kNone));
static_assert(int(StepKind::kIdle) == int(profile::FlightStep::kIdle));
static_assert(int(StepKind::kDecode) == int(profile::FlightStep::kDecode));
static_assert(int(StepKind::kExtend) == int(profile::FlightStep::kExtend));

// Shorter waits are the rule and say nothing.
constexpr Duration kNoteAfter = std::chrono::milliseconds(50);

// One wait at a time: what it is for, since when, and whom it has named so far.
class WaitNotes {
 public:
  explicit WaitNotes(FlightRecorder& recorder) : recorder_(recorder) {}

  void begin(const FlightEntry& posted, TimePoint now) {
    posted_ = posted;
    since_ = now;
    named_ = {};
  }
  template <class Ask>
  void look(const Ask& ask) {
    const TimePoint now = recorder_.now();
    if (now - since_ < kNoteAfter) return;
    const MissingRanks missing = ask();
    if (missing == named_) return;
    named_ = missing;
    FlightEntry entry = posted_;
    entry.kind = FlightKind::kWait;
    entry.detail = uint8_t(posted_.kind);
    entry.words[1] = uint32_t(missing.count);
    std::copy(missing.first.begin(), missing.first.end(), entry.words.begin() + 2);
    recorder_.add(entry, now);
  }

 private:
  FlightRecorder& recorder_;
  FlightEntry posted_;
  TimePoint since_{};
  MissingRanks named_;
};

FlightEntry entry_of(FlightKind kind, ExchangeTag tag) {
  FlightEntry entry;
  entry.kind = kind;
  entry.step = tag.step;
  entry.layer = int16_t(tag.layer);
  return entry;
}

FlightEntry entry_of(const StepVote& vote) {
  FlightEntry entry;
  entry.kind = FlightKind::kVote;
  entry.step = vote.step;
  entry.detail = uint8_t(vote.kind);
  const uint32_t flags = (vote.wants_shutdown ? profile::kFlightShutdown : 0) |
                         (vote.sleep_ready ? profile::kFlightSleepReady : 0) |
                         (vote.can_split ? profile::kFlightSplits : 0) | (vote.holds ? profile::kFlightHolds : 0) |
                         (vote.follows ? profile::kFlightFollows : 0);
  entry.words = {vote.num_tokens, vote.num_sequences, flags, vote.sleep_ms, vote.change_version, vote.profile_version};
  return entry;
}

// Of all fields: equal on all ranks, or their decisions were not.
uint32_t hash_of(const StepDecision& decision) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const uint64_t field :
       {decision.step, uint64_t(decision.kind), uint64_t(decision.shutdown), uint64_t(decision.sleep_ready),
        uint64_t(decision.two_batches), uint64_t(decision.max_tokens), uint64_t(decision.total_tokens),
        uint64_t(decision.sleep_ms), uint64_t(decision.change_version), uint64_t(decision.num_ranks),
        uint64_t(decision.holds), uint64_t(decision.profile_version), uint64_t(decision.profile_refused)}) {
    hash = (hash ^ field) * 0x100000001b3ull;
    hash ^= hash >> 32;
  }
  return uint32_t(hash);
}

FlightEntry entry_of(const StepDecision& decision) {
  FlightEntry entry;
  entry.kind = FlightKind::kDecision;
  entry.step = decision.step;
  entry.detail = uint8_t(decision.kind);
  const uint32_t flags =
      (decision.shutdown ? profile::kFlightShutdown : 0) | (decision.sleep_ready ? profile::kFlightSleepReady : 0) |
      (decision.two_batches ? profile::kFlightSplits : 0) | (decision.holds ? profile::kFlightHolds : 0);
  entry.words = {decision.total_tokens,    decision.max_tokens, flags, decision.sleep_ms, decision.change_version,
                 decision.profile_version, hash_of(decision)};
  return entry;
}

class NotedCommunicator final : public Communicator {
 public:
  NotedCommunicator(std::unique_ptr<Communicator> inner, FlightRecorder& recorder)
      : inner_(std::move(inner)), recorder_(recorder), waits_(recorder) {}

  Rank rank() const override { return inner_->rank(); }
  int32_t num_ranks() const override { return inner_->num_ranks(); }
  MissingRanks missing() const override { return inner_->missing(); }
  void wake() override { inner_->wake(); }

  void post_vote(const StepVote& vote, TimePoint now) override {
    inner_->post_vote(vote, now);
    const FlightEntry entry = entry_of(vote);
    write(entry, last_vote_, now);
    is_decided_ = false;
    waits_.begin(entry_of(FlightKind::kVote, {vote.step, -1}), now);
  }

  Result<std::optional<StepDecision>> poll_decision(TimePoint now) override {
    Result<std::optional<StepDecision>> polled = inner_->poll_decision(now);
    if (!polled || !polled->has_value()) return polled;
    is_decided_ = true;
    const StepDecision& decision = **polled;
    stands_still_ = decision.kind == StepKind::kNone || (decision.sleep_ms > 0 && decision.sleep_ready == 0);
    write(entry_of(decision), last_decision_, now);
    return polled;
  }

  void wait(Duration timeout) override {
    if (!is_decided_) waits_.look([this] { return inner_->missing(); });
    inner_->wait(timeout);
  }

 private:
  // Rounds of a group that stands still are alike but for the step, and for a hash over it.
  static bool alike(FlightEntry a, FlightEntry b) {
    a.step = b.step = 0;
    if (a.kind == FlightKind::kDecision) a.words[6] = b.words[6] = 0;
    return a.detail == b.detail && a.words == b.words;
  }
  void write(const FlightEntry& entry, FlightEntry& last, TimePoint now) {
    if (stands_still_ && last.kind != FlightKind::kNone && alike(entry, last)) {
      recorder_.add_quiet(entry, now);
    } else {
      recorder_.add(entry, now);
    }
    last = entry;
  }

  const std::unique_ptr<Communicator> inner_;
  FlightRecorder& recorder_;
  WaitNotes waits_;
  FlightEntry last_vote_, last_decision_;
  bool is_decided_ = true;
  bool stands_still_ = false;  // no step runs by the last decision
};

class NotedExchange final : public ExpertExchange {
 public:
  NotedExchange(std::unique_ptr<ExpertExchange> inner, FlightRecorder& recorder)
      : inner_(std::move(inner)), recorder_(recorder) {
    for (int32_t i = 0; i < inner_->shape().num_channels; ++i) channels_.push_back({{}, WaitNotes(recorder)});
  }

  Rank rank() const override { return inner_->rank(); }
  const ExchangeShape& shape() const override { return inner_->shape(); }
  MissingRanks missing(int32_t channel) const override { return inner_->missing(channel); }
  int64_t row_bytes_sent() const override { return inner_->row_bytes_sent(); }
  bool drive(TimePoint now) override { return inner_->drive(now); }

  void post_dispatch(int32_t channel, ExchangeTag tag, ExchangeMode mode, device::TensorView x,
                     device::TensorView slots) override {
    inner_->post_dispatch(channel, tag, mode, x, slots);
    channels_[size_t(channel)].tag = tag;
    note(channel, FlightKind::kDispatch);
  }
  Result<std::optional<ReceivedRows>> poll_received(int32_t channel, TimePoint now) override {
    return inner_->poll_received(channel, now);
  }
  void post_results(int32_t channel) override {
    inner_->post_results(channel);
    note(channel, FlightKind::kResults);
  }
  Result<bool> poll_results(int32_t channel, TimePoint now, std::span<const float*> rows) override {
    return inner_->poll_results(channel, now, rows);
  }
  void wait(int32_t channel, Duration timeout) override {
    channels_[size_t(channel)].waits.look([&] { return inner_->missing(channel); });
    inner_->wait(channel, timeout);
  }

 private:
  struct Channel {
    ExchangeTag tag;
    WaitNotes waits;
  };
  void note(int32_t channel, FlightKind kind) {
    FlightEntry entry = entry_of(kind, channels_[size_t(channel)].tag);
    entry.words[0] = uint32_t(channel);
    const TimePoint now = recorder_.now();
    recorder_.add(entry, now);
    channels_[size_t(channel)].waits.begin(entry, now);
  }

  const std::unique_ptr<ExpertExchange> inner_;
  FlightRecorder& recorder_;
  std::vector<Channel> channels_;
};

class NotedAttentionGroup final : public AttentionGroup {
 public:
  NotedAttentionGroup(std::unique_ptr<AttentionGroup> inner, FlightRecorder& recorder)
      : inner_(std::move(inner)), recorder_(recorder), waits_(recorder) {}

  int32_t size() const override { return inner_->size(); }
  int32_t index() const override { return inner_->index(); }
  MissingRanks missing() const override { return inner_->missing(); }

  void post(ExchangeTag tag, const void* data) override {
    inner_->post(tag, data);
    FlightEntry entry = entry_of(FlightKind::kAttention, tag);
    round_ += 1;
    entry.words = {uint32_t(round_), uint32_t(round_ >> 32)};
    const TimePoint now = recorder_.now();
    recorder_.add(entry, now);
    waits_.begin(entry, now);
  }
  Result<bool> poll(TimePoint now) override { return inner_->poll(now); }
  const void* of(int32_t member) const override { return inner_->of(member); }
  void wait(Duration timeout) override {
    waits_.look([this] { return inner_->missing(); });
    inner_->wait(timeout);
  }
  void give_up() override { inner_->give_up(); }

 private:
  const std::unique_ptr<AttentionGroup> inner_;
  FlightRecorder& recorder_;
  WaitNotes waits_;
  uint64_t round_ = 0;  // counts alike on all members, who go through the same rounds
};

}  // namespace

std::unique_ptr<Communicator> note_flight(std::unique_ptr<Communicator> inner, FlightRecorder& recorder) {
  return std::make_unique<NotedCommunicator>(std::move(inner), recorder);
}
std::unique_ptr<ExpertExchange> note_flight(std::unique_ptr<ExpertExchange> inner, FlightRecorder& recorder) {
  return std::make_unique<NotedExchange>(std::move(inner), recorder);
}
std::unique_ptr<AttentionGroup> note_flight(std::unique_ptr<AttentionGroup> inner, FlightRecorder& recorder) {
  return std::make_unique<NotedAttentionGroup>(std::move(inner), recorder);
}

}  // namespace tandem::parallel
