#include "parallel/ucx/meeting.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "base/log.h"

namespace tandem::parallel {
namespace {

constexpr Duration kLook = std::chrono::milliseconds(50);
constexpr Duration kCallAgain = std::chrono::milliseconds(200);
constexpr Duration kFarewell = std::chrono::seconds(1);  // for the others to hear why

uint64_t draw_token() {
  std::random_device device;
  return (uint64_t(device()) << 32) | device();
}

std::string place(const NodeHello& hello) {
  const std::string host = hello.ranks.empty() ? "?" : hello.ranks[0].host;
  return fmt::format("node {} ({})", hello.node_rank, host);
}

// Node 0's side.
class First {
 public:
  explicit First(const MeetingParts& parts) : parts_(parts), guests_(size_t(parts.options.num_nodes)) {}

  Result<Met> run() {
    RETURN_IF_ERROR(parts_.link.listen(parts_.options.host, parts_.options.port));
    log::info("node 0 of {} waits for the others at {}:{}", parts_.options.num_nodes, parts_.options.host,
              parts_.options.port);
    std::vector<LinkEvent> events;
    while (num_here_ < parts_.options.num_nodes) {
      if (parts_.stopped()) return refuse_all(cancelled("stopped before all nodes were there"));
      if (parts_.clock.now() >= parts_.deadline) return refuse_all(missing());
      if (!parts_.link.poll(parts_.clock.now(), events)) parts_.link.wait(kLook);
      for (LinkEvent& event : events) {
        if (Status taken = take(event); !taken) return refuse_all(taken.error());
      }
      events.clear();
    }
    return welcome_all();
  }

 private:
  struct Guest {
    std::optional<NodeHello> hello;
    transport::EndpointId endpoint;
  };

  Status take(const LinkEvent& event) {
    if (const auto* lost = std::get_if<LinkLost>(&event)) {
      for (Guest& guest : guests_) {
        if (!guest.hello || guest.endpoint != lost->endpoint) continue;
        log::warning("{} left again before all nodes were there: {}", place(*guest.hello), lost->reason);
        guest.hello.reset();
        --num_here_;
      }
      return Ok{};
    }
    const auto& came = std::get<LinkRecord>(event);
    Result<NodeRecord> record = decode_record(came.bytes);
    NodeHello* hello = record ? std::get_if<NodeHello>(&*record) : nullptr;
    if (hello == nullptr) {  // a stranger
      turn_away(came.endpoint, record ? "a greeting was wanted" : record.error().message);
      return Ok{};
    }
    return greet(came.endpoint, std::move(*hello));
  }

  Status greet(transport::EndpointId endpoint, NodeHello hello) {
    if (const std::optional<std::string> differs = difference(parts_.own, hello)) {
      refuse(endpoint, true, *differs);
      return invalid_input(*differs);
    }
    Guest& guest = guests_[hello.node_rank];
    if (hello.node_rank == 0 || guest.hello) {
      const std::string reason = fmt::format("--node-rank {} is taken: {} has it, and a second node came with it",
                                             hello.node_rank, place(guest.hello ? *guest.hello : parts_.own));
      log::warning("{}; it was turned away", reason);
      turn_away(endpoint, reason);
      return Ok{};
    }
    log::info("{} is here with {} ranks", place(hello), hello.ranks_per_node);
    parts_.link.trust(endpoint);
    guest = {std::move(hello), endpoint};
    ++num_here_;
    return Ok{};
  }

  void turn_away(transport::EndpointId endpoint, const std::string& reason) {
    parts_.link.write(endpoint, NodeRefuse{true, reason});
    parts_.link.close(endpoint, true);
  }

  Error missing() const {
    std::string nodes;
    for (size_t node = 1; node < guests_.size(); ++node) {
      if (!guests_[node].hello) nodes += fmt::format("{}{}", nodes.empty() ? "" : ", ", node);
    }
    return timed_out(fmt::format("node(s) {} of {} did not come to {}:{} within {:.0f} s (--dist-timeout)", nodes,
                                 parts_.options.num_nodes, parts_.options.host, parts_.options.port,
                                 seconds(parts_.options.timeout)));
  }

  void refuse(transport::EndpointId endpoint, bool differs, const std::string& reason) {
    parts_.link.write(endpoint, NodeRefuse{differs, reason});
    refused_.push_back(endpoint);
  }

  // Nobody that came is left waiting: who has heard the reason hangs up.
  Error refuse_all(Error error) {
    for (const Guest& guest : guests_) {
      if (guest.hello) refuse(guest.endpoint, error.code == ErrorCode::kInvalidInput, error.message);
    }
    const TimePoint end = parts_.clock.now() + kFarewell;
    std::vector<LinkEvent> events;
    while (!refused_.empty() && parts_.clock.now() < end) {
      if (!parts_.link.poll(parts_.clock.now(), events)) parts_.link.wait(kLook);
      for (const LinkEvent& event : events) {
        if (const auto* lost = std::get_if<LinkLost>(&event)) std::erase(refused_, lost->endpoint);
      }
      events.clear();
    }
    return error;
  }

