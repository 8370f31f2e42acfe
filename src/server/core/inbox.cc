#include "server/core/inbox.h"

#include <thread>

namespace tandem::server {

void Inbox::push(api::EngineEvent event) {
  PushResult result = PushResult::kFull;
  while (true) {
    // A refused value is lost with the call: keep it until it is taken.
    if (queue_.size() < queue_.capacity()) result = queue_.push(std::move(event));
    if (result != PushResult::kFull) break;
    std::this_thread::yield();
  }
  if (result == PushResult::kClosed) return;
  if (posted_.exchange(true)) return;
  loop_.post([self = shared_from_this()] { self->read(); });
}

void Inbox::close() {
  queue_.close();
  reader_ = nullptr;
}

void Inbox::read() {
  // Before the queue is read: what is pushed from now on posts again.
  posted_.store(false);
  std::vector<api::EngineEvent> events;
  while (events.size() < kEventsPerTurn) {
    std::optional<api::EngineEvent> event = queue_.try_pop();
    if (!event) break;
    events.push_back(std::move(*event));
  }
  if (events.size() == kEventsPerTurn && !posted_.exchange(true)) {
    loop_.post([self = shared_from_this()] { self->read(); });
  }
  if (reader_ && !events.empty()) reader_(events);
}

}  // namespace tandem::server
