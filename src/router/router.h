// Router: the HTTP face of a fleet. Picks a prefill and a decode server for each generation request (or one plain
// server), watches their health, retries before the first byte of an answer, and hands the rest of the API to whom it
// concerns. The application makes an HttpServer with handler(). Everything runs on the loop's thread.
#pragma once

#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "net/event_loop.h"
#include "net/http_server.h"
#include "profile/metrics.h"
#include "router/config.h"

namespace tandem::router {

class Router {
 public:
  // Health checks begin on the loop. Errors: what is wrong with the configuration. loop, clock and metrics outlive the
  // router. Any thread, before the loop runs or on it.
  static Result<std::unique_ptr<Router>> create(net::EventLoop& loop, RouterConfig config, const Clock& clock,
                                                uint64_t seed, profile::Metrics& metrics);
  // The loop's thread, or when the loop does not run; running requests are cut. The HttpServer may go before or after,
  // if no request reaches handler() any more.
  ~Router();

  // Serves requests until the router goes.
  net::HttpHandler handler();
  // New generation requests get 503; running ones go on. For a shutdown: wait for running() to become 0.
  void drain();
  size_t running() const;  // generation requests, waiting ones included
  bool ready() const;      // a healthy prefill-decode pair, or a healthy plain instance

  struct Impl;

 private:
  explicit Router(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem::router
