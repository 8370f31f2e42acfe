#include "parallel/ucx/exchange.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "parallel/exchange/seats.h"
#include "parallel/ucx/incoming.h"

namespace tandem::parallel {
namespace {

// The ranks of this node.
struct Group {
  GroupState& state;
  ExchangeShape shape;
  Duration deadline;
  int32_t spins = 0;
  std::vector<std::unique_ptr<Seat>> seats;  // by rank of this node; never resized
};

class NodeExchange final : public ExpertExchange {
 public:
  NodeExchange(std::shared_ptr<Group> group, int32_t index);
  ~NodeExchange() override { port_.on_rows = port_.on_results = {}; }

  Rank rank() const override { return port_.rank(); }
  const ExchangeShape& shape() const override { return group_->shape; }

  void post_dispatch(int32_t index, ExchangeTag tag, ExchangeMode mode, device::TensorView x,
                     device::TensorView slots) override;
  Result<std::optional<ReceivedRows>> poll_received(int32_t index, TimePoint now) override;
  void post_results(int32_t index) override;
  Result<bool> poll_results(int32_t index, TimePoint now, std::span<const float*> rows) override;
  void wait(int32_t index, Duration timeout) override;
  MissingRanks missing(int32_t index) const override {
    const Channel& channel = channels_[size_t(index)];
    const bool dispatched = channel.stage == Stage::kDispatched;
    MissingRanks missing;
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      if (!(dispatched ? is_there(channel, index, rank) : has_answered(channel, index, rank))) missing.add(rank);
    }
    return missing;
  }
  int64_t row_bytes_sent() const override { return row_bytes_sent_; }
  bool drive(TimePoint now) override {
    port_.progress(now);
    return true;
  }

 private:
  using Stage = ExchangeStage;
  struct Channel {
    Stage stage = Stage::kFree;
    ExchangeTag tag;
    ExchangeMode mode = ExchangeMode::kNormal;
    uint64_t round = 0;     // dispatches so far
    uint64_t answered = 0;  // of those that we have given results for
    int32_t num_added = 0;
    TimePoint since{};               // first look that found ranks missing
    std::vector<bool> added;         // by rank: rows were taken
    std::vector<Incoming> incoming;  // by rank; of this node's ranks unused and empty
    device::Buffer results;          // [max_tokens * top_k, hidden] f32: of our pairs on other nodes, by rank
  };

  int32_t num_ranks() const { return group_->shape.num_ranks; }
  bool is_local(int32_t rank) const { return group_->state.is_local(rank); }
  const Seat& seat_of(int32_t rank) const { return *group_->seats[size_t(rank - group_->state.first_rank())]; }
  Published& mine(int32_t index) { return self_.channels[size_t(index)]; }
  bool is_there(const Channel& channel, int32_t index, int32_t rank) const;
  bool has_answered(const Channel& channel, int32_t index, int32_t rank) const;
  bool arrived(int32_t index);
  void ring();
  void send_rows(int32_t index, int32_t to, const ExchangeSource& source);
  void send_results(int32_t index, int32_t to);
  Status take_rows(int32_t from, std::string_view bytes);
  Status take_results(int32_t from, std::string_view bytes);
  Status check_group() const;
  Status check_deadline(Channel& channel, int32_t index, TimePoint now);

  const std::shared_ptr<Group> group_;
  RankPort& port_;
  Seat& self_;
  std::vector<Channel> channels_;
  std::vector<int32_t> tokens_, pairs_;  // scratch of send_rows and poll_results
  int64_t row_bytes_sent_ = 0;
};

NodeExchange::NodeExchange(std::shared_ptr<Group> group, int32_t index)
    : group_(std::move(group)),
      port_(*group_->state.ports[size_t(index)]),
      self_(*group_->seats[size_t(index)]),
      channels_(size_t(group_->shape.num_channels)) {
  const ExchangeShape& shape = group_->shape;
  ExchangeShape nothing = shape;
  nothing.max_tokens = 0;
  for (Channel& channel : channels_) {
    channel.added.resize(size_t(num_ranks()));
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      channel.incoming.emplace_back(is_local(rank) ? nothing : shape, this->rank());
    }
    channel.results =
        device::Buffer(device::Device::kCpu, size_t(shape.max_tokens * shape.top_k * shape.hidden) * sizeof(float));
  }
  tokens_.reserve(size_t(shape.max_tokens));
  pairs_.resize(size_t(num_ranks()));
  port_.on_rows = [this](int32_t from, std::string_view bytes) { return take_rows(from, bytes); };
  port_.on_results = [this](int32_t from, std::string_view bytes) { return take_results(from, bytes); };
}

