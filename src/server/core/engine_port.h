// EnginePort: the way to the engine. Submitting answers full at once; a cancel is never lost: what does not fit into
// the engine's queue is tried again. Loop's thread.
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
  // done(status) runs on the loop's thread. False: there is no engine.
  bool profile(engine::ProfileCommand command, std::function<void(Status)> done);
  void drain();

 private:
  bool push(engine::Command command);
  void send_waiting();

  net::EventLoop& loop_;
  engine::EngineDoor* engine_ = nullptr;
  engine::ExpertBalancer* experts_ = nullptr;
  std::deque<engine::CancelCommand> cancels_;  // bounded by the requests that were submitted
  bool drain_waits_ = false;
  std::shared_ptr<net::EventLoop::Timer> timer_;
};

}  // namespace tandem::server
