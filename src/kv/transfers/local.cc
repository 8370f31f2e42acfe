// The in-process backend. Everything lies in one LocalFabric::State under one lock; an instance is a Node, a connection
// a Link on either side. Events for a node are queued by whoever causes them and handed out by the node's own poll().
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "base/check.h"
#include "kv/local_fabric.h"
#include "kv/transfers/ranges.h"

namespace tandem::kv {
namespace {

constexpr size_t kMaxEventsPerPoll = 256;
constexpr size_t kMaxUnreadMessages = 16384;  // per link and direction

enum class LinkState : uint8_t { kConnecting, kUp, kLost };

struct Link {
  LinkState state = LinkState::kConnecting;
  std::string target;  // outbound: where to
  TimePoint connect_deadline{};
  std::vector<std::string> early;  // sent before the connection stood
  uint64_t node = 0, there = 0;    // the other node, and this link's id over there
  size_t unread = 0;               // messages in our inbox from this peer
  uint64_t seen_progress = 0;      // heartbeat: the other's poll counter at the last check
  std::optional<TimePoint> next_check;
  int32_t misses = 0;
};

struct Read {
  uint64_t id = 0;
  uint64_t peer = 0;
  std::vector<CopyRange> ranges;
  bool cancelled = false;
};

struct Node {
  TransferOptions options;
  std::span<std::byte> region;
  std::string address;
  bool frozen = false, held = false, dead = false;
  int32_t reads_to_fail = 0;
  uint64_t progress = 0;
  uint64_t next_peer = 1;
  std::map<uint64_t, Link> links;
  std::deque<TransferEvent> inbox;
  std::deque<Read> reads;
  uint64_t bytes_read = 0;
};

uint64_t peer_of(const TransferEvent& event) {
  if (const auto* e = std::get_if<PeerConnected>(&event)) return e->peer.value;
  if (const auto* e = std::get_if<PeerLost>(&event)) return e->peer.value;
  if (const auto* e = std::get_if<PeerMessage>(&event)) return e->peer.value;
  return 0;
}

}  // namespace

// All functions: the caller holds `mutex`.
struct LocalFabric::State {
  std::mutex mutex;
  std::map<uint64_t, Node> nodes;
  uint64_t next_node = 1;
  uint16_t next_port = 20000;

  Node* find(uint64_t id) {
    const auto it = nodes.find(id);
    return it == nodes.end() || it->second.dead ? nullptr : &it->second;
  }
  std::map<uint64_t, Node>::iterator at(const std::string& address) {
    return std::find_if(nodes.begin(), nodes.end(),
                        [&](const auto& entry) { return !entry.second.dead && entry.second.address == address; });
  }
  Node& must_find(const std::string& address) {
    const auto it = at(address);
    CHECK(it != nodes.end());
    return it->second;
  }

  static void lose(Node& node, uint64_t peer, std::string reason) {
    const auto it = node.links.find(peer);
    if (it == node.links.end() || it->second.state == LinkState::kLost) return;
    it->second.state = LinkState::kLost;
    node.inbox.push_back(PeerLost{PeerId{peer}, std::move(reason)});
  }
  void lose_far_end(const Link& link, const std::string& reason) {
    if (link.state != LinkState::kUp) return;
    if (Node* other = find(link.node)) lose(*other, link.there, reason);
  }
  void vanish(Node& node, const std::string& reason) {
    for (auto& [id, link] : node.links) lose_far_end(link, reason);
    node.links.clear();
    node.inbox.clear();
    node.reads.clear();
    node.dead = true;
  }