void NodeExchange::post_dispatch(int32_t index, ExchangeTag tag, ExchangeMode mode, device::TensorView x,
                                 device::TensorView slots) {
  const ExchangeShape& shape = group_->shape;
  Channel& channel = channels_[size_t(index)];
  CHECK(channel.stage == Stage::kFree);
  CHECK(x.dim(1) == shape.hidden);
  CHECK(x.dtype() == shape.dtype);
  CHECK(slots.num_elements() == x.dim(0) * shape.top_k);
  channel.stage = Stage::kDispatched;
  channel.tag = tag;
  channel.mode = mode;
  channel.round += 1;
  channel.num_added = 0;
  channel.since = TimePoint{};
  channel.added.assign(channel.added.size(), false);
  const ExchangeSource source{self_.outgoing[size_t(index)].take(x), slots.as<int32_t>(), x.dim(0)};
  mine(index).source = source;
  mine(index).dispatched.store(
      channel.round);  // sequentially consistent, as is `parked`: one of two sides sees the other
  self_.collectors[size_t(index)].start(mode);
  ring();
  std::fill(pairs_.begin(), pairs_.end(), 0);
  for (int64_t pair = 0; pair < source.num_tokens * shape.top_k; ++pair) {
    ++pairs_[size_t(source.slots[pair] / shape.slots_per_rank)];
  }
  auto* results = static_cast<float*>(channel.results.data());
  for (int32_t to = 0; to < num_ranks(); ++to) {
    if (is_local(to)) continue;
    channel.incoming[size_t(to)].expect_results(channel.round, results, pairs_[size_t(to)]);
    results += pairs_[size_t(to)] * shape.hidden;
    send_rows(index, to, source);
  }
}

// A token that chose several slots of that rank travels once.
void NodeExchange::send_rows(int32_t index, int32_t to, const ExchangeSource& source) {
  const ExchangeShape& shape = group_->shape;
  const Channel& channel = channels_[size_t(index)];
  const int32_t first_slot = to * shape.slots_per_rank, end_slot = first_slot + shape.slots_per_rank;
  const auto theirs = [&](int32_t slot) { return slot >= first_slot && slot < end_slot; };
  tokens_.clear();
  for (int64_t token = 0; token < source.num_tokens; ++token) {
    const int32_t* slots = source.slots + token * shape.top_k;
    if (std::any_of(slots, slots + shape.top_k, theirs)) tokens_.push_back(int32_t(token));
  }
  const size_t row_bytes = size_t(payload_row_bytes(shape)), slot_bytes = size_t(shape.top_k) * sizeof(int32_t);
  const size_t most = (transport::kMaxMessageBytes - kRowsHeaderBytes) / (row_bytes + slot_bytes);
  CHECK(most > 0);
  size_t first = 0;
  do {  // without rows, too: that there are none is news
    const size_t count = std::min(tokens_.size() - first, most);
    std::string bytes;
    bytes.reserve(kRowsHeaderBytes + count * (row_bytes + slot_bytes));
    append(bytes, RowsHeader{uint32_t(index), uint32_t(channel.mode), uint32_t(channel.tag.layer), channel.tag.step,
                             channel.round, uint32_t(tokens_.size()), uint32_t(first), uint32_t(count)});
    for (size_t i = first; i < first + count; ++i) {
      const int32_t* slots = source.slots + int64_t(tokens_[i]) * shape.top_k;
      for (int32_t k = 0; k < shape.top_k; ++k) {
        const int32_t slot = theirs(slots[k]) ? slots[k] : -1;
        bytes.append(reinterpret_cast<const char*>(&slot), sizeof(slot));
      }
      bytes.append(reinterpret_cast<const char*>(source.x) + size_t(tokens_[i]) * row_bytes, row_bytes);
    }
    row_bytes_sent_ += int64_t(bytes.size());
    port_.send(to, std::move(bytes));
    first += count;
  } while (first < tokens_.size());
}

Status NodeExchange::take_rows(int32_t from, std::string_view bytes) {
  std::string_view body;
  ASSIGN_OR_RETURN(const RowsHeader header, decode_rows(bytes, body));
  if (header.channel >= channels_.size()) return corrupt(fmt::format("channel {}", header.channel));
  Channel& channel = channels_[header.channel];
  return channel.incoming[size_t(from)].take_rows(header, body, channel.answered);
}

Status NodeExchange::take_results(int32_t from, std::string_view bytes) {
  std::string_view body;
  ASSIGN_OR_RETURN(const ResultsHeader header, decode_results(bytes, body));
  if (header.channel >= channels_.size()) return corrupt(fmt::format("channel {}", header.channel));
  return channels_[header.channel].incoming[size_t(from)].take_results(header, body);
}

bool NodeExchange::is_there(const Channel& channel, int32_t index, int32_t rank) const {
  if (!is_local(rank)) return channel.incoming[size_t(rank)].has_rows(channel.round);
  return seat_of(rank).channels[size_t(index)].dispatched.load() >= channel.round;
}

