#include "server/core/intake.h"

namespace tandem::server {

Intake::Intake() : thread_([this](std::stop_token stop) { run(std::move(stop)); }) {}

Intake::~Intake() {
  thread_.request_stop();
  queue_.close();
  thread_.join();
}

bool Intake::push(std::function<void()> job) { return queue_.push(std::move(job)) == PushResult::kPushed; }

void Intake::run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    if (auto job = queue_.pop(std::chrono::seconds(1))) (*job)();
  }
}

}  // namespace tandem::server
