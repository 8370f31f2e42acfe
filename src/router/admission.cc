#include "router/admission.h"

#include <utility>

#include "base/check.h"

namespace tandem::router {

Admission::Entry Admission::enter(std::function<void()> start, uint64_t& ticket) {
  if (limit_ < 0 || running_ < static_cast<size_t>(limit_)) {
    ++running_;
    start();
    return Entry::kRunning;
  }
  if (queue_.size() >= queue_size_) return Entry::kFull;
  ticket = next_ticket_++;
  queue_.push_back({ticket, std::move(start)});
  return Entry::kWaiting;
}

bool Admission::forget(uint64_t ticket) {
  return queue_.remove_if([&](const Waiting& waiting) { return waiting.ticket == ticket; }) > 0;
}

void Admission::leave() {
  CHECK(running_ > 0);
  --running_;
  if (queue_.empty()) return;
  auto start = std::move(queue_.front().start);
  queue_.pop_front();
  ++running_;
  start();
}

}  // namespace tandem::router