  bool advance_connects(uint64_t self_id, Node& self, TimePoint now);
  void establish(uint64_t self_id, Node& self, uint64_t peer, uint64_t other_id, Node& other);
  void deliver(Node& self, Link& link, std::string bytes);
  bool check_heartbeats(Node& self, TimePoint now);
  bool advance_reads(Node& self, std::vector<TransferEvent>& events);
  std::optional<Status> try_read(Node& self, Read& read);
};

bool LocalFabric::State::advance_connects(uint64_t self_id, Node& self, TimePoint now) {
  bool any = false;
  for (auto& [id, link] : self.links) {
    if (link.state != LinkState::kConnecting) continue;
    const auto other = at(link.target);
    if (other == nodes.end() || !other->second.options.listen) {
      lose(self, id, fmt::format("{}: connection refused, nobody listens there", link.target));
    } else if (!other->second.frozen) {
      establish(self_id, self, id, other->first, other->second);
    } else if (now >= link.connect_deadline) {
      lose(self, id, fmt::format("{}: no answer within {} s", link.target, seconds(self.options.connect_timeout)));
    } else {
      continue;
    }
    any = true;
  }
  return any;
}

void LocalFabric::State::establish(uint64_t self_id, Node& self, uint64_t peer, uint64_t other_id, Node& other) {
  Link& link = self.links.at(peer);
  if (other.options.secret != self.options.secret) {
    lose(self, peer, fmt::format("{}: refused, the deployment secret differs", link.target));
    return;
  }
  const uint64_t there = other.next_peer++;
  link.state = LinkState::kUp;
  link.node = other_id;
  link.there = there;
  link.seen_progress = other.progress;
  self.inbox.push_back(PeerConnected{PeerId{peer}, other.options.epoch});
  Link& back = other.links[there];
  back.state = LinkState::kUp;
  back.node = self_id;
  back.there = peer;
  back.seen_progress = self.progress;
  other.inbox.push_back(PeerConnected{PeerId{there}, self.options.epoch});
  for (std::string& bytes : std::exchange(link.early, {})) deliver(self, link, std::move(bytes));
}

void LocalFabric::State::deliver(Node& self, Link& link, std::string bytes) {
  Node* other = find(link.node);
  if (other == nullptr) return;
  const auto back = other->links.find(link.there);
  if (back == other->links.end() || back->second.state != LinkState::kUp) return;
  if (back->second.unread >= kMaxUnreadMessages) {
    lose(*other, link.there, "connection reset by peer");
    lose(self, back->second.there, fmt::format("send queue full: {} messages not taken", kMaxUnreadMessages));
    return;
  }
  ++back->second.unread;
  other->inbox.push_back(PeerMessage{PeerId{link.there}, std::move(bytes)});
}

// A missed interval counts only when this side was looking: one poll counts at most one, so a process that stood still
// itself does not take its peers for dead.
bool LocalFabric::State::check_heartbeats(Node& self, TimePoint now) {
  bool any = false;
  for (auto& [id, link] : self.links) {
    if (link.state != LinkState::kUp) continue;
    if (!link.next_check) link.next_check = now + self.options.heartbeat_interval;
    if (now < *link.next_check) continue;
    link.next_check = now + self.options.heartbeat_interval;
    const Node* other = find(link.node);
    const uint64_t progress = other == nullptr ? link.seen_progress : other->progress;
    link.misses = progress == link.seen_progress ? link.misses + 1 : 0;
    link.seen_progress = progress;
    if (link.misses < self.options.heartbeat_max_failures) continue;
    lose_far_end(link, "connection reset by peer");
    lose(self, id, fmt::format("{} heartbeats missed", link.misses));
    any = true;
  }
  return any;
}

// The read's result, or nothing while it is in flight.
std::optional<Status> LocalFabric::State::try_read(Node& self, Read& read) {
  if (read.cancelled) return cancelled(fmt::format("read {} cancelled", read.id));
  const auto link = self.links.find(read.peer);
  if (link == self.links.end() || link->second.state != LinkState::kUp) {
    return peer_lost(fmt::format("read {}: peer {} is not connected", read.id, read.peer));
  }
  Node* other = find(link->second.node);
  CHECK(other != nullptr);  // a node that vanishes loses its links
  const Status checked = check_ranges(read.id, read.ranges, int64_t(other->region.size()), int64_t(self.region.size()));
  if (!checked) return checked;
  if (self.held || other->frozen) return std::nullopt;
  if (self.reads_to_fail > 0) {
    --self.reads_to_fail;
    return peer_lost(fmt::format("read {}: failed on request", read.id));
  }
  for (const CopyRange& range : read.ranges) {
    std::memcpy(self.region.data() + range.local_offset, other->region.data() + range.remote_offset,
                size_t(range.bytes));
    self.bytes_read += uint64_t(range.bytes);
  }
  return Status(Ok{});
}

bool LocalFabric::State::advance_reads(Node& self, std::vector<TransferEvent>& events) {
  const size_t before = events.size();
  for (size_t i = 0; i < self.reads.size() && events.size() - before < kMaxEventsPerPoll;) {
    std::optional<Status> status = try_read(self, self.reads[i]);
    if (!status) {
      ++i;
      continue;
    }
    events.push_back(ReadFinished{self.reads[i].id, std::move(*status)});
    self.reads.erase(self.reads.begin() + int64_t(i));
  }
  return events.size() > before;
}

LocalFabric::LocalFabric() : state_(std::make_unique<State>()) {}
LocalFabric::~LocalFabric() = default;

void LocalFabric::kill(const std::string& address) {
  std::lock_guard lock(state_->mutex);
  state_->vanish(state_->must_find(address), "connection reset by peer");
}
void LocalFabric::freeze(const std::string& address, bool frozen) {
  std::lock_guard lock(state_->mutex);
  state_->must_find(address).frozen = frozen;
}
void LocalFabric::hold_reads(const std::string& address, bool held) {
  std::lock_guard lock(state_->mutex);
  state_->must_find(address).held = held;
}
void LocalFabric::fail_reads(const std::string& address, int32_t count) {
  std::lock_guard lock(state_->mutex);
  state_->must_find(address).reads_to_fail = count;
}

class LocalTransfer final : public KvTransfer {
 public:
  LocalTransfer(std::shared_ptr<LocalFabric> fabric, const TransferOptions& options, std::span<std::byte> region)
      : fabric_(std::move(fabric)), state_(*fabric_->state_) {
    std::lock_guard lock(state_.mutex);
    const uint16_t port = options.port != 0 ? options.port : state_.next_port++;
    address_ = fmt::format("{}:{}", options.host, port);
    CHECK(state_.at(address_) == state_.nodes.end());
    id_ = state_.next_node++;
    Node& node = state_.nodes[id_];
    node.options = options;
    node.region = region;
    node.address = address_;
  }

