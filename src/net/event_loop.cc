#include "net/event_loop.h"

#include <boost/asio/post.hpp>
#include <exception>

#include "base/log.h"
#include "net/detail/loop_impl.h"

namespace tandem::net {

class EventLoop::Timer {
 public:
  explicit Timer(asio::io_context& context) : timer(context) {}
  asio::steady_timer timer;
};

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {}
EventLoop::~EventLoop() = default;

void EventLoop::run() {
  // A task that throws is a fault of its author; the other connections of this loop must outlive it.
  for (;;) {
    try {
      impl_->context.run();
      return;
    } catch (const std::exception& e) {
      log::error("event loop: a task threw: {}", e.what());
    }
  }
}

void EventLoop::stop() { impl_->context.stop(); }

void EventLoop::post(std::function<void()> task) { asio::post(impl_->context, std::move(task)); }

std::shared_ptr<EventLoop::Timer> EventLoop::after(Duration delay, std::function<void()> task) {
  auto timer = std::make_shared<Timer>(impl_->context);
  timer->timer.expires_after(delay);
  timer->timer.async_wait([weak = std::weak_ptr<Timer>(timer), task = std::move(task)](const auto& error) {
    if (error) return;
    if (auto alive = weak.lock()) task();
  });
  return timer;
}

}  // namespace tandem::net
