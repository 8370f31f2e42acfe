// KvTransfer over transport (UCX). A Link is one connection to another instance: it says hello both ways, then carries
// messages cut into frames, heartbeats and reads. See docs/protocol.md, "Link layer".
//
//   outbound: connect -> [hello out] kGreeting -> hello in -> kUp -> lost
//   inbound:  accepted -> kGreeting -> hello in, [hello out] -> kUp -> lost
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <unordered_map>

#include "base/check.h"
#include "base/log.h"
#include "kv/transfers/gpu_reads.h"
#include "kv/transfers/link_wire.h"
#include "kv/transfers/ranges.h"
#include "kv/transfers/read_faults.h"
#include "kv/transfers/ucx_reads.h"
#include "transport/transport.h"

namespace tandem::kv {
namespace {

constexpr size_t kPartBytes = transport::kMaxMessageBytes - 16;  // of a message, per frame
constexpr size_t kMaxQueuedBytes = 2 * kMaxPeerMessageBytes;     // not taken by UCX yet, per peer
constexpr size_t kMaxEventsPerPoll = 512;
constexpr int kRoundsPerPoll = 8;
constexpr uint32_t kMaxHeartbeatMs = 3600 * 1000;

enum class LinkState : uint8_t { kGreeting, kUp };

struct Link {
  PeerId peer;
  transport::EndpointId endpoint;
  std::string name;  // for reasons: "host:port", or "peer 7" inbound
  bool outbound = false;
  LinkState state = LinkState::kGreeting;
  TimePoint greeting_deadline{};
  std::vector<std::string> early;  // messages sent before kUp
  size_t early_bytes = 0;
  uint64_t epoch = 0;         // the peer's
  uint64_t region_bytes = 0;  // the peer's
  GpuSource gpu;              // the peer's region, where copies between GPUs reach it
  std::string partial;        // message being received
  size_t partial_total = 0;   // 0: none
  Duration check_interval{};  // the longer of both sides' intervals
  TimePoint next_beat{}, next_check{};
  bool heard = false;  // anything since the last check
  int32_t misses = 0;
};

class UcxTransfer final : public KvTransfer {
 public:
  UcxTransfer(const TransferOptions& options, std::unique_ptr<transport::Context> context,
              std::unique_ptr<transport::Worker> worker, std::string address, std::span<std::byte> region,
              std::unique_ptr<GpuReads> gpu_reads)
      : options_(options),
        region_(region),
        gpu_memory_(options.gpu && options.listen ? device::export_memory(region.data()) : ""),
        gpu_reads_(std::move(gpu_reads)),
        context_(std::move(context)),
        worker_(std::move(worker)),
        address_(std::move(address)),
        faults_(options, region),
        reads_(region, options.gpu.has_value(), [this](PeerId peer, const ReadRequestFrame& request) {
          if (const Link* link = find(peer)) send_frame(*link, request);
        }) {}

  ~UcxTransfer() override {
    while (!links_.empty()) drop(links_.begin()->second, "closed", ByeFrame{"closed by peer"});
  }

  PeerId connect(const std::string& host, uint16_t port, TimePoint now) override;
  void send(PeerId peer, std::string bytes) override;
  void post_read(uint64_t read_id, PeerId peer, std::span<const CopyRange> ranges) override;
  void cancel_read(uint64_t read_id) override {
    const Error error = cancelled(fmt::format("read {} cancelled", read_id));
    if (gpu_reads_ == nullptr || !gpu_reads_->fail(read_id, error)) reads_.fail(read_id, error);
  }
  void disconnect(PeerId peer) override;
  bool poll(TimePoint now, std::vector<TransferEvent>& events) override;
  std::string address() const override { return address_; }
  uint64_t bytes_read() const override { return reads_.bytes_read() + (gpu_reads_ ? gpu_reads_->bytes_read() : 0); }

