// PendingReply: an answer that another thread's work and a deadline race for. Loop's thread.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "api/error.h"
#include "server/core/core.h"

namespace tandem::server {

struct PendingReply {
  Writer writer;
  std::shared_ptr<net::EventLoop::Timer> timer;

  // The first call answers.
  void send(int status, std::string body, std::string content_type) {
    if (!writer) return;
    net::HttpResponse response;
    response.status = status;
    response.body = std::move(body);
    response.content_type = std::move(content_type);
    std::exchange(writer, nullptr)->send(std::move(response));
    timer.reset();
  }
};

inline void arm(Core& core, const std::shared_ptr<PendingReply>& pending) {
  pending->timer = core.loop().after(core.config().control_timeout, [weak = std::weak_ptr<PendingReply>(pending)] {
    auto late = weak.lock();
    if (late) late->send(500, api::abort_error_body("The engine did not answer in time.", 500), "application/json");
  });
}

}  // namespace tandem::server
