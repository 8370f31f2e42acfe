// PrefillPeers: a decode server's connections, one per prefill address, from connect to handshake to loss. After a loss
// the next request starts over: the peer may have come back as another process. Owner: the engine thread.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "api/handover.h"
#include "engine/roles/outbox.h"

namespace tandem::engine {

struct PrefillPeer {
  enum class State : uint8_t { kConnecting, kGreeting, kReady };
  std::string address;  // "host:port", the key
  State state = State::kConnecting;
  uint64_t connect_id = 0;
  std::optional<PeerId> id;
  uint64_t epoch = 0;
  int32_t num_blocks = 0;
  std::vector<api::RankAddress> ranks;        // of the server; empty: it has one rank
  TimePoint deadline{};                       // of connecting and greeting
  TimePoint ready_at{};                       // when the handshake was done
  std::vector<api::HandoverAbort> farewells;  // rooms given up before the handshake was done
};

// What became of a report.
struct PeerGone {  // connect failed, refused, lost: its requests are to end
  std::string address, reason;
  bool was_ready = false;
};
struct PeerSays {
  std::string address;
  api::HandoverMessage message;
};
using PeerNews = std::variant<std::monostate, PeerGone, PeerSays>;

class PrefillPeers {
 public:
  PrefillPeers(Outbox& outbox, const api::KvIdentity& identity, std::string log_scope);

  // Starts a connection unless there is one.
  void want(const std::string& host, uint16_t port, TimePoint now);
  const PrefillPeer* ready(const std::string& address) const;  // null: not (yet)
  bool knows(const std::string& address) const { return by_address_.contains(address); }
  // False: too many addresses have not answered yet. Requests name them, so that anybody could make up more.
  bool has_room_for(const std::string& address) const;
  // Tells the address that a room is given up, now or once the handshake is done.
  void give_up(const std::string& address, api::HandoverAbort abort);
  PeerNews take(const kv::TransferReport& report, TimePoint now);
  // Connections and handshakes that took too long.
  std::vector<PeerGone> expire(TimePoint now);
  static std::string address_of(const std::string& host, uint16_t port);

 private:
  PeerNews receive(PrefillPeer& peer, const std::string& bytes, TimePoint now);
  PeerGone drop(PrefillPeer& peer, std::string reason);
  PrefillPeer* find(PeerId id);

  Outbox& outbox_;
  const api::KvIdentity identity_;
  const std::string log_scope_;
  std::map<std::string, PrefillPeer> by_address_;
  uint64_t next_connect_ = 1;
};

}  // namespace tandem::engine