 private:
  Link* find(PeerId peer) {
    const auto it = links_.find(peer.value);
    return it == links_.end() ? nullptr : &it->second;
  }
  Link& add_link(transport::EndpointId endpoint, TimePoint now);
  void handle(transport::Event& event, TimePoint now);
  void on_bytes(Link& link, std::string_view bytes, TimePoint now);
  void on_hello(Link& link, const HelloFrame& hello, TimePoint now);
  void on_message_part(Link& link, std::string_view part);
  void serve_read(Link& link, const ReadRequestFrame& request);
  void append_bytes(std::string& to, const std::byte* from, size_t bytes) const;
  GpuSource reach(const Link& link, const HelloFrame& hello) const;
  std::optional<std::string> objection(const Link& link, const HelloFrame& hello) const;
  void send_frame(const Link& link, const LinkFrame& frame) { worker_->send(link.endpoint, encode_link_frame(frame)); }
  void send_message(Link& link, const std::string& bytes);
  HelloFrame own_hello() const;
  void lose(Link& link, const std::string& reason, const std::optional<LinkFrame>& last = std::nullopt);
  void drop(Link& link, const std::string& reason, const std::optional<LinkFrame>& last);
  bool check_timers(TimePoint now);

  const TransferOptions options_;
  const std::span<std::byte> region_;
  const std::string gpu_memory_;               // names the region to GPUs of this host; empty: it is not on one
  const std::unique_ptr<GpuReads> gpu_reads_;  // null: the region is not on a GPU
  const std::unique_ptr<transport::Context> context_;
  const std::unique_ptr<transport::Worker> worker_;
  const std::string address_;
  [[no_unique_address]] ReadFaults faults_;
  UcxReads reads_;
  uint64_t next_peer_ = 1;
  std::map<uint64_t, Link> links_;
  std::unordered_map<uint64_t, uint64_t> peer_of_endpoint_;
  std::vector<TransferEvent> pending_;     // handed out by the next poll
  std::vector<transport::Event> arrived_;  // scratch
};

HelloFrame UcxTransfer::own_hello() const {
  HelloFrame hello;
  hello.epoch = options_.epoch;
  hello.heartbeat_ms =
      uint32_t(std::chrono::duration_cast<std::chrono::milliseconds>(options_.heartbeat_interval).count());
  hello.region_bytes = region_.size();
  hello.gpu_memory = gpu_memory_;
  return hello;
}

Link& UcxTransfer::add_link(transport::EndpointId endpoint, TimePoint now) {
  const PeerId peer{next_peer_++};
  Link& link = links_[peer.value];
  link.peer = peer;
  link.endpoint = endpoint;
  link.greeting_deadline = now + options_.connect_timeout;
  if (endpoint.value != 0) peer_of_endpoint_[endpoint.value] = peer.value;
  return link;
}

PeerId UcxTransfer::connect(const std::string& host, uint16_t port, TimePoint now) {
  const std::string name = fmt::format("{}:{}", host, port);
  const auto start = [&]() -> Result<transport::EndpointId> {
    ASSIGN_OR_RETURN(const transport::SocketAddress address, transport::resolve(host, port));
    return worker_->connect(address);
  };
  const Result<transport::EndpointId> endpoint = start();
  if (!endpoint) {
    const PeerId peer{next_peer_++};
    pending_.push_back(PeerLost{peer, fmt::format("{}: {}", name, endpoint.error().message)});
    return peer;
  }
  Link& link = add_link(*endpoint, now);
  link.name = name;
  link.outbound = true;
  send_frame(link, own_hello());
  return link.peer;
}

void UcxTransfer::send(PeerId peer, std::string bytes) {
  Link* link = find(peer);
  if (link == nullptr) return;
  CHECK(bytes.size() <= kMaxPeerMessageBytes);
  const size_t queued = link->early_bytes + worker_->queued_bytes(link->endpoint);
  if (queued + bytes.size() > kMaxQueuedBytes) {
    lose(*link, fmt::format("send queue full: {} bytes wait", queued));
  } else if (link->state == LinkState::kUp) {
    send_message(*link, bytes);
  } else {
    link->early_bytes += bytes.size();
    link->early.push_back(std::move(bytes));
  }
}

void UcxTransfer::send_message(Link& link, const std::string& bytes) {
  const std::string_view all = bytes;
  send_frame(link, MessageFrame{uint32_t(all.size()), all.substr(0, kPartBytes)});
  for (size_t at = kPartBytes; at < all.size(); at += kPartBytes) {
    send_frame(link, ContinueFrame{all.substr(at, kPartBytes)});
  }
}

void UcxTransfer::post_read(uint64_t read_id, PeerId peer, std::span<const CopyRange> ranges) {
  const Link* link = find(peer);
  if (link == nullptr || link->state != LinkState::kUp) {
    reads_.refuse(read_id, peer_lost(fmt::format("read {}: peer {} is not connected", read_id, peer.value)));
    return;
  }
  const Status checked = check_ranges(read_id, ranges, int64_t(link->region_bytes), int64_t(region_.size()));
  if (!checked) {
    reads_.refuse(read_id, checked.error());
  } else if (link->gpu) {
    gpu_reads_->post(read_id, peer, link->gpu, ranges);
  } else {
    reads_.post(read_id, peer, ranges);
  }
}

void UcxTransfer::disconnect(PeerId peer) {
  if (Link* link = find(peer)) drop(*link, "disconnected", ByeFrame{"disconnected by peer"});
}

// Forgets a link without an event. last: what the other side shall still hear.
void UcxTransfer::drop(Link& link, const std::string& reason, const std::optional<LinkFrame>& last) {
  const Error error = peer_lost(fmt::format("{}: {}", link.name, reason));
  reads_.fail_peer(link.peer, error);
  if (gpu_reads_) gpu_reads_->fail_peer(link.peer, error);
  if (last) send_frame(link, *last);
  worker_->close(link.endpoint, last.has_value());
  peer_of_endpoint_.erase(link.endpoint.value);
  links_.erase(link.peer.value);
}

void UcxTransfer::lose(Link& link, const std::string& reason, const std::optional<LinkFrame>& last) {
  // An inbound caller that was never announced is forgotten without a word.
  if (link.outbound || link.state == LinkState::kUp) {
    pending_.push_back(PeerLost{link.peer, link.name + ": " + reason});
  }
  drop(link, reason, last);
}

void UcxTransfer::on_message_part(Link& link, std::string_view part) {
  link.partial.append(part);
  if (link.partial.size() > link.partial_total) {
    lose(link, "a message is longer than announced", RefuseFrame{"a message longer than announced"});
  } else if (link.partial.size() == link.partial_total) {
    link.partial_total = 0;
    pending_.push_back(PeerMessage{link.peer, std::exchange(link.partial, {})});
  }
}

// The bytes are taken as they are now. Whether they were the right ones is for the handover's confirmation to say.
void UcxTransfer::serve_read(Link& link, const ReadRequestFrame& request) {
  const std::span<const std::byte> region = region_;
  size_t total = 0;
  for (const ReadRequestFrame::Part& part : request.parts) {
    const bool inside = part.bytes <= region.size() && part.offset <= region.size() - part.bytes;
    total += part.bytes;
    if (part.bytes == 0 || !inside || total > size_t(kMaxRequestBytes)) {
      const std::string wrong =
          fmt::format("a read of [{}, +{}) from {} bytes", part.offset, part.bytes, region.size());
      return lose(link, wrong, RefuseFrame{wrong});
    }
  }
  if (worker_->queued_bytes(link.endpoint) + total > kMaxQueuedBytes) return lose(link, "send queue full: reads");
  std::string bytes;
  for (const ReadRequestFrame::Part& part : request.parts) {
    for (size_t at = 0; at < part.bytes;) {
      const size_t step = std::min(part.bytes - at, kPartBytes - bytes.size());
      append_bytes(bytes, region.data() + part.offset + at, step);
      at += step;
      if (bytes.size() < kPartBytes) continue;
      send_frame(link, ReadDataFrame{request.tag, bytes});
      bytes.clear();
    }
  }
  if (!bytes.empty()) send_frame(link, ReadDataFrame{request.tag, bytes});
}

// Why we do not talk to this peer, if so.
std::optional<std::string> UcxTransfer::objection(const Link& link, const HelloFrame& hello) const {
  if (link.state != LinkState::kGreeting) return "a second hello";
  if (hello.epoch != worker_->peer_epoch(link.endpoint)) return "another epoch than it has greeted with";
  if (hello.region_bytes > uint64_t(INT64_MAX)) return fmt::format("a region of {} bytes", hello.region_bytes);
  if (hello.heartbeat_ms > kMaxHeartbeatMs) return fmt::format("a heartbeat every {} ms", hello.heartbeat_ms);
  return std::nullopt;
}

// The peer's cache for copies between GPUs; null: its bytes are asked for, through host memory.
GpuSource UcxTransfer::reach(const Link& link, const HelloFrame& hello) const {
  device::use_gpu(*options_.gpu);
  Result<device::ImportedMemory> memory = device::import_memory(hello.gpu_memory);
  if (memory && memory->bytes() < hello.region_bytes) memory = corrupt("it is smaller than announced");
  if (memory) return std::make_shared<const device::ImportedMemory>(std::move(*memory));
  log::warning("KV transfer with {} goes through host memory: {}", link.name, memory.error().message);
  return nullptr;
}

void UcxTransfer::append_bytes(std::string& to, const std::byte* from, size_t bytes) const {
  const size_t before = to.size();
  to.resize(before + bytes);
  if (options_.gpu) return device::copy_bytes(to.data() + before, from, bytes);
  std::memcpy(to.data() + before, from, bytes);
}

void UcxTransfer::on_hello(Link& link, const HelloFrame& hello, TimePoint now) {
  const std::optional<std::string> wrong = objection(link, hello);
  if (wrong) {
    lose(link, "refused by us: " + *wrong, RefuseFrame{*wrong});
    return;
  }
  if (!link.outbound) send_frame(link, own_hello());
  link.state = LinkState::kUp;
  link.epoch = hello.epoch;
  link.region_bytes = hello.region_bytes;
  if (gpu_reads_ && !hello.gpu_memory.empty()) link.gpu = reach(link, hello);
  link.check_interval = std::max<Duration>(options_.heartbeat_interval, std::chrono::milliseconds(hello.heartbeat_ms));
  link.next_beat = now + options_.heartbeat_interval;
  link.next_check = now + link.check_interval;
  pending_.push_back(PeerConnected{link.peer, link.epoch});
  for (const std::string& bytes : std::exchange(link.early, {})) send_message(link, bytes);
  link.early_bytes = 0;
}

void UcxTransfer::on_bytes(Link& link, std::string_view bytes, TimePoint now) {
  link.heard = true;
  const Result<LinkFrame> frame = decode_link_frame(bytes);
  if (!frame) {
    lose(link, frame.error().message, RefuseFrame{frame.error().message});
    return;
  }
  if (const auto* hello = std::get_if<HelloFrame>(&*frame)) return on_hello(link, *hello, now);
  if (const auto* refuse = std::get_if<RefuseFrame>(&*frame)) return lose(link, "refused: " + refuse->reason);
  if (const auto* bye = std::get_if<ByeFrame>(&*frame)) return lose(link, bye->reason);
  if (link.state != LinkState::kUp) return lose(link, "something else before a hello");
  if (const auto* heartbeat = std::get_if<HeartbeatFrame>(&*frame)) {
    if (heartbeat->epoch != link.epoch)
      lose(link, "a heartbeat of another epoch", RefuseFrame{"a heartbeat of another epoch"});
    return;
  }
  if (const auto* request = std::get_if<ReadRequestFrame>(&*frame)) return serve_read(link, *request);
  if (const auto* data = std::get_if<ReadDataFrame>(&*frame)) {
    const auto deliver = [&](std::string_view bytes) { return reads_.on_data(link.peer, data->tag, bytes); };
    if (!faults_.pass(data->bytes, deliver)) {
      lose(link, "bytes that nobody asked for", RefuseFrame{"bytes that nobody asked for"});
    }
    return;
  }
  const auto* first = std::get_if<MessageFrame>(&*frame);
  if ((first != nullptr) != (link.partial_total == 0) ||
      (first != nullptr && first->total_bytes > kMaxPeerMessageBytes)) {
    return lose(link, "a message out of order or too long", RefuseFrame{"a message out of order or too long"});
  }
  if (first != nullptr) link.partial_total = first->total_bytes;
  on_message_part(link, first != nullptr ? first->part : std::get<ContinueFrame>(*frame).part);
}

void UcxTransfer::handle(transport::Event& event, TimePoint now) {
  if (const auto* accepted = std::get_if<transport::EndpointAccepted>(&event)) {
    Link& link = add_link(accepted->endpoint, now);
    link.name = fmt::format("peer {}", link.peer.value);
    return;
  }
  const auto* message = std::get_if<transport::MessageArrived>(&event);
  const auto* failed = std::get_if<transport::EndpointFailed>(&event);
  CHECK(message != nullptr || failed != nullptr);  // no other events without gets
  const uint64_t endpoint = message != nullptr ? message->endpoint.value : failed->endpoint.value;
  const auto peer = peer_of_endpoint_.find(endpoint);
  if (peer == peer_of_endpoint_.end()) return;
  Link& link = links_.at(peer->second);
  if (message != nullptr) {
    on_bytes(link, message->bytes, now);
  } else {
    lose(link, failed->reason);
  }
}

// A missed interval counts only when this side was looking: whatever had arrived was handled before, and one poll
// counts at most one, so a process that stood still itself does not take its peers for dead.
bool UcxTransfer::check_timers(TimePoint now) {
  bool any = false;
  for (auto it = links_.begin(); it != links_.end();) {
    Link& link = (it++)->second;  // losing it erases it
    if (link.state == LinkState::kGreeting) {
      if (now < link.greeting_deadline) continue;
      any = true;
      lose(link, fmt::format("no answer within {} s", seconds(options_.connect_timeout)));
      continue;
    }
    if (now >= link.next_beat) {
      link.next_beat = now + options_.heartbeat_interval;
      send_frame(link, HeartbeatFrame{options_.epoch});
    }
    if (now < link.next_check) continue;
    link.next_check = now + link.check_interval;
    link.misses = link.heard ? 0 : link.misses + 1;
    link.heard = false;
    if (link.misses < options_.heartbeat_max_failures) continue;
    any = true;
    lose(link, fmt::format("{} heartbeats missed", link.misses));
  }
  return any;
}

bool UcxTransfer::poll(TimePoint now, std::vector<TransferEvent>& events) {
  bool any = false;
  for (int i = 0; i < kRoundsPerPoll && pending_.size() < kMaxEventsPerPoll; ++i) {
    if (!worker_->progress(now, arrived_)) break;
    any = true;
    for (transport::Event& event : arrived_) handle(event, now);
    arrived_.clear();
    reads_.advance(events);
  }
  any |= check_timers(now);
  any |= reads_.advance(events);
  if (gpu_reads_) any |= gpu_reads_->advance(events);
  any |= !pending_.empty();
  for (TransferEvent& event : pending_) events.push_back(std::move(event));
  pending_.clear();
  return any;
}

Status validate(const TransferOptions& options) {
  if (options.heartbeat_interval < std::chrono::milliseconds(1) ||
      options.heartbeat_interval > std::chrono::milliseconds(kMaxHeartbeatMs) || options.heartbeat_max_failures < 1) {
    return invalid_input(fmt::format("heartbeat every {} s, {} failures: wanted 0.001 to 3600 s and at least 1",
                                     seconds(options.heartbeat_interval), options.heartbeat_max_failures));
  }
  return Ok{};
}

}  // namespace

Result<std::unique_ptr<KvTransfer>> make_ucx_transfer(const TransferOptions& options, std::span<std::byte> region) {
  RETURN_IF_ERROR(validate(options));
  // UCX is not told of GPU memory: Debian's knows nothing of it.
  const std::span<std::byte> registered = options.gpu ? std::span<std::byte>() : region;
  ASSIGN_OR_RETURN(auto context,
                   transport::Context::create(registered, false, options.devices, {options.secret, options.epoch}));
  ASSIGN_OR_RETURN(auto worker, transport::Worker::create(*context));
  uint16_t port = 0;
  if (options.listen) {
    ASSIGN_OR_RETURN(port, worker->listen(options.host, options.port));
  }
  std::unique_ptr<GpuReads> gpu_reads;
  if (options.gpu) {
    device::use_gpu(*options.gpu);
    ASSIGN_OR_RETURN(gpu_reads, GpuReads::create(region, *options.gpu));
  }
  return std::unique_ptr<KvTransfer>(std::make_unique<UcxTransfer>(options, std::move(context), std::move(worker),
                                                                   fmt::format("{}:{}", options.host, port), region,
                                                                   std::move(gpu_reads)));
}

}  // namespace tandem::kv
