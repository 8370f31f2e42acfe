// The Asio side of EventLoop, for this room's sources only.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <utility>

#include "net/event_loop.h"

namespace tandem::net {

namespace asio = boost::asio;

struct EventLoop::Impl {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard{context.get_executor()};
};

// A deadline that moves often and fires rarely: moving it later costs no timer operation, the running timer notices
// when it fires. Part of an object owned by shared_ptr; the loop's thread.
class Deadline {
 public:
  explicit Deadline(asio::io_context& context) : timer_(context) {}

  // Once, before set(): expired() is called while owner lives.
  void bind(std::weak_ptr<void> owner, std::function<void()> expired) {
    owner_ = std::move(owner);
    expired_ = std::move(expired);
  }
  void set(Duration from_now) {
    at_ = std::chrono::steady_clock::now() + from_now;
    if (!armed_ || at_ < armed_at_) arm();
  }
  void clear() { at_ = TimePoint::max(); }

 private:
  void arm() {
    armed_ = true;
    armed_at_ = at_;
    timer_.expires_at(at_);
    timer_.async_wait([this, owner = owner_](const boost::system::error_code& error) {
      auto alive = owner.lock();
      if (!alive || error) return;
      armed_ = false;
      if (at_ == TimePoint::max()) return;
      if (std::chrono::steady_clock::now() < at_) return arm();
      at_ = TimePoint::max();
      expired_();
    });
  }

  asio::steady_timer timer_;
  std::weak_ptr<void> owner_;
  std::function<void()> expired_;
  TimePoint at_ = TimePoint::max();
  TimePoint armed_at_ = TimePoint::max();
  bool armed_ = false;
};

}  // namespace tandem::net
