// Intake: one thread for what would stall the loop, which is parsing and tokenizing large bodies. Jobs run in order;
// the destructor drops those that wait.
#pragma once

#include <functional>
#include <thread>

#include "base/queue.h"

namespace tandem::server {

class Intake {
 public:
  Intake();
  ~Intake();
  // False: full. job runs on the intake thread and must only compute and post.
  bool push(std::function<void()> job);

 private:
  void run(std::stop_token stop);

  static constexpr size_t kCapacity = 256;
  BoundedQueue<std::function<void()>> queue_{kCapacity};
  std::jthread thread_;
};

}  // namespace tandem::server
