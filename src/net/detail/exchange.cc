#include "net/detail/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iterator>

#include "base/log.h"
#include "net/detail/http_parser.h"

namespace tandem::net {

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 206: return "Partial Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    default: return "Status";
  }
}

namespace {

bool has_body(int status) { return status >= 200 && status != 204 && status != 304; }

// A header value made from outside text must not be able to end its line.
void append_field(std::string& head, std::string_view name, std::string_view value) {
  auto clean = [&](std::string_view text) {
    for (char c : text) head.push_back(c == '\r' || c == '\n' || c == '\0' ? ' ' : c);
  };
  clean(name);
  head.append(": ");
  clean(value);
  head.append("\r\n");
}

bool has_field(const Headers& headers, std::string_view wanted) {
  const auto is_it = [&](const auto& field) { return equals_ignoring_case(field.first, wanted); };
  return std::any_of(headers.begin(), headers.end(), is_it);
}

// RFC 9110, 5.6.7; `tandem doctor` compares clocks by it.
std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts));
}

}  // namespace

void Exchange::make_head(int status, std::string_view content_type, const Headers& headers,
                         std::optional<size_t> length) {
  status_ = status;
  fmt::format_to(std::back_inserter(head_), "HTTP/1.1 {} {}\r\n", status, reason_phrase(status));
  if (!has_field(headers, "date")) append_field(head_, "date", date_now());
  if (!content_type.empty()) append_field(head_, "content-type", content_type);
  if (length && (has_body(status) || *length > 0)) {
    fmt::format_to(std::back_inserter(head_), "content-length: {}\r\n", *length);
  }
  if (!length) {
    chunked_ = traits_.http11;
    if (chunked_) head_.append("transfer-encoding: chunked\r\n");
    if (!chunked_) traits_.keep_alive = false;
  }
  if (!traits_.keep_alive) head_.append("connection: close\r\n");
  if (traits_.keep_alive && !traits_.http11) head_.append("connection: keep-alive\r\n");
  for (const auto& [name, value] : headers) {
    // The framing is ours; a proxied answer brings its own.
    if (equals_ignoring_case(name, "content-length") || equals_ignoring_case(name, "transfer-encoding") ||
        equals_ignoring_case(name, "connection") || equals_ignoring_case(name, "content-type")) {
      continue;
    }
    append_field(head_, name, value);
  }
  head_.append("\r\n");
}

void Exchange::wake_locked() {
  if (wake_posted_ || closed()) return;
  wake_posted_ = true;
  loop_.post([self = shared_from_this()] {
    {
      std::lock_guard lock(self->mutex_);
      self->wake_posted_ = false;
    }
    self->wake_();
  });
}

void Exchange::send(HttpResponse response) {
  std::lock_guard lock(mutex_);
  if (closed()) return;
  if (phase_ != Phase::kWaiting) {
    log::error("an answer was sent twice (status={} then {}): the second one is dropped", status_, response.status);
    return;
  }
  phase_ = Phase::kComplete;
  if (!has_body(response.status)) response.body.clear();
  make_head(response.status, response.content_type, response.headers, response.body.size());
  if (!traits_.head_only) pending_ = std::move(response.body);
  backlog_.fetch_add(pending_.size(), std::memory_order_relaxed);
  wake_locked();
}

void Exchange::begin(int status, std::string content_type, Headers headers) {
  std::lock_guard lock(mutex_);
  if (closed()) return;
  if (phase_ != Phase::kWaiting) {
    log::error("a stream was begun twice (status={} then {}): the second one is dropped", status_, status);
    return;
  }
  phase_ = Phase::kStreaming;
  make_head(status, content_type, headers, std::nullopt);
  wake_locked();
}

bool Exchange::write(std::string bytes) {
  std::lock_guard lock(mutex_);
  if (closed() || overflowed() || phase_ != Phase::kStreaming) return false;
  if (bytes.empty() || traits_.head_only) return true;
  if (backlog() + bytes.size() > traits_.max_backlog) {
    overflowed_.store(true, std::memory_order_relaxed);
    wake_locked();
    return false;
  }
  backlog_.fetch_add(bytes.size(), std::memory_order_relaxed);
  if (pending_.empty()) {
    pending_ = std::move(bytes);
  } else {
    pending_.append(bytes);
  }
  wake_locked();
  return true;
}

void Exchange::end() {
  std::lock_guard lock(mutex_);
  if (closed() || phase_ != Phase::kStreaming) return;
  phase_ = Phase::kComplete;
  wake_locked();
}

void Exchange::abandon() {
  bool unanswered;
  {
    std::lock_guard lock(mutex_);
    unanswered = phase_ == Phase::kWaiting && !closed();
    if (phase_ == Phase::kStreaming && !closed()) {
      // The client must not take a cut stream for a complete one.
      overflowed_.store(true, std::memory_order_relaxed);
      wake_locked();
    }
  }
  if (!unanswered) return;
  log::error("a handler dropped its request without an answer");
  send({500, "text/plain; charset=utf-8", "Internal Server Error", {}});
}

void Exchange::on_closed(std::function<void()> on_closed) {
  // Swapped, not assigned: a callback may own the writer, so it must not be destroyed under the lock.
  std::lock_guard lock(mutex_);
  if (!closed()) {
    on_closed_.swap(on_closed);
  } else if (!detached_ && phase_ != Phase::kComplete && on_closed) {
    loop_.post(on_closed);
  }
}

void Exchange::on_drained(std::function<void()> on_drained) {
  auto callback = std::make_shared<std::function<void()>>(std::move(on_drained));
  std::lock_guard lock(mutex_);
  if (!closed()) on_drained_.swap(callback);
}

void Exchange::written(size_t payload_bytes) {
  if (backlog_.fetch_sub(payload_bytes, std::memory_order_relaxed) != payload_bytes || payload_bytes == 0) return;
  std::shared_ptr<std::function<void()>> callback;
  {
    std::lock_guard lock(mutex_);
    callback = on_drained_;
  }
  if (callback && *callback) (*callback)();
}

Exchange::Outgoing Exchange::take() {
  std::lock_guard lock(mutex_);
  Outgoing out;
  out.head.swap(head_);
  out.payload.swap(pending_);
  out.last = phase_ == Phase::kComplete;
  if (chunked_ && !traits_.head_only) {
    if (!out.payload.empty()) {
      out.prefix = fmt::format("{:x}\r\n", out.payload.size());
      out.suffix = out.last ? "\r\n0\r\n\r\n" : "\r\n";
    } else if (out.last) {
      out.suffix = "0\r\n\r\n";
    }
  }
  return out;
}

std::function<void()> Exchange::close(bool hang_up) {
  std::function<void()> callback;
  std::shared_ptr<std::function<void()>> drained;
  bool wanted = false;
  {
    std::lock_guard lock(mutex_);
    if (closed()) return {};
    closed_.store(true, std::memory_order_release);
    detached_ = !hang_up;
    wanted = hang_up && phase_ != Phase::kComplete;
    callback.swap(on_closed_);
    drained.swap(on_drained_);
  }
  if (!wanted) callback = nullptr;
  return callback;
}

bool Exchange::keep_alive() const {
  std::lock_guard lock(mutex_);
  return traits_.keep_alive;
}

void Exchange::forbid_keep_alive() {
  std::lock_guard lock(mutex_);
  if (status_ == 0) traits_.keep_alive = false;
}

int Exchange::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

}  // namespace tandem::net
