// Seats of one process. A member's pointer lies in one of two slots, used alternately: whoever posts round r+2 has seen
// every member post round r+1, which a member does after it has read what was shown in round r.
#include "parallel/attention_group.h"

#include <fmt/format.h>

#include <array>
#include <atomic>

#include "base/check.h"
#include "base/queue.h"

namespace tandem::parallel {
namespace {

struct alignas(64) Member {
  std::array<const void*, 2> shown = {};  // written by the owner before `posted` counts
  std::atomic<uint64_t> posted = 0;       // rounds so far
  std::atomic<bool> has_given_up = false;
  std::atomic<bool> parked = false;
  BoundedQueue<bool> bell{1};  // carries no values, only wake()
};

struct Group {
  Group(Rank first, int32_t size, Duration deadline, int32_t spins)
      : first_rank(first), deadline(deadline), spins(spins), members(size_t(size)) {}

  const Rank first_rank;
  const Duration deadline;
  const int32_t spins;
  std::vector<Member> members;  // never resized
};

class LocalAttentionGroup final : public AttentionGroup {
 public:
  LocalAttentionGroup(std::shared_ptr<Group> group, int32_t index)
      : group_(std::move(group)), self_(group_->members[size_t(index)]), index_(index) {}

  int32_t size() const override { return int32_t(group_->members.size()); }
  int32_t index() const override { return index_; }

  void post(ExchangeTag tag, const void* data) override {
    CHECK(is_complete_);
    is_complete_ = false;
    tag_ = tag;
    since_ = TimePoint{};
    round_ += 1;
    self_.shown[round_ % 2] = data;
    self_.posted.store(round_);  // sequentially consistent, as is `parked`: one of two sides sees the other
    ring();
  }

  Result<bool> poll(TimePoint now) override {
    CHECK(!is_complete_);
    is_complete_ = all_posted();
    if (is_complete_) return true;
    if (since_ == TimePoint{}) since_ = now;
    const std::string gone = names([&](const Member& member) { return lacks(member) && member.has_given_up.load(); });
    if (!gone.empty()) {
      return peer_lost(fmt::format("rank(s) {} gave up before the attention of layer {} of step {}; asked by rank {}",
                                   gone, tag_.layer, tag_.step, group_->first_rank.value + index_));
    }
    if (now - since_ < group_->deadline) return false;
    return peer_lost(
        fmt::format("rank(s) {} did not come to the attention of layer {} of step {} within {:.3f} s; "
                    "asked by rank {}",
                    names([&](const Member& member) { return lacks(member); }), tag_.layer, tag_.step,
                    seconds(group_->deadline), group_->first_rank.value + index_));
  }

  const void* of(int32_t member) const override {
    CHECK(is_complete_);
    return group_->members[size_t(member)].shown[round_ % 2];
  }

  void wait(Duration timeout) override {
    for (int i = 0; i < group_->spins; ++i) {
      if (arrived()) return;
    }
    self_.parked.store(true);
    if (!arrived()) self_.bell.pop(timeout);
    self_.parked.store(false);
  }

  MissingRanks missing() const override {
    MissingRanks missing;
    for (size_t i = 0; i < group_->members.size(); ++i) {
      if (lacks(group_->members[i])) missing.add(group_->first_rank.value + int32_t(i));
    }
    return missing;
  }

  void give_up() override {
    self_.has_given_up.store(true);
    ring();
  }

 private:
  bool lacks(const Member& member) const { return member.posted.load() < round_; }
  bool all_posted() const {
    for (const Member& member : group_->members) {
      if (lacks(member)) return false;
    }
    return true;
  }
  // All are there, or one will never be.
  bool arrived() const {
    for (const Member& member : group_->members) {
      if (lacks(member)) return member.has_given_up.load();
    }
    return true;
  }
  void ring() {
    for (Member& member : group_->members) {
      if (member.parked.load()) member.bell.wake();
    }
  }
  template <class F>
  std::string names(const F& matches) const {
    std::string list;
    for (size_t i = 0; i < group_->members.size(); ++i) {
      if (!matches(group_->members[i])) continue;
      list += fmt::format("{}{}", list.empty() ? "" : ", ", group_->first_rank.value + int32_t(i));
    }
    return list;
  }

  const std::shared_ptr<Group> group_;
  Member& self_;
  const int32_t index_;
  uint64_t round_ = 0;
  bool is_complete_ = true;
  ExchangeTag tag_;
  TimePoint since_{};  // first look that found members missing
};

}  // namespace

std::vector<std::unique_ptr<AttentionGroup>> make_attention_groups(Rank first_rank, int32_t num_ranks, int32_t size,
                                                                   Duration deadline, int32_t spins) {
  CHECK(size > 0);
  CHECK(num_ranks % size == 0);
  std::vector<std::unique_ptr<AttentionGroup>> seats;
  for (int32_t first = 0; first < num_ranks; first += size) {
    const auto group = std::make_shared<Group>(Rank{first_rank.value + first}, size, deadline, spins);
    for (int32_t i = 0; i < size; ++i) seats.push_back(std::make_unique<LocalAttentionGroup>(group, i));
  }
  return seats;
}

}  // namespace tandem::parallel
