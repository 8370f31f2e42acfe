// Inbox: carries the engine's events to the loop's thread, many in one posted task. The sink may outlive the inbox's
// owner.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "api/generate.h"
#include "base/queue.h"
#include "net/event_loop.h"

namespace tandem::server {

class Inbox : public std::enable_shared_from_this<Inbox> {
 public:
  using Reader = std::function<void(std::vector<api::EngineEvent>&)>;

  explicit Inbox(net::EventLoop& loop) : loop_(loop) {}
  // The engine's thread. Full: waits for the reader, which never waits for the engine.
  void push(api::EngineEvent event);
  // The loop's thread, before events come.
  void set_reader(Reader reader) { reader_ = std::move(reader); }
  // The loop's thread: events are dropped from now on.
  void close();

 private:
  void read();

  static constexpr size_t kCapacity = size_t(1) << 18;
  static constexpr size_t kEventsPerTurn = 4096;  // then others have their turn on the loop

  net::EventLoop& loop_;
  BoundedQueue<api::EngineEvent> queue_{kCapacity};
  std::atomic<bool> posted_{false};
  Reader reader_;
};

}  // namespace tandem::server
