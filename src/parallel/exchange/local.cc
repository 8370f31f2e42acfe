// Exchange between ranks of one process: seats.h says how ranks see each other's rows and results.
#include <fmt/format.h>

#include "base/check.h"
#include "base/queue.h"
#include "parallel/exchange/seats.h"
#include "parallel/expert_exchange.h"

namespace tandem::parallel {
namespace {

struct LocalSeat : Seat {
  using Seat::Seat;
  BoundedQueue<bool> bell{1};  // carries no values, only wake()
};

struct Group {
  ExchangeShape shape;
  Duration deadline;
  int32_t spins = 0;
  std::vector<std::unique_ptr<LocalSeat>> seats;  // never resized
};

class LocalExchange final : public ExpertExchange {
 public:
  LocalExchange(std::shared_ptr<Group> group, Rank rank)
      : group_(std::move(group)),
        self_(*group_->seats[size_t(rank.value)]),
        rank_(rank),
        channels_(size_t(group_->shape.num_channels)) {
    for (Channel& channel : channels_) channel.added.resize(size_t(group_->shape.num_ranks));
  }

  Rank rank() const override { return rank_; }
  const ExchangeShape& shape() const override { return group_->shape; }

  void post_dispatch(int32_t index, ExchangeTag tag, ExchangeMode mode, device::TensorView x,
                     device::TensorView slots) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == Stage::kFree);
    CHECK(x.dim(1) == group_->shape.hidden);
    CHECK(x.dtype() == group_->shape.dtype);
    CHECK(slots.num_elements() == x.dim(0) * group_->shape.top_k);
    channel.stage = Stage::kDispatched;
    channel.tag = tag;
    channel.mode = mode;
    channel.round += 1;
    channel.num_added = 0;
    channel.since = TimePoint{};
    channel.added.assign(channel.added.size(), false);
    Published& mine = self_.channels[size_t(index)];
    mine.source = {self_.outgoing[size_t(index)].take(x), slots.as<int32_t>(), x.dim(0)};
    mine.dispatched.store(channel.round);  // sequentially consistent, as is `parked`: one of two sides sees the other
    self_.collectors[size_t(index)].start(mode);
    ring();
  }

