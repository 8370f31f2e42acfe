// Exchange: one request's answer on its way out. Writers on any thread put bytes in, the connection on the loop's
// thread takes them out, whatever has gathered meanwhile in one piece. Holds the only mutex of this room.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "net/event_loop.h"
#include "net/http_server.h"

namespace tandem::net {

// phase:  kWaiting --send()--> kComplete
//         kWaiting --begin()--> kStreaming --end()--> kComplete
// closed is set at any time: by the client's hang-up, a full backlog or the server's end. Then nothing is accepted.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  struct Traits {
    bool head_only = false;  // the request was HEAD: a header, no body
    bool http11 = true;      // else no chunks: a stream ends with the connection
    bool keep_alive = true;
    size_t max_backlog = 0;  // bytes
  };
  // What the connection writes next: head, prefix, payload, suffix in this order; `last`: nothing follows.
  struct Outgoing {
    std::string head, prefix, payload;
    std::string_view suffix;
    bool last = false;
    bool empty() const { return head.empty() && prefix.empty() && payload.empty() && suffix.empty(); }
  };

  // wake: called on the loop's thread when there is something to take or the backlog is over its bound.
  Exchange(EventLoop& loop, Traits traits, std::function<void()> wake)
      : loop_(loop), wake_(std::move(wake)), traits_(traits) {}

  // Any thread.
  void send(HttpResponse response);
  void begin(int status, std::string content_type, Headers headers);
  bool write(std::string bytes);
  void end();
  void on_closed(std::function<void()> on_closed);
  void on_drained(std::function<void()> on_drained);
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  size_t backlog() const { return backlog_.load(std::memory_order_relaxed); }
  void abandon();  // the last writer went away without completing the answer

  // The loop's thread.
  Outgoing take();
  void written(size_t payload_bytes);
  // Accepts nothing more. hang_up: the client went away, the callback to run is returned if its writer was not done
  // yet; otherwise the answer is delivered or the server goes, and the callback is dropped.
  std::function<void()> close(bool hang_up);
  bool overflowed() const { return overflowed_.load(std::memory_order_relaxed); }
  bool keep_alive() const;
  void forbid_keep_alive();  // takes effect when the header is not made yet
  int status() const;

 private:
  enum class Phase : uint8_t { kWaiting, kStreaming, kComplete };
  void make_head(int status, std::string_view content_type, const Headers& headers, std::optional<size_t> length);
  void wake_locked();

  EventLoop& loop_;  // outlives all use: close() is called before the server goes
  const std::function<void()> wake_;
  std::atomic<bool> closed_ = false, overflowed_ = false;
  std::atomic<size_t> backlog_ = 0;  // payload bytes accepted and not yet given to the socket

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  Traits traits_;
  Phase phase_ = Phase::kWaiting;
  bool chunked_ = false, wake_posted_ = false, detached_ = false;
  int status_ = 0;
  std::string head_, pending_;
  std::function<void()> on_closed_;
  std::shared_ptr<std::function<void()>> on_drained_;  // shared with its own running call
};

// The ResponseWriter that a handler gets; dropping it unanswered answers 500.
class ExchangeWriter final : public ResponseWriter {
 public:
  explicit ExchangeWriter(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}
  ~ExchangeWriter() override { exchange_->abandon(); }
  void send(HttpResponse response) override { exchange_->send(std::move(response)); }
  void begin(int status, std::string content_type, Headers headers) override {
    exchange_->begin(status, std::move(content_type), std::move(headers));
  }
  bool write(std::string bytes) override { return exchange_->write(std::move(bytes)); }
  void end() override { exchange_->end(); }
  void on_closed(std::function<void()> on_closed) override { exchange_->on_closed(std::move(on_closed)); }
  void on_drained(std::function<void()> on_drained) override { exchange_->on_drained(std::move(on_drained)); }
  bool closed() const override { return exchange_->closed(); }
  size_t backlog() const override { return exchange_->backlog(); }

 private:
  std::shared_ptr<Exchange> exchange_;  // shared with the connection, which may go first
};

// "OK" for 200; "Status" for codes without a name here.
std::string_view reason_phrase(int status);

}  // namespace tandem::net
