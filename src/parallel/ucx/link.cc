#include "parallel/ucx/link.h"

#include <algorithm>

namespace tandem::parallel {
namespace {

// Given to UCX at a time; the rest waits here, where it costs no request.
constexpr size_t kMaxInFlight = size_t(4) << 20;

}  // namespace

Result<std::unique_ptr<Link>> Link::create(const std::vector<std::string>& devices, const transport::Credentials& own) {
  std::unique_ptr<Link> link(new Link());
  ASSIGN_OR_RETURN(link->context_, transport::Context::create({}, true, devices, own));
  ASSIGN_OR_RETURN(link->worker_, transport::Worker::create(*link->context_));
  return link;
}

Status Link::listen(const std::string& host, uint16_t port) {
  ASSIGN_OR_RETURN([[maybe_unused]] const uint16_t bound, worker_->listen(host, port));
  return Ok{};
}

Result<transport::EndpointId> Link::call(const transport::SocketAddress& address) {
  ASSIGN_OR_RETURN(const transport::EndpointId endpoint, worker_->connect(address));
  peers_[endpoint].in.allow(kMaxRecordBytes);
  return endpoint;
}

void Link::trust(transport::EndpointId endpoint) {
  const auto known = peers_.find(endpoint);
  if (known != peers_.end()) known->second.in.allow(kMaxRecordBytes);
}

void Link::write(transport::EndpointId endpoint, const NodeRecord& record) {
  const auto known = peers_.find(endpoint);
  if (known != peers_.end()) known->second.out += encode_record(record);
}

size_t Link::backlog(transport::EndpointId endpoint) const {
  const auto known = peers_.find(endpoint);
  if (known == peers_.end()) return 0;
  return known->second.out.size() - known->second.sent + worker_->queued_bytes(endpoint);
}

void Link::close(transport::EndpointId endpoint, bool linger) {
  if (linger) flush();
  worker_->close(endpoint, linger);
  peers_.erase(endpoint);
}

bool Link::poll(TimePoint now, std::vector<LinkEvent>& events) {
  bool any = flush();
  any |= worker_->progress(now, arrived_);
  for (const transport::Event& event : arrived_) take(event, events);
  arrived_.clear();
  return any;
}

void Link::take(const transport::Event& event, std::vector<LinkEvent>& events) {
  if (const auto* accepted = std::get_if<transport::EndpointAccepted>(&event)) {
    peers_[accepted->endpoint];
    return;
  }
  if (const auto* failed = std::get_if<transport::EndpointFailed>(&event)) {
    if (peers_.erase(failed->endpoint) > 0)
      events.push_back(LinkLost{failed->endpoint, failed->reason, failed->not_greeted});
    return;
  }
  const auto* message = std::get_if<transport::MessageArrived>(&event);
  const auto known = message != nullptr ? peers_.find(message->endpoint) : peers_.end();
  if (known == peers_.end()) return;
  RecordStream& in = known->second.in;
  in.feed(message->bytes);
  for (;;) {
    Result<std::optional<std::string>> record = in.next();
    if (!record) {
      events.push_back(LinkLost{message->endpoint, record.error().message});
      return close(message->endpoint, false);
    }
    if (!record->has_value()) return;
    events.push_back(LinkRecord{message->endpoint, std::move(**record)});
  }
}

// The stream is cut wherever a message is full: a receiver puts it together again.
bool Link::flush() {
  bool any = false;
  for (auto& [endpoint, peer] : peers_) {
    while (peer.sent < peer.out.size() && worker_->queued_bytes(endpoint) < kMaxInFlight) {
      const size_t bytes = std::min(peer.out.size() - peer.sent, transport::kMaxMessageBytes);
      worker_->send(endpoint, peer.out.substr(peer.sent, bytes));
      peer.sent += bytes;
      any = true;
    }
    if (peer.sent == peer.out.size()) {
      peer.out.clear();
      peer.sent = 0;
    }
  }
  return any;
}

}  // namespace tandem::parallel