  Result<std::optional<ReceivedRows>> poll_received(int32_t index, TimePoint now) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == Stage::kDispatched);
    Collector& collector = self_.collectors[size_t(index)];
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      if (channel.added[size_t(rank)]) continue;
      const Published& theirs = group_->seats[size_t(rank)]->channels[size_t(index)];
      if (theirs.dispatched.load() < channel.round) {
        // Where a rank's rows go in normal mode depends on the ranks before it.
        if (channel.mode == ExchangeMode::kNormal) break;
        continue;
      }
      collector.add(rank, theirs.source);
      channel.added[size_t(rank)] = true;
      channel.num_added += 1;
    }
    if (channel.num_added < num_ranks()) {
      RETURN_IF_ERROR(check_deadline(channel, index, now, &Published::dispatched, "dispatch"));
      return std::optional<ReceivedRows>();
    }
    channel.stage = Stage::kReceived;
    return std::optional<ReceivedRows>(collector.finish());
  }

  void post_results(int32_t index) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == Stage::kReceived);
    channel.stage = Stage::kAnswered;
    channel.since = TimePoint{};
    self_.channels[size_t(index)].answered.store(channel.round);
    ring();
  }

  Result<bool> poll_results(int32_t index, TimePoint now, std::span<const float*> rows) override {
    Channel& channel = channels_[size_t(index)];
    CHECK(channel.stage == Stage::kAnswered);
    for (const auto& seat : group_->seats) {
      if (seat->channels[size_t(index)].answered.load() >= channel.round) continue;
      RETURN_IF_ERROR(check_deadline(channel, index, now, &Published::answered, "give results for"));
      return false;
    }
    const ExchangeSource& source = self_.channels[size_t(index)].source;
    CHECK(int64_t(rows.size()) == source.num_tokens * group_->shape.top_k);
    for (size_t pair = 0; pair < rows.size(); ++pair) {
      const int32_t owner = source.slots[pair] / group_->shape.slots_per_rank;
      const Collector& theirs = group_->seats[size_t(owner)]->collectors[size_t(index)];
      const int32_t row = theirs.row_of(rank_.value)[pair];
      DCHECK(row >= 0);
      rows[pair] = theirs.results() + int64_t(row) * group_->shape.hidden;
    }
    channel.stage = Stage::kFree;
    return true;
  }

  void wait(int32_t index, Duration timeout) override {
    for (int i = 0; i < group_->spins; ++i) {
      if (arrived(index)) return;
    }
    self_.parked.store(true);
    if (!arrived(index)) self_.bell.pop(timeout);
    self_.parked.store(false);
  }

  MissingRanks missing(int32_t index) const override {
    const Channel& channel = channels_[size_t(index)];
    const auto counter = channel.stage == Stage::kDispatched ? &Published::dispatched : &Published::answered;
    MissingRanks missing;
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      const Published& theirs = group_->seats[size_t(rank)]->channels[size_t(index)];
      if ((theirs.*counter).load() < channel.round) missing.add(rank);
    }
    return missing;
  }

 private:
  using Stage = ExchangeStage;
  struct Channel {
    Stage stage = Stage::kFree;
    ExchangeTag tag;
    ExchangeMode mode = ExchangeMode::kNormal;
    uint64_t round = 0;  // dispatches so far
    int32_t num_added = 0;
    TimePoint since{};        // first look that found ranks missing
    std::vector<bool> added;  // ranks whose rows were taken
  };

  int32_t num_ranks() const { return group_->shape.num_ranks; }

  // Something that the next poll can use.
  bool arrived(int32_t index) const {
    const Channel& channel = channels_[size_t(index)];
    if (channel.stage == Stage::kDispatched) {
      for (int32_t rank = 0; rank < num_ranks(); ++rank) {
        if (channel.added[size_t(rank)]) continue;
        const bool there = group_->seats[size_t(rank)]->channels[size_t(index)].dispatched.load() >= channel.round;
        if (there || channel.mode == ExchangeMode::kNormal) return there;
      }
      return true;
    }
    for (const auto& seat : group_->seats) {
      if (seat->channels[size_t(index)].answered.load() < channel.round) return false;
    }
    return true;
  }

  void ring() {
    for (const auto& seat : group_->seats) {
      if (seat->parked.load()) seat->bell.wake();
    }
  }

  Status check_deadline(Channel& channel, int32_t index, TimePoint now, std::atomic<uint64_t> Published::*counter,
                        const char* verb) {
    if (channel.since == TimePoint{}) channel.since = now;
    if (now - channel.since < group_->deadline) return Ok{};
    std::string missing;
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      const Published& theirs = group_->seats[size_t(rank)]->channels[size_t(index)];
      if ((theirs.*counter).load() < channel.round) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", rank);
    }
    return peer_lost(fmt::format("rank(s) {} of {} did not {} layer {} of step {} within {:.3f} s; asked by rank {}",
                                 missing, num_ranks(), verb, channel.tag.layer, channel.tag.step,
                                 seconds(group_->deadline), rank_.value));
  }

  const std::shared_ptr<Group> group_;
  LocalSeat& self_;
  const Rank rank_;
  std::vector<Channel> channels_;
};

}  // namespace

int64_t exchange_bytes(const ExchangeShape& shape) {
  return (Collector::bytes(shape) + Outgoing::bytes(shape)) * shape.num_channels;
}

std::vector<std::unique_ptr<ExpertExchange>> make_local_exchanges(const ExchangeShape& shape, Duration deadline,
                                                                  int32_t spins) {
  CHECK(shape.num_ranks > 0 && shape.slots_per_rank > 0 && shape.top_k > 0 && shape.hidden > 0);
  CHECK(shape.max_tokens > 0 && shape.max_low_latency_tokens <= shape.max_tokens && shape.num_channels > 0);
  const auto group = std::make_shared<Group>();
  group->shape = shape;
  group->deadline = deadline;
  group->spins = spins;
  std::vector<std::unique_ptr<ExpertExchange>> ranks;
  for (int32_t i = 0; i < shape.num_ranks; ++i) group->seats.push_back(std::make_unique<LocalSeat>(shape, Rank{i}));
  for (int32_t i = 0; i < shape.num_ranks; ++i) ranks.push_back(std::make_unique<LocalExchange>(group, Rank{i}));
  return ranks;
}

}  // namespace tandem::parallel