bool NodeExchange::has_answered(const Channel& channel, int32_t index, int32_t rank) const {
  if (!is_local(rank)) return channel.incoming[size_t(rank)].has_results(channel.round);
  return seat_of(rank).channels[size_t(index)].answered.load() >= channel.round;
}

Result<std::optional<ReceivedRows>> NodeExchange::poll_received(int32_t index, TimePoint now) {
  Channel& channel = channels_[size_t(index)];
  CHECK(channel.stage == Stage::kDispatched);
  port_.progress(now);
  RETURN_IF_ERROR(check_group());
  Collector& collector = self_.collectors[size_t(index)];
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (channel.added[size_t(rank)]) continue;
    if (!is_there(channel, index, rank)) {
      // Where a rank's rows go in normal mode depends on the ranks before it.
      if (channel.mode == ExchangeMode::kNormal) break;
      continue;
    }
    const Incoming& incoming = channel.incoming[size_t(rank)];
    if (!is_local(rank) && (incoming.tag() != channel.tag || incoming.mode() != channel.mode)) {
      group_->state.fail(peer_lost(
          fmt::format("{} is out of step: its rank {} exchanges layer {} of step {}, rank {} layer {} of step {}",
                      group_->state.name(group_->state.node_of(rank)), rank, incoming.tag().layer, incoming.tag().step,
                      this->rank().value, channel.tag.layer, channel.tag.step)));
      return *group_->state.failure();
    }
    collector.add(rank, is_local(rank) ? seat_of(rank).channels[size_t(index)].source : incoming.source());
    channel.added[size_t(rank)] = true;
    channel.num_added += 1;
  }
  // What is not on its way before this rank computes would wait until it has computed.
  if (channel.num_added < num_ranks() || !port_.is_flushed()) {
    RETURN_IF_ERROR(check_deadline(channel, index, now));
    return std::optional<ReceivedRows>();
  }
  channel.stage = Stage::kReceived;
  return std::optional<ReceivedRows>(collector.finish());
}

void NodeExchange::post_results(int32_t index) {
  Channel& channel = channels_[size_t(index)];
  CHECK(channel.stage == Stage::kReceived);
  channel.stage = Stage::kAnswered;
  channel.since = TimePoint{};
  channel.answered = channel.round;
  mine(index).answered.store(channel.round);
  ring();
  for (int32_t to = 0; to < num_ranks(); ++to) {
    if (!is_local(to)) send_results(index, to);
  }
}

// In the order in which the pairs came, so that the numbers alone need to travel.
void NodeExchange::send_results(int32_t index, int32_t to) {
  const ExchangeShape& shape = group_->shape;
  const Channel& channel = channels_[size_t(index)];
  const Collector& collector = self_.collectors[size_t(index)];
  const int32_t* row_of = collector.row_of(to);
  const int64_t num_entries = channel.incoming[size_t(to)].source().num_tokens * shape.top_k;
  const auto total = size_t(std::count_if(row_of, row_of + num_entries, [](int32_t row) { return row >= 0; }));
  const size_t result_bytes = size_t(shape.hidden) * sizeof(float);
  const size_t most = (transport::kMaxMessageBytes - kResultsHeaderBytes) / result_bytes;
  CHECK(most > 0);
  size_t first = 0;
  do {
    const size_t count = std::min(total - first, most);
    std::string bytes;
    bytes.reserve(kResultsHeaderBytes + count * result_bytes);
    append(bytes, ResultsHeader{uint32_t(index), channel.round, uint32_t(total), uint32_t(first), uint32_t(count)});
    for (size_t i = 0; i < count; ++row_of) {
      if (*row_of < 0) continue;
      bytes.append(reinterpret_cast<const char*>(collector.results() + int64_t(*row_of) * shape.hidden), result_bytes);
      ++i;
    }
    port_.send(to, std::move(bytes));
    first += count;
  } while (first < total);
}

Result<bool> NodeExchange::poll_results(int32_t index, TimePoint now, std::span<const float*> rows) {
  Channel& channel = channels_[size_t(index)];
  CHECK(channel.stage == Stage::kAnswered);
  port_.progress(now);
  RETURN_IF_ERROR(check_group());
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (has_answered(channel, index, rank)) continue;
    RETURN_IF_ERROR(check_deadline(channel, index, now));
    return false;
  }
  if (!port_.is_flushed()) {
    RETURN_IF_ERROR(check_deadline(channel, index, now));
    return false;
  }
  const ExchangeShape& shape = group_->shape;
  const ExchangeSource& source = mine(index).source;
  CHECK(int64_t(rows.size()) == source.num_tokens * shape.top_k);
  std::fill(pairs_.begin(), pairs_.end(), 0);
  for (size_t pair = 0; pair < rows.size(); ++pair) {
    const int32_t owner = source.slots[pair] / shape.slots_per_rank;
    if (!is_local(owner)) {
      rows[pair] = channel.incoming[size_t(owner)].results() + int64_t(pairs_[size_t(owner)]++) * shape.hidden;
      continue;
    }
    const Collector& theirs = seat_of(owner).collectors[size_t(index)];
    const int32_t row = theirs.row_of(rank().value)[pair];
    DCHECK(row >= 0);
    rows[pair] = theirs.results() + int64_t(row) * shape.hidden;
  }
  channel.stage = Stage::kFree;
  return true;
}

