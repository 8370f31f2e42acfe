#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "parallel/node_group.h"
#include "parallel/ucx/exchange.h"
#include "parallel/ucx/meeting.h"
#include "parallel/ucx/votes.h"

namespace tandem::parallel {
namespace {

constexpr Duration kTick = std::chrono::milliseconds(50);
constexpr Duration kLook = std::chrono::milliseconds(50);
constexpr Duration kFarewell = std::chrono::seconds(2);
constexpr int32_t kBeatsPerSilence = 12, kMissesPerSilence = 6;
constexpr size_t kOutbox = size_t(1) << 18;       // messages
constexpr size_t kMaxBacklog = size_t(16) << 20;  // bytes on the way to one node before the outbox has to wait

struct Outgoing {
  int32_t node = 0;
  std::string bytes;
  bool is_bye = false;
};

class NodeGroupImpl final : public NodeGroup {
 public:
  NodeGroupImpl(const MeetingOptions& options, const Clock& clock)
      : options_(options), clock_(clock), state_(options.num_nodes, options.node_rank, options.ranks_per_node) {}
  ~NodeGroupImpl() override { end_thread(); }

  Status build(const std::function<bool()>& stopped);

  int32_t num_nodes() const override { return options_.num_nodes; }
  int32_t node_rank() const override { return options_.node_rank; }
  int32_t num_ranks() const override { return state_.num_ranks(); }
  Rank first_rank() const override { return {state_.first_rank()}; }
  uint64_t token() const override { return token_; }
  const std::vector<int64_t>& limits() const override { return limits_; }
  const std::string& own_host() const override { return own_host_; }
  std::string node_name(int32_t node) const override { return state_.name(node); }

  std::vector<std::unique_ptr<Communicator>> communicators(Duration deadline) override {
    return make_node_communicators(state_, deadline);
  }
  Result<std::vector<std::unique_ptr<ExpertExchange>>> exchanges(const ExchangeShape& shape, Duration deadline,
                                                                 int32_t spins) override {
    return make_node_exchanges(state_, shape, deadline, spins);
  }

  void start(LinkHandlers handlers) override {
    handlers_ = std::move(handlers);
    thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
  }
  PushResult send(int32_t node, std::string message) override {
    if (lost_[size_t(node)].load()) return PushResult::kClosed;
    return post({node, std::move(message), false});
  }
  void fail(const Error& error) override {
    state_.fail(error);
    link_->wake();
  }
  const Error* failure() const override { return state_.failure(); }
  void leave() override;

 private:
  void say_bye();
  void wait_for_byes();
  void end_thread();
  Status open_ports();
  Status connect_ports(const std::function<bool()>& stopped, TimePoint deadline);
  Status take_connected();
  Error not_connected() const;
  PushResult post(Outgoing message);
  void run(const std::stop_token& stop);
  bool take_outbox();
  void take(LinkEvent& event);
  void take_record(int32_t node, std::string_view bytes);
  void lose(int32_t node, const std::string& reason);
  void beat(TimePoint now);
  void look_for_silence(TimePoint now);
  void tell_failure();
  int32_t node_of(transport::EndpointId endpoint) const;
  // On node 0 all others, on the others node 0.
  bool talks_to(int32_t node) const { return node != options_.node_rank && endpoint_of_[size_t(node)].value != 0; }

