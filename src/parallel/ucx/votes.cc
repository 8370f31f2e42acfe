#include "parallel/ucx/votes.h"

#include <fmt/format.h>

#include <array>
#include <atomic>

#include "base/check.h"

namespace tandem::parallel {
namespace {

constexpr int kSpins = 20;  // looks before parking, each drives the worker: some microseconds
constexpr uint64_t kNoStep = ~uint64_t(0);

enum class Parked : uint8_t { kNo, kForAll, kForAny };

// Steps alternate between two slots everywhere. Two are enough: whoever writes step s+2 has seen all votes for s+1, and
// whoever voted for s+1 has read all votes for s.
struct alignas(64) Member {
  std::array<StepVote, 2> slots;        // written by the owner before the store below
  std::atomic<uint64_t> num_steps = 0;  // newest step + 1
  std::atomic<Parked> parked = Parked::kNo;
};

// What another node said. Any rank of this node may write it; the protocol lets only one at a time.
struct alignas(64) RemoteNode {
  std::array<std::vector<StepVote>, 2> slots;  // by rank of that node; written before the store below
  std::array<std::atomic<uint64_t>, 2> num_steps = {};
};

struct Votes {
  Votes(GroupState& state, Duration deadline)
      : state(state), deadline(deadline), members(size_t(state.ranks_per_node)), remotes(size_t(state.num_nodes)) {
    for (RemoteNode& remote : remotes) {
      for (std::vector<StepVote>& slot : remote.slots) slot.resize(size_t(state.ranks_per_node));
    }
  }

  bool has_voted(int32_t node, uint64_t step) const {
    return remotes[size_t(node)].num_steps[step % 2].load() == step + 1;
  }
  bool members_voted(uint64_t step) const {
    for (const Member& member : members) {
      if (member.num_steps.load() < step + 1) return false;
    }
    return true;
  }
  // Every vote here, if there was one, is for this step or a later one.
  bool members_reached(uint64_t step) const {
    for (const Member& member : members) {
      const uint64_t num_steps = member.num_steps.load();
      if (num_steps > 0 && num_steps < step + 1) return false;
    }
    return true;
  }
  bool has_begun() const {
    for (const Member& member : members) {
      if (member.num_steps.load() > 0) return true;
    }
    for (const RemoteNode& remote : remotes) {
      if (remote.num_steps[0].load() > 0 || remote.num_steps[1].load() > 0) return true;
    }
    return false;
  }
  bool all_voted(uint64_t step) const {
    for (int32_t node = 0; node < state.num_nodes; ++node) {
      if (node != state.node_rank && !has_voted(node, step)) return false;
    }
    return members_voted(step);
  }
  bool any_voted(uint64_t step) const {
    for (int32_t node = 0; node < state.num_nodes; ++node) {
      if (node != state.node_rank && has_voted(node, step)) return true;
    }
    for (const Member& member : members) {
      if (member.num_steps.load() >= step + 1) return true;
    }
    return false;
  }
  void ring_parked(uint64_t step) {
    const bool complete = all_voted(step);
    for (size_t i = 0; i < members.size(); ++i) {
      const Parked parked = members[i].parked.load();
      if (parked == Parked::kForAny || (parked == Parked::kForAll && complete)) state.ports[i]->wake();
    }
  }

  GroupState& state;
  const Duration deadline;
  std::vector<Member> members;      // of this node, never resized
  std::vector<RemoteNode> remotes;  // by node; ours is unused
  std::array<std::atomic<int32_t>, 2> num_voted = {};
};

class NodeCommunicator final : public Communicator {
 public:
  NodeCommunicator(std::shared_ptr<Votes> votes, int32_t index)
      : votes_(std::move(votes)),
        self_(votes_->members[size_t(index)]),
        port_(*votes_->state.ports[size_t(index)]),
        index_(index) {
    all_.resize(size_t(num_ranks()));
    port_.on_votes = [this](int32_t from, std::string_view bytes) { return take(from, bytes); };
  }
  ~NodeCommunicator() override { port_.on_votes = {}; }

  Rank rank() const override { return port_.rank(); }
  int32_t num_ranks() const override { return votes_->state.num_ranks(); }

  void post_vote(const StepVote& vote, TimePoint now) override {
    if (failure_) return;
    CHECK(is_decided_);
    CHECK(step_ == kNoStep || vote.step == step_ + 1);
    step_ = vote.step;
    is_decided_ = false;
    posted_at_ = now;
    const size_t slot = step_ % 2;
    self_.slots[slot] = vote;
    self_.num_steps.store(step_ + 1);  // sequentially consistent, as is `parked`: one of two sides sees the other
    if (votes_->num_voted[slot].fetch_add(1) + 1 == votes_->state.ranks_per_node) {
      votes_->num_voted[slot].store(0);
      send_votes(slot);
    }
    votes_->ring_parked(step_);
  }