  Met welcome_all() {
    Met met;
    met.endpoint_of.resize(guests_.size());
    met.welcome.token = draw_token();
    met.welcome.limits = parts_.own.limits;
    for (size_t node = 0; node < guests_.size(); ++node) {
      const NodeHello& hello = node == 0 ? parts_.own : *guests_[node].hello;
      for (size_t i = 0; i < hello.limits.size(); ++i) {
        met.welcome.limits[i] = std::min(met.welcome.limits[i], hello.limits[i]);
      }
      met.welcome.ranks.insert(met.welcome.ranks.end(), hello.ranks.begin(), hello.ranks.end());
      met.endpoint_of[node] = guests_[node].endpoint;
    }
    for (size_t node = 1; node < guests_.size(); ++node) parts_.link.write(guests_[node].endpoint, met.welcome);
    return met;
  }

  const MeetingParts& parts_;
  std::vector<Guest> guests_;                   // by node
  std::vector<transport::EndpointId> refused_;  // and still there
  int32_t num_here_ = 1;
};

}  // namespace

std::optional<std::string> difference(const NodeHello& first, const NodeHello& other) {
  const auto differs = [&](const std::string& name, const std::string& ours, const std::string& theirs) {
    return fmt::format("{} differs: {} has {}, {} has {}", name, place(first), ours, place(other), theirs);
  };
  if (first.version != other.version) return differs("Tandem's version", first.version, other.version);
  if (first.num_nodes != other.num_nodes) {
    return differs("--nnodes", std::to_string(first.num_nodes), std::to_string(other.num_nodes));
  }
  if (other.node_rank >= first.num_nodes) {
    return fmt::format("--node-rank {} came, --nnodes is {}", other.node_rank, first.num_nodes);
  }
  if (first.ranks_per_node != other.ranks_per_node || other.ranks.size() != other.ranks_per_node) {
    return differs("the number of ranks", std::to_string(first.ranks_per_node), std::to_string(other.ranks.size()));
  }
  for (size_t i = 0; i < std::max(first.agreed.size(), other.agreed.size()); ++i) {
    const AgreedValue none{"", "nothing"};
    const AgreedValue& ours = i < first.agreed.size() ? first.agreed[i] : none;
    const AgreedValue& theirs = i < other.agreed.size() ? other.agreed[i] : none;
    if (ours.name != theirs.name) return differs("the list of settings", ours.name, theirs.name);
    if (ours.value != theirs.value) return differs(ours.name, ours.value, theirs.value);
  }
  if (first.limits.size() != other.limits.size()) {
    return differs("the number of limits", std::to_string(first.limits.size()), std::to_string(other.limits.size()));
  }
  return std::nullopt;
}

Result<Met> meet_as_first(const MeetingParts& parts) { return First(parts).run(); }

Result<Met> meet_as_other(const MeetingParts& parts) {
  const MeetingOptions& options = parts.options;
  const std::string first = fmt::format("node 0 at {}:{}", options.host, options.port);
  ASSIGN_OR_RETURN(const transport::SocketAddress address, transport::resolve(options.host, options.port));
  log::info("node {} of {} calls {}", options.node_rank, options.num_nodes, first);
  std::optional<transport::EndpointId> endpoint;
  TimePoint call_at = parts.clock.now();
  std::string last = "it did not answer";
  std::vector<LinkEvent> events;
  for (;;) {
    const TimePoint now = parts.clock.now();
    if (parts.stopped()) return cancelled(fmt::format("stopped while calling {}", first));
    if (now >= parts.deadline) {
      return timed_out(fmt::format("node {} found no group: {} let it wait for {:.0f} s (--dist-timeout); last: {}",
                                   options.node_rank, first, seconds(options.timeout), last));
    }
    if (!endpoint && now >= call_at) {
      ASSIGN_OR_RETURN(endpoint, parts.link.call(address));
      parts.link.write(*endpoint, parts.own);
    }
    if (!parts.link.poll(now, events)) parts.link.wait(kLook);
    for (const LinkEvent& event : events) {
      if (const auto* lost = std::get_if<LinkLost>(&event)) {
        if (lost->not_greeted) return invalid_input(fmt::format("{}: {}", first, lost->reason));
        last = lost->reason;
        endpoint.reset();
        call_at = now + kCallAgain;
        continue;
      }
      const auto& came = std::get<LinkRecord>(event);
      ASSIGN_OR_RETURN(NodeRecord record, decode_record(came.bytes));
      if (const auto* refuse = std::get_if<NodeRefuse>(&record)) {
        return Error{refuse->differs ? ErrorCode::kInvalidInput : ErrorCode::kPeerLost,
                     fmt::format("refused by {}: {}", first, refuse->reason)};
      }
      auto* welcome = std::get_if<NodeWelcome>(&record);
      if (welcome == nullptr || welcome->limits.size() != options.limits.size() ||
          welcome->ranks.size() != size_t(options.num_nodes * options.ranks_per_node)) {
        return corrupt(fmt::format("{} answered with something else than a welcome", first));
      }
      Met met{std::move(*welcome), {}};
      met.endpoint_of.resize(size_t(options.num_nodes));
      met.endpoint_of[0] = came.endpoint;
      return met;
    }
    events.clear();
  }
}

}  // namespace tandem::parallel