  ~LocalTransfer() override {
    std::lock_guard lock(state_.mutex);
    state_.vanish(self(), "closed by peer");
    state_.nodes.erase(id_);
  }

  PeerId connect(const std::string& host, uint16_t port, TimePoint now) override {
    std::lock_guard lock(state_.mutex);
    Node& node = self();
    const PeerId peer{node.next_peer++};
    if (node.dead) return peer;
    Link& link = node.links[peer.value];
    link.target = fmt::format("{}:{}", host, port);
    link.connect_deadline = now + node.options.connect_timeout;
    return peer;
  }

  void send(PeerId peer, std::string bytes) override {
    std::lock_guard lock(state_.mutex);
    Node& node = self();
    const auto link = node.links.find(peer.value);
    if (link == node.links.end()) return;
    if (link->second.state == LinkState::kUp) {
      state_.deliver(node, link->second, std::move(bytes));
    } else if (link->second.state == LinkState::kConnecting) {
      link->second.early.push_back(std::move(bytes));
      if (link->second.early.size() > kMaxUnreadMessages) state_.lose(node, peer.value, "send queue full");
    }
  }

  void post_read(uint64_t read_id, PeerId peer, std::span<const CopyRange> ranges) override {
    std::lock_guard lock(state_.mutex);
    if (self().dead) return;
    self().reads.push_back(Read{read_id, peer.value, {ranges.begin(), ranges.end()}, false});
  }

  void cancel_read(uint64_t read_id) override {
    std::lock_guard lock(state_.mutex);
    for (Read& read : self().reads) read.cancelled |= read.id == read_id;
  }

  void disconnect(PeerId peer) override {
    std::lock_guard lock(state_.mutex);
    const auto link = self().links.find(peer.value);
    if (link == self().links.end()) return;
    state_.lose_far_end(link->second, "disconnected by peer");
    self().links.erase(link);
  }

  bool poll(TimePoint now, std::vector<TransferEvent>& events) override {
    std::lock_guard lock(state_.mutex);
    Node& node = self();
    if (node.dead || node.frozen) return false;
    ++node.progress;
    bool any = state_.advance_connects(id_, node, now);
    any |= state_.check_heartbeats(node, now);
    for (size_t taken = 0; taken < kMaxEventsPerPoll && !node.inbox.empty(); ++taken) {
      any |= take_event(node, events);
    }
    any |= state_.advance_reads(node, events);
    return any;
  }

  std::string address() const override { return address_; }
  uint64_t bytes_read() const override {
    std::lock_guard lock(state_.mutex);
    return state_.nodes.at(id_).bytes_read;
  }

 private:
  Node& self() { return state_.nodes.at(id_); }

  // Events of a peer that was disconnect()ed in the meantime are dropped.
  static bool take_event(Node& node, std::vector<TransferEvent>& events) {
    TransferEvent event = std::move(node.inbox.front());
    node.inbox.pop_front();
    const auto link = node.links.find(peer_of(event));
    if (link == node.links.end()) return false;
    if (std::holds_alternative<PeerMessage>(event)) --link->second.unread;
    if (std::holds_alternative<PeerLost>(event)) node.links.erase(link);
    events.push_back(std::move(event));
    return true;
  }

  const std::shared_ptr<LocalFabric> fabric_;  // shared: the fabric outlives whichever instance goes last
  LocalFabric::State& state_;
  std::string address_;
  uint64_t id_ = 0;
};

std::shared_ptr<LocalFabric> make_local_fabric() { return std::make_shared<LocalFabric>(); }

std::unique_ptr<KvTransfer> make_local_transfer(std::shared_ptr<LocalFabric> fabric, const TransferOptions& options,
                                                std::span<std::byte> region) {
  return std::make_unique<LocalTransfer>(std::move(fabric), options, region);
}

}  // namespace tandem::kv
