#include "parallel/ucx/rank_port.h"

#include <fmt/format.h>

#include <utility>
#include <variant>

#include "base/check.h"

namespace tandem::parallel {
namespace {

constexpr size_t kMaxEarlyBytes = size_t(64) << 20;

}  // namespace

std::string GroupState::name(int32_t node) const {
  const size_t rank = size_t(node) * size_t(ranks_per_node);
  if (rank >= addresses.size()) return fmt::format("node {}", node);
  return fmt::format("node {} ({})", node, addresses[rank].host);
}

void GroupState::fail(Error error) {
  auto owned = std::make_unique<const Error>(std::move(error));
  const Error* none = nullptr;
  if (failure_.compare_exchange_strong(none, owned.get())) static_cast<void>(owned.release());
  for (const auto& port : ports) port->wake();
}

Result<std::unique_ptr<RankPort>> RankPort::create(GroupState& state, Rank rank, const std::string& host,
                                                   const std::vector<std::string>& devices,
                                                   const transport::Credentials& own) {
  std::unique_ptr<RankPort> port(new RankPort(state, rank));
  ASSIGN_OR_RETURN(port->context_, transport::Context::create({}, true, devices, own));
  ASSIGN_OR_RETURN(port->worker_, transport::Worker::create(*port->context_));
  ASSIGN_OR_RETURN(port->port_, port->worker_->listen(host, 0));
  port->endpoint_of_.resize(size_t(state.num_ranks()));
  port->up_.resize(size_t(state.num_ranks()));
  return port;
}

Status RankPort::call_others(uint64_t token) {
  token_ = token;
  for (int32_t rank = rank_.value + 1; rank < state_.num_ranks(); ++rank) {
    if (state_.is_local(rank)) continue;
    const PortAddress& at = state_.addresses[size_t(rank)];
    ASSIGN_OR_RETURN(const transport::SocketAddress address, transport::resolve(at.host, at.port));
    ASSIGN_OR_RETURN(const transport::EndpointId endpoint, worker_->connect(address));
    endpoint_of_[size_t(rank)] = endpoint;
    rank_of_[endpoint.value] = rank;
    worker_->send(endpoint, encode(RankHello{token, uint32_t(rank_.value), uint32_t(rank)}));
  }
  return Ok{};
}

std::string RankPort::missing() const {
  std::string names;
  for (int32_t rank = 0; rank < state_.num_ranks(); ++rank) {
    if (!state_.is_local(rank) && !up_[size_t(rank)]) names += fmt::format("{}{}", names.empty() ? "" : ", ", rank);
  }
  return names;
}

void RankPort::progress(TimePoint now) {
  if (!early_.empty()) deliver_early();
  worker_->progress(now, events_);
  for (const transport::Event& event : events_) handle(event);
  events_.clear();
}

void RankPort::send(int32_t rank, std::string bytes) { worker_->send(endpoint_of_[size_t(rank)], std::move(bytes)); }

bool RankPort::is_flushed() const {
  for (const transport::EndpointId endpoint : endpoint_of_) {
    if (endpoint.value != 0 && worker_->queued_bytes(endpoint) > 0) return false;
  }
  return true;
}

std::string RankPort::unflushed() const {
  std::string names;
  for (size_t rank = 0; rank < endpoint_of_.size(); ++rank) {
    const transport::EndpointId endpoint = endpoint_of_[rank];
    if (endpoint.value == 0 || worker_->queued_bytes(endpoint) == 0) continue;
    names += fmt::format("{}{} of {}", names.empty() ? "" : ", ", rank, state_.name(state_.node_of(int32_t(rank))));
  }
  return names;
}

void RankPort::handle(const transport::Event& event) {
  if (const auto* accepted = std::get_if<transport::EndpointAccepted>(&event)) {
    if (connected()) worker_->close(accepted->endpoint, false);  // nobody is missing
    return;
  }
  if (const auto* failed = std::get_if<transport::EndpointFailed>(&event)) {
    const auto known = rank_of_.find(failed->endpoint.value);
    if (known != rank_of_.end()) lost(known->second, failed->reason);
    return;
  }
  if (const auto* message = std::get_if<transport::MessageArrived>(&event))
    on_message(message->endpoint, message->bytes);
}

void RankPort::on_message(transport::EndpointId endpoint, std::string_view bytes) {
  if (state_.failure() != nullptr || bytes.empty()) return;
  const auto known = rank_of_.find(endpoint.value);
  if (known == rank_of_.end() || !up_[size_t(known->second)]) {
    // A stranger that does not greet as it should is shown the door and harms nobody.
    if (!on_hello(endpoint, bytes)) worker_->close(endpoint, false);
    return;
  }
  const int32_t from = known->second;
  const Status taken = deliver(from, bytes);
  if (!taken) lost(from, taken.error().message);
}

Status RankPort::on_hello(transport::EndpointId endpoint, std::string_view bytes) {
  ASSIGN_OR_RETURN(const RankHello hello, decode_rank_hello(bytes));
  const auto from = int32_t(hello.from);
  if (hello.token != token_ || hello.from >= uint32_t(state_.num_ranks()) || state_.is_local(from) ||
      hello.to != uint32_t(rank_.value)) {
    return corrupt("a greeting for somebody else");
  }
  const bool answers = from > rank_.value;  // we called it
  if (up_[size_t(from)] || (answers && endpoint_of_[size_t(from)] != endpoint)) return corrupt("a second greeting");
  if (!answers) {
    endpoint_of_[size_t(from)] = endpoint;
    rank_of_[endpoint.value] = from;
    worker_->send(endpoint, encode(RankHello{token_, uint32_t(rank_.value), uint32_t(from)}));
  }
  up_[size_t(from)] = true;
  ++num_up_;
  return Ok{};
}

const RankPort::Taker* RankPort::taker_of(uint8_t type) const {
  switch (RankMessage(type)) {
    case RankMessage::kVotes: return &on_votes;
    case RankMessage::kRows: return &on_rows;
    case RankMessage::kResults: return &on_results;
    case RankMessage::kHello: break;
  }
  return nullptr;
}

Status RankPort::deliver(int32_t from, std::string_view bytes) {
  const Taker* taker = taker_of(uint8_t(bytes[0]));
  if (taker == nullptr) return corrupt(fmt::format("a message of type {}", int(bytes[0])));
  if (*taker) return (*taker)(from, bytes);
  early_bytes_ += bytes.size();
  if (early_bytes_ > kMaxEarlyBytes) return corrupt("too many messages that nobody waits for");
  early_.push_back({from, std::string(bytes)});
  return Ok{};
}

void RankPort::deliver_early() {
  early_bytes_ = 0;
  for (const Early& message : std::exchange(early_, {})) {
    const Status taken = deliver(message.from, message.bytes);
    if (!taken) lost(message.from, taken.error().message);
  }
}

void RankPort::lost(int32_t rank, const std::string& reason) {
  state_.fail(peer_lost(fmt::format("{} was lost: rank {} says of its rank {}: {}", state_.name(state_.node_of(rank)),
                                    rank_.value, rank, reason)));
}

}  // namespace tandem::parallel
