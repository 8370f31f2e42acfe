#include "engine/roles/handover_notes.h"

#include <type_traits>
#include <variant>

namespace tandem::engine {
namespace {

using profile::FlightKind;
using profile::FlightMessage;

template <FlightMessage kNumber, class T>
constexpr bool kIs = std::is_same_v<std::variant_alternative_t<size_t(kNumber), api::HandoverMessage>, T>;
static_assert(kIs<FlightMessage::kHello, api::HandoverHello>);
static_assert(kIs<FlightMessage::kHelloReply, api::HandoverHelloReply>);
static_assert(kIs<FlightMessage::kWant, api::HandoverWant>);
static_assert(kIs<FlightMessage::kSource, api::HandoverSource>);
static_assert(kIs<FlightMessage::kAnnounce, api::HandoverAnnounce>);
static_assert(kIs<FlightMessage::kConfirm, api::HandoverConfirm>);
static_assert(kIs<FlightMessage::kConfirmed, api::HandoverConfirmed>);
static_assert(kIs<FlightMessage::kAck, api::HandoverAck>);
static_assert(kIs<FlightMessage::kAbort, api::HandoverAbort>);
static_assert(kIs<FlightMessage::kQueued, api::HandoverQueued>);

uint64_t room_of(const api::HandoverMessage& message) {
  return std::visit(
      [](const auto& value) -> uint64_t {
        if constexpr (requires { value.room; }) return value.room;
        return 0;
      },
      message);
}

}  // namespace

void HandoverNotes::connecting(const std::string& address) { write(FlightKind::kConnect, 0, 0, {0, address}); }

void HandoverNotes::connected(PeerId peer, uint64_t epoch, const std::string& address) {
  if (flight_ == nullptr) return;
  const Peer& known = peers_[peer] = {epoch, address};
  write(FlightKind::kConnected, 0, 0, known);
}

void HandoverNotes::lost(PeerId peer) {
  const auto known = peers_.find(peer);
  if (known == peers_.end()) return;
  write(FlightKind::kPeerLost, 0, 0, known->second);
  peers_.erase(known);
}

void HandoverNotes::lost(const std::string& address) { write(FlightKind::kPeerLost, 0, 0, {0, address}); }

void HandoverNotes::note(FlightKind kind, PeerId peer, const api::HandoverMessage& message) {
  if (std::holds_alternative<api::HandoverQueued>(message)) return;
  if (const auto* announce = std::get_if<api::HandoverAnnounce>(&message)) {
    if (announce->layer_end != uint32_t(flight_->num_layers())) return;
  }
  const auto known = peers_.find(peer);
  if (known == peers_.end()) return;
  write(kind, uint8_t(message.index()), room_of(message), known->second);
}

void HandoverNotes::write(FlightKind kind, uint8_t detail, uint64_t room, const Peer& peer) {
  if (flight_ == nullptr) return;
  profile::FlightEntry entry;
  entry.kind = kind;
  entry.detail = detail;
  entry.step = room;
  profile::set_flight_peer(entry, peer.epoch, peer.address);
  flight_->add(entry);
}

}  // namespace tandem::engine
