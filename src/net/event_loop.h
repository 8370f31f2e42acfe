// EventLoop: one thread of HTTP work (a thin door over Boost.Asio; no Boost header leaves this room).
#pragma once

#include <functional>
#include <memory>

#include "base/clock.h"

namespace tandem::net {

class EventLoop {
 public:
  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs until stop(). One thread only; that thread is "the loop's thread" below.
  void run();
  void stop();                            // any thread, also from a handler
  void post(std::function<void()> task);  // any thread; runs on the loop's thread, in order
  // Runs task on the loop's thread after `delay` unless the returned handle is destroyed before.
  class Timer;
  std::shared_ptr<Timer> after(Duration delay, std::function<void()> task);  // the loop's thread

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem::net
