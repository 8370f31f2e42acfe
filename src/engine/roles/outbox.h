// Outbox: the engine's commands to the transfer side, in order. Never blocks: what the port does not take now goes with
// the next flush. Bounded by cutting off a peer that does not drain. Owner: the engine thread.
#pragma once

#include <deque>
#include <set>

#include "api/handover.h"
#include "engine/roles/handover_notes.h"
#include "kv/transfer_thread.h"

namespace tandem::engine {

class Outbox {
 public:
  Outbox(kv::TransferPort& port, uint64_t epoch, profile::FlightRecorder* flight)
      : port_(port), epoch_(epoch), notes_(flight) {}

  void send(PeerId peer, const api::HandoverMessage& message);
  void command(kv::TransferCommand command);
  void flush();
  HandoverNotes& notes() { return notes_; }

 private:
  kv::TransferPort& port_;
  const uint64_t epoch_;
  HandoverNotes notes_;
  std::deque<kv::TransferCommand> waiting_;
  std::set<PeerId> cut_off_;
};

}  // namespace tandem::engine
