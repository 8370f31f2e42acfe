// EnginePort: the way to the engine. Submitting answers full at once; a cancel or an order is never lost: what does not
// fit into the engine's queue is tried again. Loop's thread.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "net/event_loop.h"

namespace tandem::server {

class EnginePort {
 public:
  explicit EnginePort(net::EventLoop& loop) : loop_(loop) {}

  void attach(engine::EngineDoor& engine, engine::ExpertBalancer* experts) {
    engine_ = &engine;
    experts_ = experts;
  }
  engine::EngineDoor* engine() const { return engine_; }
  engine::ExpertBalancer* experts() const { return experts_; }  // null: none

  PushResult submit(api::EngineRequest request);
  void cancel(RequestId id, engine::CancelReason reason, std::string matched_text);
  // done(flushed) runs on the loop's thread. False: the engine's queue is full.
  bool flush_cache(std::function<void(bool)> done);
  // An order that all ranks take, tried again until all have; taken() runs then, on the loop's thread. False: there is
  // no engine, or too many orders wait.
  bool order(engine::Command command, std::function<void()> taken);
  uint8_t next_hold_version() { return ++hold_version_; }
  // done(status) runs on the loop's thread. False: there is no engine.
  bool profile(engine::ProfileCommand command, std::function<void(Status)> done);
  void drain();

 private:
  struct Order {
    engine::Command command;
    std::function<void()> taken;
  };
  bool push(engine::Command command);
  void send_waiting();

  net::EventLoop& loop_;
  engine::EngineDoor* engine_ = nullptr;
  engine::ExpertBalancer* experts_ = nullptr;
  std::deque<engine::CancelCommand> cancels_;  // bounded by the requests that were submitted
  std::deque<Order> orders_;
  uint8_t hold_version_ = 0;
  bool drain_waits_ = false;
  std::shared_ptr<net::EventLoop::Timer> timer_;
};

}  // namespace tandem::server
