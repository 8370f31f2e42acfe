// Votes between ranks of one process. Each rank owns two slots, used alternately, and the number of its newest vote; a
// vote is a plain write followed by a release store. Two slots are enough: a rank writes step s+2 only after it has
// seen every vote for s+1, and a rank votes for s+1 only after it has read every vote for s.
#include <fmt/format.h>

#include <array>
#include <atomic>

#include "base/check.h"
#include "base/queue.h"
#include "parallel/communicator.h"

namespace tandem::parallel {
namespace {

constexpr int kSpins = 200;  // looks before parking: a few microseconds
constexpr uint64_t kNoStep = ~uint64_t(0);

enum class Parked : uint8_t { kNo, kForAll, kForAny };

struct alignas(64) Member {
  std::array<StepVote, 2> slots;         // written by the owner before the store below
  std::atomic<uint64_t> num_posted = 0;  // votes so far; the newest is slots[(num_posted - 1) % 2]
  std::atomic<Parked> parked = Parked::kNo;
  BoundedQueue<bool> bell{1};  // carries no values, only wake()
};

struct Group {
  Group(int32_t num_ranks, Duration deadline) : deadline(deadline), members(size_t(num_ranks)) {}

  bool all_posted(uint64_t count) const {
    for (const Member& member : members) {
      if (member.num_posted.load() < count) return false;
    }
    return true;
  }
  bool any_posted(uint64_t count) const {
    for (const Member& member : members) {
      if (member.num_posted.load() >= count) return true;
    }
    return false;
  }

  const Duration deadline;
  std::vector<Member> members;  // never resized
};

class LocalCommunicator final : public Communicator {
 public:
  // Shared: the group lives as long as its last rank.
  LocalCommunicator(std::shared_ptr<Group> group, Rank rank)
      : group_(std::move(group)), self_(group_->members[size_t(rank.value)]), rank_(rank) {
    votes_.resize(group_->members.size());
  }

  Rank rank() const override { return rank_; }
  int32_t num_ranks() const override { return int32_t(group_->members.size()); }

  void post_vote(const StepVote& vote, TimePoint now) override {
    if (failure_) return;
    CHECK(num_decided_ == num_posted_);
    CHECK(step_ == kNoStep || vote.step == step_ + 1);
    step_ = vote.step;
    posted_at_ = now;
    self_.slots[num_posted_ % 2] = vote;
    ++num_posted_;
    self_.num_posted.store(
        num_posted_);  // sequentially consistent, as is `parked`: one of the two sides sees the other
    ring_parked();
  }

  Result<std::optional<StepDecision>> poll_decision(TimePoint now) override {
    if (failure_) return *failure_;
    if (num_decided_ == num_posted_) return std::optional<StepDecision>();
    if (!group_->all_posted(num_posted_)) {
      if (now - posted_at_ < group_->deadline) return std::optional<StepDecision>();
      failure_ = missing_ranks();
      return *failure_;
    }
    for (size_t i = 0; i < votes_.size(); ++i) votes_[i] = group_->members[i].slots[(num_posted_ - 1) % 2];
    ++num_decided_;
    return std::optional<StepDecision>(decide(votes_));
  }

  void wait(Duration timeout) override {
    for (int i = 0; i < kSpins; ++i) {
      if (arrived()) return;
    }
    self_.parked.store(num_decided_ == num_posted_ ? Parked::kForAny : Parked::kForAll);
    if (!arrived()) self_.bell.pop(timeout);
    self_.parked.store(Parked::kNo);
  }

  void wake() override { self_.bell.wake(); }

  MissingRanks missing() const override {
    MissingRanks missing;
    for (size_t i = 0; i < group_->members.size(); ++i) {
      if (group_->members[i].num_posted.load() < num_posted_) missing.add(int32_t(i));
    }
    return missing;
  }

 private:
  // Is what wait() waits for there?
  bool arrived() const {
    return num_decided_ == num_posted_ ? group_->any_posted(num_posted_ + 1) : group_->all_posted(num_posted_);
  }

  void ring_parked() {
    const bool complete = group_->all_posted(num_posted_);
    for (Member& member : group_->members) {
      const Parked parked = member.parked.load();
      if (parked == Parked::kForAny || (parked == Parked::kForAll && complete)) member.bell.wake();
    }
  }

  Error missing_ranks() const {
    std::string missing;
    for (size_t i = 0; i < group_->members.size(); ++i) {
      if (group_->members[i].num_posted.load() >= num_posted_) continue;
      missing += fmt::format("{}{}", missing.empty() ? "" : ", ", i);
    }
    return peer_lost(fmt::format("no vote for step {} from rank(s) {} of {} within {:.3f} s; asked by rank {}", step_,
                                 missing, group_->members.size(), seconds(group_->deadline), rank_.value));
  }

  const std::shared_ptr<Group> group_;
  Member& self_;
  const Rank rank_;
  std::vector<StepVote> votes_;  // scratch of poll_decision
  uint64_t num_posted_ = 0, num_decided_ = 0;
  uint64_t step_ = kNoStep;
  TimePoint posted_at_{};
  std::optional<Error> failure_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(int32_t num_ranks, Duration deadline) {
  CHECK(num_ranks > 0);
  const auto group = std::make_shared<Group>(num_ranks, deadline);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int32_t i = 0; i < num_ranks; ++i) ranks.push_back(std::make_unique<LocalCommunicator>(group, Rank{i}));
  return ranks;
}

}  // namespace tandem::parallel
