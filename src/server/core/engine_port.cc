#include "server/core/engine_port.h"

#include <utility>

namespace tandem::server {

PushResult EnginePort::submit(api::EngineRequest request) {
  if (!engine_) return PushResult::kClosed;
  return engine_->submit(engine::SubmitCommand{std::move(request)});
}

void EnginePort::cancel(RequestId id, engine::CancelReason reason, std::string matched_text) {
  if (!engine_) return;
  cancels_.push_back({id, reason, std::move(matched_text)});
  if (!timer_) send_waiting();
}

bool EnginePort::flush_cache(std::function<void(bool)> done) {
  if (!engine_) return false;
  net::EventLoop& loop = loop_;
  auto reply = [&loop, done = std::move(done)](bool flushed) { loop.post([done, flushed] { done(flushed); }); };
  return engine_->submit(engine::FlushCacheCommand{std::move(reply)}) == PushResult::kPushed;
}

bool EnginePort::order(engine::Command command, std::function<void()> taken) {
  constexpr size_t kMostWaiting = 64;
  if (!engine_ || orders_.size() >= kMostWaiting) return false;
  orders_.push_back({std::move(command), std::move(taken)});
  if (!timer_) send_waiting();
  return true;
}

bool EnginePort::profile(engine::ProfileCommand command, std::function<void(Status)> done) {
  if (!engine_) return false;
  net::EventLoop& loop = loop_;
  command.done = [&loop, done = std::move(done)](const Status& status) { loop.post([done, status] { done(status); }); };
  return engine_->submit(std::move(command)) == PushResult::kPushed;
}

void EnginePort::drain() {
  if (!engine_) return;
  drain_waits_ = true;
  if (!timer_) send_waiting();
}

bool EnginePort::push(engine::Command command) { return engine_->submit(std::move(command)) != PushResult::kFull; }

void EnginePort::send_waiting() {
  timer_.reset();
  while (!cancels_.empty() && push(cancels_.front())) cancels_.pop_front();
  while (cancels_.empty() && !orders_.empty() && push(orders_.front().command)) {
    const Order taken = std::move(orders_.front());
    orders_.pop_front();
    taken.taken();
  }
  if (drain_waits_ && cancels_.empty() && push(engine::DrainCommand{})) drain_waits_ = false;
  if (cancels_.empty() && orders_.empty() && !drain_waits_) return;
  constexpr Duration kRetryAfter = std::chrono::milliseconds(2);
  timer_ = loop_.after(kRetryAfter, [this] { send_waiting(); });
}

}  // namespace tandem::server