void NodeExchange::wait(int32_t index, Duration timeout) {
  for (int i = 0; i < group_->spins; ++i) {
    if (arrived(index)) return;
  }
  self_.parked.store(true);
  if (!arrived(index)) port_.wait(timeout);
  self_.parked.store(false);
}

// Something that the next poll can use.
bool NodeExchange::arrived(int32_t index) {
  port_.progress(TimePoint{});  // time matters to a worker only for connections that linger
  if (group_->state.failure() != nullptr) return true;
  const Channel& channel = channels_[size_t(index)];
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (channel.stage != Stage::kDispatched) {
      if (!has_answered(channel, index, rank)) return false;
    } else if (!channel.added[size_t(rank)]) {
      const bool there = is_there(channel, index, rank);
      if (there || channel.mode == ExchangeMode::kNormal) return there;
    }
  }
  return channel.stage != Stage::kDispatched || channel.num_added == num_ranks();
}

void NodeExchange::ring() {
  for (size_t i = 0; i < group_->seats.size(); ++i) {
    if (group_->seats[i]->parked.load()) group_->state.ports[i]->wake();
  }
}

Status NodeExchange::check_group() const {
  const Error* lost = group_->state.failure();
  if (lost != nullptr) return *lost;
  return Ok{};
}

Status NodeExchange::check_deadline(Channel& channel, int32_t index, TimePoint now) {
  if (channel.since == TimePoint{}) channel.since = now;
  if (now - channel.since < group_->deadline) return Ok{};
  const bool dispatched = channel.stage == Stage::kDispatched;
  std::string missing;
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (dispatched ? is_there(channel, index, rank) : has_answered(channel, index, rank)) continue;
    missing +=
        fmt::format("{}{} of {}", missing.empty() ? "" : ", ", rank, group_->state.name(group_->state.node_of(rank)));
  }
  if (missing.empty()) missing = port_.unflushed();
  const Error error =
      peer_lost(fmt::format("rank(s) {} did not {} layer {} of step {} within {:.3f} s; asked by rank {} of {}",
                            missing, dispatched ? "dispatch" : "give results for", channel.tag.layer, channel.tag.step,
                            seconds(group_->deadline), rank().value, num_ranks()));
  group_->state.fail(error);
  return error;
}

}  // namespace

int64_t node_exchange_bytes(const ExchangeShape& shape, int32_t num_nodes) {
  const int64_t remote_ranks = shape.num_ranks - shape.num_ranks / num_nodes;
  const int64_t results = shape.max_tokens * shape.top_k * shape.hidden * int64_t(sizeof(float));
  return num_nodes < 2 ? 0 : shape.num_channels * (remote_ranks * Incoming::bytes(shape) + results);
}

Result<std::vector<std::unique_ptr<ExpertExchange>>> make_node_exchanges(GroupState& state, const ExchangeShape& shape,
                                                                         Duration deadline, int32_t spins) {
  CHECK(shape.num_ranks == state.num_ranks() && shape.slots_per_rank > 0 && shape.top_k > 0 && shape.hidden > 0);
  CHECK(shape.max_tokens > 0 && shape.max_low_latency_tokens <= shape.max_tokens && shape.num_channels > 0);
  const auto row_bytes = size_t(std::max(payload_row_bytes(shape) + shape.top_k * int64_t(sizeof(int32_t)),
                                         shape.hidden * int64_t(sizeof(float))));
  if (row_bytes + kRowsHeaderBytes > transport::kMaxMessageBytes) {
    return invalid_input(fmt::format("a token of {} numbers takes {} bytes, a message between nodes at most {}",
                                     shape.hidden, row_bytes, transport::kMaxMessageBytes));
  }
  const auto group = std::make_shared<Group>(Group{state, shape, deadline, spins, {}});
  for (int32_t i = 0; i < state.ranks_per_node; ++i) {
    group->seats.push_back(std::make_unique<Seat>(shape, Rank{state.first_rank() + i}));
  }
  std::vector<std::unique_ptr<ExpertExchange>> ranks;
  for (int32_t i = 0; i < state.ranks_per_node; ++i) ranks.push_back(std::make_unique<NodeExchange>(group, i));
  return ranks;
}

}  // namespace tandem::parallel
