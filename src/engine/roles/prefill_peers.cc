#include "engine/roles/prefill_peers.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace tandem::engine {
namespace {

// The backend gives a connect up after 5 s by itself; this covers it and the two messages of the handshake.
constexpr Duration kHandshakeDeadline = std::chrono::seconds(15);

// Beyond these, prefill's own deadline ends what waits for this side.
constexpr size_t kMaxFarewells = 4096;

constexpr size_t kMaxCalling = 256;  // addresses that are being connected to or greeted

}  // namespace

PrefillPeers::PrefillPeers(Outbox& outbox, const api::KvIdentity& identity, std::string log_scope)
    : outbox_(outbox), identity_(identity), log_scope_(std::move(log_scope)) {}

std::string PrefillPeers::address_of(const std::string& host, uint16_t port) {
  return fmt::format("{}:{}", host, port);
}

void PrefillPeers::want(const std::string& host, uint16_t port, TimePoint now) {
  const std::string address = address_of(host, port);
  if (by_address_.contains(address)) return;
  PrefillPeer& peer = by_address_[address];
  peer.address = address;
  peer.connect_id = next_connect_++;
  peer.deadline = now + kHandshakeDeadline;
  outbox_.notes().connecting(address);
  outbox_.command(kv::ConnectCommand{peer.connect_id, host, port});
}

bool PrefillPeers::has_room_for(const std::string& address) const {
  if (knows(address)) return true;
  const auto calling = [](const auto& entry) { return entry.second.state != PrefillPeer::State::kReady; };
  return size_t(std::ranges::count_if(by_address_, calling)) < kMaxCalling;
}

const PrefillPeer* PrefillPeers::ready(const std::string& address) const {
  const auto known = by_address_.find(address);
  if (known == by_address_.end() || known->second.state != PrefillPeer::State::kReady) return nullptr;
  return &known->second;
}

void PrefillPeers::give_up(const std::string& address, api::HandoverAbort abort) {
  const auto known = by_address_.find(address);
  if (known == by_address_.end()) return;
  PrefillPeer& peer = known->second;
  if (peer.state == PrefillPeer::State::kReady) return outbox_.send(*peer.id, abort);
  if (peer.farewells.size() < kMaxFarewells) peer.farewells.push_back(std::move(abort));
}

PrefillPeer* PrefillPeers::find(PeerId id) {
  for (auto& [address, peer] : by_address_) {  // a handful
    if (peer.id == id) return &peer;
  }
  return nullptr;
}

PeerGone PrefillPeers::drop(PrefillPeer& peer, std::string reason) {
  PeerGone gone{peer.address, std::move(reason), peer.state == PrefillPeer::State::kReady};
  if (peer.state == PrefillPeer::State::kConnecting) outbox_.notes().lost(peer.address);
  if (peer.id) outbox_.notes().lost(*peer.id);
  if (peer.id) outbox_.command(kv::DisconnectCommand{*peer.id});
  by_address_.erase(gone.address);
  return gone;
}

PeerNews PrefillPeers::take(const kv::TransferReport& report, TimePoint now) {
  if (const auto* started = std::get_if<kv::ConnectStarted>(&report)) {
    for (auto& [address, peer] : by_address_) {
      if (peer.connect_id != started->connect_id) continue;
      peer.id = started->peer;
      return {};
    }
    outbox_.command(kv::DisconnectCommand{started->peer});  // given up before it began
    return {};
  }
  if (const auto* connected = std::get_if<kv::PeerConnected>(&report)) {
    PrefillPeer* peer = find(connected->peer);
    if (peer == nullptr) return {};
    peer->state = PrefillPeer::State::kGreeting;
    peer->epoch = connected->epoch;
    outbox_.notes().connected(connected->peer, connected->epoch, peer->address);
    outbox_.send(connected->peer, api::HandoverHello{identity_});
    return {};
  }
  if (const auto* lost = std::get_if<kv::PeerLost>(&report)) {
    PrefillPeer* peer = find(lost->peer);
    if (peer == nullptr) return {};
    outbox_.notes().lost(lost->peer);
    peer->id.reset();  // nothing to disconnect from
    return drop(*peer, lost->reason);
  }
  if (const auto* message = std::get_if<kv::PeerMessage>(&report)) {
    PrefillPeer* peer = find(message->peer);
    if (peer == nullptr) return {};
    return receive(*peer, message->bytes, now);
  }
  return {};
}

PeerNews PrefillPeers::receive(PrefillPeer& peer, const std::string& bytes, TimePoint now) {
  Result<api::HandoverEnvelope> decoded = api::decode_handover(bytes);
  if (!decoded) return drop(peer, decoded.error().message);
  if (decoded->epoch != peer.epoch) {
    return drop(peer,
                fmt::format("epoch differs: the connection has {:x}, the message {:x}", peer.epoch, decoded->epoch));
  }
  if (peer.id) outbox_.notes().received(*peer.id, decoded->message);
  const auto* reply = std::get_if<api::HandoverHelloReply>(&decoded->message);
  if (reply == nullptr) {
    if (peer.state != PrefillPeer::State::kReady) return drop(peer, "a message came before the handshake");
    return PeerSays{peer.address, std::move(decoded->message)};
  }
  if (!reply->accepted) return drop(peer, "handshake refused: " + reply->reason);
  // Both sides look: a prefill that checks less must not be able to hand over bytes of another shape.
  if (const Status same = check_compatible(reply->identity, identity_); !same) {
    return drop(peer, "handshake refused: " + same.error().message);
  }
  peer.state = PrefillPeer::State::kReady;
  peer.ready_at = now;
  peer.num_blocks = int32_t(reply->num_blocks);
  peer.ranks = reply->ranks;
  for (const api::HandoverAbort& farewell : std::exchange(peer.farewells, {})) outbox_.send(*peer.id, farewell);
  log::write(
      log::Level::kInfo, log_scope_,
      fmt::format("handover prefill={} epoch={:x} blocks={} connected", peer.address, peer.epoch, peer.num_blocks));
  return {};
}

std::vector<PeerGone> PrefillPeers::expire(TimePoint now) {
  std::vector<std::string> late;
  for (const auto& [address, peer] : by_address_) {
    if (peer.state != PrefillPeer::State::kReady && now >= peer.deadline) late.push_back(address);
  }
  std::vector<PeerGone> gone;
  for (const std::string& address : late) {
    gone.push_back(drop(by_address_.at(address), fmt::format("no handshake within {} s", seconds(kHandshakeDeadline))));
  }
  return gone;
}

}  // namespace tandem::engine
