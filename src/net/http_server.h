// HttpServer: HTTP/1.1 with keep-alive and streamed (chunked) answers on one EventLoop. Validates what a server must:
// header limits, body limit, deadlines for slow senders, Transfer-Encoding/Content-Length conflicts (400). Handlers run
// on the loop's thread and must not block; they answer through a ResponseWriter, now or later, from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "net/event_loop.h"

namespace tandem::net {

using Headers = std::vector<std::pair<std::string, std::string>>;
// ASCII letters; for header names and the values that are tokens.
bool equals_ignoring_case(std::string_view a, std::string_view b);

struct HttpRequest {
  std::string method;  // "GET"
  std::string target;  // as sent, "/generate?x=1"
  std::string path;    // "/generate", percent-decoded
  std::string query;   // "x=1"
  Headers headers;
  std::string body;    // has at least 64 spare bytes of capacity behind it (simdjson's padding)
  std::string remote;  // "127.0.0.1:53412"
  const std::string* header(std::string_view name) const;  // case-insensitive; null: absent
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  Headers headers;
};

// Answers one request. Exactly one of: send(), or begin() then any number of write() then end(). Thread-safe.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  virtual void send(HttpResponse response) = 0;
  virtual void begin(int status, std::string content_type, Headers headers) = 0;  // chunked stream
  // False: the client is gone or more than the server's max_stream_backlog bytes are unsent (the connection is then
  // closed): stop producing.
  virtual bool write(std::string bytes) = 0;
  virtual void end() = 0;
  // Calls on_closed once, on the loop's thread, when the client hangs up before the answer is complete. A hang-up is
  // noticed at once, also while nothing is being written.
  virtual void on_closed(std::function<void()> on_closed) = 0;
  virtual bool closed() const = 0;
  // Bytes accepted by write() and not yet given to the socket.
  virtual size_t backlog() const = 0;
  // Calls on_drained on the loop's thread each time that the backlog has become empty. For back-pressure; may be left
  // out by stand-ins that have no backlog.
  virtual void on_drained(std::function<void()>) {}
};

using HttpHandler = std::function<void(HttpRequest request, std::shared_ptr<ResponseWriter> writer)>;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0: any free port, see port()
  size_t max_body_bytes = size_t(1) << 30;
  size_t max_header_bytes = 64 << 10;
  size_t max_stream_backlog = 64 << 20;
  size_t max_connections = 65536;
  Duration header_timeout = std::chrono::seconds(10);     // slow-loris: the whole header must arrive in this time
  Duration body_idle_timeout = std::chrono::seconds(30);  // between two pieces of a body
  // A body must come faster than this on average, beyond what body_idle_timeout forgives: also a slow-loris.
  size_t min_body_bytes_per_s = 1024;
  size_t max_waiting_bytes = size_t(4) << 30;  // of all bodies that are still arriving; more gets 503
  Duration keep_alive_timeout = std::chrono::seconds(5);
  Duration write_stall_timeout = std::chrono::minutes(5);          // a client that reads nothing of its answer
  std::function<void(const HttpRequest&, int status)> access_log;  // may be empty
  // Body of answers that the server itself makes (400, 408, 413, 431, 503); default {"error":{"message":...}}.
  std::function<HttpResponse(int status, std::string message)> error_response;
};

// Destroy on the loop's thread, or when the loop does not run; every connection is closed without calling on_closed.
class HttpServer {
 public:
  // Binds and listens; accepting starts at once on the loop. Errors name address and reason.
  static Result<std::unique_ptr<HttpServer>> listen(EventLoop& loop, HttpServerOptions options, HttpHandler handler);
  virtual ~HttpServer() = default;
  virtual uint16_t port() const = 0;
  virtual size_t open_connections() const = 0;  // any thread
  // Stops accepting and closes idle connections; running answers go on. The loop's thread.
  virtual void drain() = 0;
};

}  // namespace tandem::net
