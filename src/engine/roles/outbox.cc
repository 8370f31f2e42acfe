#include "engine/roles/outbox.h"

namespace tandem::engine {
namespace {

// Messages that may wait here: the transfer side normally takes them within microseconds.
constexpr size_t kMaxWaiting = 1 << 18;

}  // namespace

void Outbox::send(PeerId peer, const api::HandoverMessage& message) {
  if (cut_off_.contains(peer)) return;
  if (waiting_.size() >= kMaxWaiting) {
    // Deadlines on both sides end the requests of this peer.
    cut_off_.insert(peer);
    waiting_.push_back(kv::DisconnectCommand{peer});
    return;
  }
  notes_.sent(peer, message);
  command(kv::SendCommand{peer, api::encode_handover(epoch_, message)});
}

void Outbox::command(kv::TransferCommand command) {
  waiting_.push_back(std::move(command));
  flush();
}

void Outbox::flush() {
  while (!waiting_.empty()) {
    // The engine is the only producer: room seen is room kept.
    if (port_.commands.size() >= port_.commands.capacity()) return;
    if (port_.commands.push(std::move(waiting_.front())) != PushResult::kPushed) return;
    waiting_.pop_front();
  }
}

}  // namespace tandem::engine