  Result<std::optional<StepDecision>> poll_decision(TimePoint now) override {
    if (failure_) return *failure_;
    port_.progress(now);
    if (const Error* lost = votes_->state.failure()) {
      failure_ = Error{lost->code, fmt::format("{}; at step {}", lost->message, step_ == kNoStep ? 0 : step_)};
      return *failure_;
    }
    if (is_decided_) return std::optional<StepDecision>();
    if (!votes_->all_voted(step_)) {
      if (now - posted_at_ < votes_->deadline) return std::optional<StepDecision>();
      failure_ = missing_error();
      votes_->state.fail(*failure_);
      return *failure_;
    }
    gather();
    is_decided_ = true;
    return std::optional<StepDecision>(decide(all_));
  }

  void wait(Duration timeout) override {
    for (int i = 0; i < kSpins; ++i) {
      if (arrived()) return;
    }
    self_.parked.store(is_decided_ ? Parked::kForAny : Parked::kForAll);
    // A ring that came late, after this rank had seen what it was for, must not end the wait: the rank would vote
    // again, ring the others as late, and an idle group would never rest.
    while (!arrived() && !woken_.exchange(false)) {
      if (!port_.wait(timeout)) break;
    }
    self_.parked.store(Parked::kNo);
  }

  MissingRanks missing() const override {
    const GroupState& state = votes_->state;
    MissingRanks missing;
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      const bool voted = state.is_local(rank)
                             ? votes_->members[size_t(rank - state.first_rank())].num_steps.load() >= step_ + 1
                             : votes_->has_voted(state.node_of(rank), step_);
      if (!voted) missing.add(rank);
    }
    return missing;
  }

  void wake() override {
    woken_ = true;
    port_.wake();
  }

 private:
  // Is what wait() waits for there?
  bool arrived() {
    port_.progress(now_unknown());
    if (votes_->state.failure() != nullptr) return true;
    if (step_ == kNoStep) return votes_->has_begun();
    return is_decided_ ? votes_->any_voted(step_ + 1) : votes_->all_voted(step_);
  }
  // Time matters to a worker only for connections that linger, and these do not.
  static TimePoint now_unknown() { return TimePoint{}; }

  void send_votes(size_t slot) {
    std::vector<StepVote> ours;
    for (const Member& member : votes_->members) ours.push_back(member.slots[slot]);
    const std::string bytes = encode_votes(ours);
    const GroupState& state = votes_->state;
    for (int32_t node = 0; node < state.num_nodes; ++node) {
      if (node != state.node_rank) port_.send(node * state.ranks_per_node + index_, bytes);
    }
  }

  Status take(int32_t from, std::string_view bytes) {
    const GroupState& state = votes_->state;
    ASSIGN_OR_RETURN(const std::vector<StepVote> theirs, decode_votes(bytes, size_t(state.ranks_per_node)));
    const uint64_t step = theirs[0].step;
    const int32_t node = state.node_of(from);
    RemoteNode& remote = votes_->remotes[size_t(node)];
    // A node votes for a step once, and only after it has seen all our votes for the step before.
    if (remote.num_steps[step % 2].load() > step || (step > 0 && !votes_->members_reached(step - 1))) {
      return corrupt(fmt::format("votes for step {} out of order", step));
    }
    remote.slots[step % 2] = theirs;
    remote.num_steps[step % 2].store(step + 1);
    votes_->ring_parked(step);
    return Ok{};
  }

  void gather() {
    const GroupState& state = votes_->state;
    const size_t slot = step_ % 2;
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      const size_t index = size_t(rank % state.ranks_per_node);
      all_[size_t(rank)] = state.is_local(rank) ? votes_->members[index].slots[slot]
                                                : votes_->remotes[size_t(state.node_of(rank))].slots[slot][index];
    }
  }

  Error missing_error() const {
    const GroupState& state = votes_->state;
    std::string who;
    const auto add = [&](const std::string& name) { who += (who.empty() ? "" : ", ") + name; };
    for (size_t i = 0; i < votes_->members.size(); ++i) {
      if (votes_->members[i].num_steps.load() < step_ + 1) add(fmt::format("rank {}", state.first_rank() + int32_t(i)));
    }
    for (int32_t node = 0; node < state.num_nodes; ++node) {
      if (node == state.node_rank || votes_->has_voted(node, step_)) continue;
      const int32_t first = node * state.ranks_per_node;
      add(fmt::format("{} with ranks {} to {}", state.name(node), first, first + state.ranks_per_node - 1));
    }
    return peer_lost(fmt::format("no vote for step {} from {} within {:.3f} s; asked by rank {} of {}", step_, who,
                                 seconds(votes_->deadline), rank().value, num_ranks()));
  }

  const std::shared_ptr<Votes> votes_;
  Member& self_;
  RankPort& port_;
  const int32_t index_;  // within the node
  std::vector<StepVote> all_;
  uint64_t step_ = kNoStep;
  bool is_decided_ = true;
  std::atomic<bool> woken_{false};  // by wake(), and no wait has ended by it
  TimePoint posted_at_{};
  std::optional<Error> failure_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_node_communicators(GroupState& state, Duration deadline) {
  const auto votes = std::make_shared<Votes>(state, deadline);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int32_t i = 0; i < state.ranks_per_node; ++i) ranks.push_back(std::make_unique<NodeCommunicator>(votes, i));
  return ranks;
}

}  // namespace tandem::parallel
