// Admission: at most so many requests at once, a bounded queue before it. Pure but for the callbacks; the loop's
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <list>

#include "base/clock.h"

namespace tandem::router {

class Admission {
 public:
  enum class Entry { kRunning, kWaiting, kFull };

  // limit: -1 for none.
  Admission(int limit, size_t queue_size) : limit_(limit), queue_size_(queue_size) {}

  // kRunning: start() was called; each start is matched by one leave(). kWaiting: it will be called, or has to be
  // forgotten by ticket before that. kFull: neither.
  Entry enter(std::function<void()> start, uint64_t& ticket);
  bool forget(uint64_t ticket);  // true: it was still waiting
  void leave();

  size_t running() const { return running_; }
  size_t waiting() const { return queue_.size(); }

 private:
  struct Waiting {
    uint64_t ticket;
    std::function<void()> start;
  };
  const int limit_;
  const size_t queue_size_;
  size_t running_ = 0;
  uint64_t next_ticket_ = 1;
  std::list<Waiting> queue_;
};

}  // namespace tandem::router
