// Prober: asks the instances how they are, in the background. The loop's thread.
#pragma once

#include <memory>

#include "router/ask.h"

namespace tandem::router {

class Prober {
 public:
  explicit Prober(Fleet& fleet);
  void start();

 private:
  void tick();
  void check(const std::shared_ptr<Instance>& instance);
  void checked(Instance& instance, const Reply& reply);
  void poll_loads();
  void ask_ranks(const std::shared_ptr<Instance>& instance);

  Fleet& fleet_;
  const bool polls_loads_;
  const TimePoint startup_deadline_;
  bool startup_reported_ = false;
  TimePoint next_load_poll_{};
  std::shared_ptr<net::EventLoop::Timer> timer_;
};

}  // namespace tandem::router