  const MeetingOptions options_;
  const Clock& clock_;
  GroupState state_;
  std::string own_host_;
  uint64_t token_ = 0;
  std::vector<int64_t> limits_;
  std::unique_ptr<Link> link_;                      // the caller's of meet(), then the link thread's
  std::vector<transport::EndpointId> endpoint_of_;  // by node; fixed after the meeting
  std::vector<LinkEvent> pending_;                  // came while connecting, is the link thread's to take
  int32_t num_connected_ = 0;                       // node 0: other nodes that say so
  bool all_connected_ = false;
  std::vector<std::atomic<bool>> lost_, said_bye_;  // by node
  LinkHandlers handlers_;
  BoundedQueue<Outgoing> outbox_{kOutbox};
  std::optional<Outgoing> held_;  // taken from the outbox, waits for its connection; the link thread's
  std::atomic<bool> woken_{false}, leaving_{false};
  bool told_ = false;  // the link thread's
  struct Heard {
    bool once = false, lately = false;  // ever, and since the last look
    int32_t misses = 0;                 // looks in a row that found nothing
  };
  std::vector<Heard> heard_;  // by node; the link thread's
  TimePoint next_beat_{}, next_look_{};
  BoundedQueue<bool> bell_{1};  // carries no values: somebody said bye or was lost
  std::jthread thread_;         // last: uses all the others
};

Status NodeGroupImpl::build(const std::function<bool()>& stopped) {
  const TimePoint deadline = clock_.now() + options_.timeout;
  ASSIGN_OR_RETURN(const transport::SocketAddress first, transport::resolve(options_.host, options_.port));
  ASSIGN_OR_RETURN(own_host_, transport::local_host_towards(first));
  RETURN_IF_ERROR(open_ports());
  ASSIGN_OR_RETURN(link_, Link::create(options_.devices, options_.credentials));
  NodeHello own;
  own.version = options_.version;
  own.num_nodes = uint32_t(options_.num_nodes);
  own.node_rank = uint32_t(options_.node_rank);
  own.ranks_per_node = uint32_t(options_.ranks_per_node);
  own.agreed = options_.agreed;
  own.limits = options_.limits;
  for (const auto& port : state_.ports) own.ranks.push_back({own_host_, port->port()});
  const MeetingParts parts{*link_, options_, own, clock_, stopped, deadline};
  ASSIGN_OR_RETURN(Met met, options_.node_rank == 0 ? meet_as_first(parts) : meet_as_other(parts));
  limits_ = std::move(met.welcome.limits);
  endpoint_of_ = std::move(met.endpoint_of);
  lost_ = std::vector<std::atomic<bool>>(size_t(options_.num_nodes));
  said_bye_ = std::vector<std::atomic<bool>>(size_t(options_.num_nodes));
  heard_.resize(size_t(options_.num_nodes));
  state_.addresses = std::move(met.welcome.ranks);
  token_ = met.welcome.token;
  for (const auto& port : state_.ports) RETURN_IF_ERROR(port->call_others(token_));
  RETURN_IF_ERROR(connect_ports(stopped, deadline));
  log::info("all {} nodes are there: {} ranks, {} to {} here", options_.num_nodes, num_ranks(), first_rank().value,
            first_rank().value + options_.ranks_per_node - 1);
  return Ok{};
}

Status NodeGroupImpl::open_ports() {
  std::vector<std::unique_ptr<RankPort>> ports;
  for (int32_t i = 0; i < options_.ranks_per_node; ++i) {
    ASSIGN_OR_RETURN(ports.emplace_back(), RankPort::create(state_, Rank{state_.first_rank() + i}, own_host_,
                                                            options_.devices, options_.credentials));
  }
  state_.ports = std::move(ports);
  return Ok{};
}

// Nobody stops driving its ports before all nodes are connected: an answer to the last greeting may need it.
Status NodeGroupImpl::connect_ports(const std::function<bool()>& stopped, TimePoint deadline) {
  bool told = false;
  while (!all_connected_) {
    if (stopped()) return cancelled("stopped while the group was connecting");
    if (clock_.now() >= deadline) return not_connected();
    for (const auto& port : state_.ports) port->progress(clock_.now());
    if (const Error* failure = state_.failure()) return *failure;
    if (!link_->poll(clock_.now(), pending_)) link_->wait(std::chrono::milliseconds(1));
    RETURN_IF_ERROR(take_connected());
    const bool connected =
        std::all_of(state_.ports.begin(), state_.ports.end(), [](const auto& port) { return port->connected(); });
    const bool is_first = options_.node_rank == 0;
    const bool may_tell = !is_first || num_connected_ == options_.num_nodes - 1;
    if (!connected || told || !may_tell) continue;
    told = true;
    for (int32_t node = 0; node < options_.num_nodes; ++node) {
      if (talks_to(node)) link_->write(endpoint_of_[size_t(node)], NodeConnected{});
    }
    all_connected_ = is_first;
  }
  link_->poll(clock_.now(), pending_);
  return Ok{};
}

// What follows a NodeConnected of node 0 is for the link's thread.
Status NodeGroupImpl::take_connected() {
  size_t taken = 0;
  while (taken < pending_.size() && !all_connected_) {
    const LinkEvent& event = pending_[taken++];
    const auto* lost = std::get_if<LinkLost>(&event);
    const auto* came = std::get_if<LinkRecord>(&event);
    const int32_t node = node_of(lost != nullptr ? lost->endpoint : came->endpoint);
    if (node < 0) continue;
    if (lost != nullptr) {
      return peer_lost(fmt::format("{} was lost while the group was connecting: {}", state_.name(node), lost->reason));
    }
    ASSIGN_OR_RETURN(const NodeRecord record, decode_record(came->bytes));
    if (const auto* refuse = std::get_if<NodeRefuse>(&record)) return peer_lost(refuse->reason);
    if (!std::holds_alternative<NodeConnected>(record)) return corrupt("something else before all were connected");
    ++num_connected_;
    all_connected_ = node == 0;
  }
  pending_.erase(pending_.begin(), pending_.begin() + ptrdiff_t(taken));
  return Ok{};
}

Error NodeGroupImpl::not_connected() const {
  std::string pairs = num_connected_ > 0 ? fmt::format("; {} other nodes are", num_connected_) : "";
  for (const auto& port : state_.ports) {
    if (!port->connected()) pairs += fmt::format("; rank {} misses {}", port->rank().value, port->missing());
  }
  return timed_out(
      fmt::format("the ranks were not connected within {:.0f} s (--dist-timeout){}", seconds(options_.timeout), pairs));
}

int32_t NodeGroupImpl::node_of(transport::EndpointId endpoint) const {
  for (size_t node = 0; node < endpoint_of_.size(); ++node) {
    if (endpoint_of_[node] == endpoint) return int32_t(node);
  }
  return -1;
}

PushResult NodeGroupImpl::post(Outgoing message) {
  const PushResult pushed = outbox_.push(std::move(message));
  if (!woken_.exchange(true)) link_->wake();
  return pushed;
}

void NodeGroupImpl::run(const std::stop_token& stop) {
  std::vector<LinkEvent> events = std::move(pending_);
  for (LinkEvent& event : events) take(event);
  events.clear();
  TimePoint tick = clock_.now();
  while (!stop.stop_requested()) {
    woken_.store(false);
    bool any = take_outbox();
    any |= link_->poll(clock_.now(), events);
    for (LinkEvent& event : events) take(event);
    events.clear();
    if (state_.failure() != nullptr) tell_failure();
    if (clock_.now() >= tick) {
      tick = clock_.now() + kTick;
      if (handlers_.on_tick) handlers_.on_tick();
      beat(clock_.now());
      look_for_silence(clock_.now());
    }
    if (!any) link_->wait(std::min(kLook, std::max(Duration(0), tick - clock_.now())));
  }
}

// As much as the connections take; the rest waits in the outbox, which then answers "full".
bool NodeGroupImpl::take_outbox() {
  bool any = false;
  for (;;) {
    if (!held_) held_ = outbox_.try_pop();
    if (!held_) return any;
    const transport::EndpointId endpoint = endpoint_of_[size_t(held_->node)];
    if (link_->backlog(endpoint) > kMaxBacklog) return any;
    if (held_->is_bye) {
      link_->write(endpoint, NodeBye{});
    } else {
      link_->write(endpoint, NodePayload{held_->bytes});
    }
    held_.reset();
    any = true;
  }
}

void NodeGroupImpl::take(LinkEvent& event) {
  if (const auto* lost = std::get_if<LinkLost>(&event)) {
    const int32_t node = node_of(lost->endpoint);
    if (node >= 0) lose(node, fmt::format("{} was lost: {}", state_.name(node), lost->reason));
    return;
  }
  const auto& came = std::get<LinkRecord>(event);
  const int32_t node = node_of(came.endpoint);
  if (node >= 0) return take_record(node, came.bytes);
  const Result<NodeRecord> record = decode_record(came.bytes);
  const bool calls = record && std::holds_alternative<NodeHello>(*record);
  if (calls) log::warning("node {} came late, or again, and was turned away", std::get<NodeHello>(*record).node_rank);
  link_->write(came.endpoint, NodeRefuse{true, calls ? "the group is complete" : "a greeting was wanted"});
  link_->close(came.endpoint, true);
}

// Whatever the ranks do, a slow step or a sleep that was asked for: this thread has nothing to wait for.
void NodeGroupImpl::beat(TimePoint now) {
  if (now < next_beat_ || leaving_.load()) return;
  next_beat_ = now + options_.silence / kBeatsPerSilence;
  for (int32_t node = 0; node < options_.num_nodes; ++node) {
    if (talks_to(node)) link_->write(endpoint_of_[size_t(node)], NodeHeartbeat{});
  }
}

// A look counts one miss at most, after what had arrived was taken: who stood still itself does not take the others
// for dead. A node that has not said anything yet is still loading its texts.
void NodeGroupImpl::look_for_silence(TimePoint now) {
  if (now < next_look_) return;
  const bool is_first = next_look_ == TimePoint{};
  next_look_ = now + options_.silence / kMissesPerSilence;
  if (is_first || leaving_.load()) return;
  for (int32_t node = 0; node < options_.num_nodes; ++node) {
    Heard& heard = heard_[size_t(node)];
    if (!talks_to(node) || !heard.once) continue;
    heard.misses = heard.lately ? 0 : heard.misses + 1;
    heard.lately = false;
    if (heard.misses < kMissesPerSilence) continue;
    lose(node, fmt::format("{} was lost: nothing was heard of it for {:.0f} s, not even that it lives",
                           state_.name(node), seconds(options_.silence)));
  }
}

void NodeGroupImpl::take_record(int32_t node, std::string_view bytes) {
  const Result<NodeRecord> record = decode_record(bytes);
  heard_[size_t(node)].once = heard_[size_t(node)].lately = true;
  if (record && std::holds_alternative<NodeHeartbeat>(*record)) return;
  const auto* payload = record ? std::get_if<NodePayload>(&*record) : nullptr;
  if (payload != nullptr) {
    if (handlers_.on_message) handlers_.on_message(node, std::string(payload->bytes));
    return;
  }
  if (record && std::holds_alternative<NodeBye>(*record)) {
    said_bye_[size_t(node)] = true;
    bell_.wake();
    return;
  }
  const auto* refuse = record ? std::get_if<NodeRefuse>(&*record) : nullptr;
  if (refuse != nullptr) return lose(node, fmt::format("{} ended the group: {}", state_.name(node), refuse->reason));
  lose(node,
       fmt::format("{} was lost: {}", state_.name(node), record ? "a record out of order" : record.error().message));
}

void NodeGroupImpl::lose(int32_t node, const std::string& reason) {
  if (lost_[size_t(node)].exchange(true)) return;
  bell_.wake();
  if (leaving_.load()) return;
  state_.fail(peer_lost(reason));
  if (handlers_.on_lost) handlers_.on_lost(node, reason);
}

// Whatever ended the group here, the other nodes hear the reason.
void NodeGroupImpl::tell_failure() {
  if (told_ || leaving_.load()) return;
  told_ = true;
  for (int32_t node = 0; node < options_.num_nodes; ++node) {
    if (talks_to(node)) link_->write(endpoint_of_[size_t(node)], NodeRefuse{false, state_.failure()->message});
  }
}

void NodeGroupImpl::say_bye() {
  for (int32_t node = 0; node < options_.num_nodes; ++node) {
    if (talks_to(node)) static_cast<void>(post({node, {}, true}));
  }
  const TimePoint end = clock_.now() + kTick;
  while (outbox_.size() > 0 && clock_.now() < end) bell_.pop(std::chrono::milliseconds(1));
}

void NodeGroupImpl::wait_for_byes() {
  const auto all_gone = [&] {
    for (int32_t node = 0; node < options_.num_nodes; ++node) {
      if (talks_to(node) && !said_bye_[size_t(node)].load() && !lost_[size_t(node)].load()) return false;
    }
    return true;
  };
  const TimePoint end = clock_.now() + kFarewell;
  while (!all_gone() && clock_.now() < end) bell_.pop(std::max(Duration(0), end - clock_.now()));
}

void NodeGroupImpl::leave() {
  leaving_ = true;
  // Node 0 answers last: its answer says that all have left.
  const bool is_first = options_.node_rank == 0;
  if (!is_first) say_bye();
  wait_for_byes();
  if (is_first) say_bye();
  end_thread();
}

void NodeGroupImpl::end_thread() {
  thread_.request_stop();
  if (link_) link_->wake();
  if (thread_.joinable()) thread_.join();
}

}  // namespace

Result<std::shared_ptr<NodeGroup>> NodeGroup::meet(const MeetingOptions& options, const Clock& clock,
                                                   const std::function<bool()>& stopped) {
  CHECK(options.num_nodes > 1 && options.ranks_per_node > 0);
  CHECK(options.node_rank >= 0 && options.node_rank < options.num_nodes);
  auto group = std::make_shared<NodeGroupImpl>(options, clock);
  RETURN_IF_ERROR(group->build(stopped));
  return std::shared_ptr<NodeGroup>(std::move(group));
}

}  // namespace tandem::parallel
