// HandoverNotes: a rank's words with the other side of its handovers, noted in its flight recorder: by whom and of
// which room. Left out is what nobody waits for: announcements but those of the last layer, and queued rooms. Owner:
// the engine thread. A null recorder: nothing is noted.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "api/handover.h"
#include "base/ids.h"
#include "profile/flight_recorder.h"

namespace tandem::engine {

class HandoverNotes {
 public:
  explicit HandoverNotes(profile::FlightRecorder* flight) : flight_(flight) {}

  void connecting(const std::string& address);
  void connected(PeerId peer, uint64_t epoch, const std::string& address);
  void lost(PeerId peer);
  void lost(const std::string& address);  // before it had answered
  void sent(PeerId peer, const api::HandoverMessage& message) {
    if (flight_ != nullptr) note(profile::FlightKind::kSent, peer, message);
  }
  void received(PeerId peer, const api::HandoverMessage& message) {
    if (flight_ != nullptr) note(profile::FlightKind::kReceived, peer, message);
  }

 private:
  struct Peer {
    uint64_t epoch = 0;
    std::string address;
  };
  void note(profile::FlightKind kind, PeerId peer, const api::HandoverMessage& message);
  void write(profile::FlightKind kind, uint8_t detail, uint64_t room, const Peer& peer);

  profile::FlightRecorder* const flight_;
  std::map<PeerId, Peer> peers_;
};

}  // namespace tandem::engine
