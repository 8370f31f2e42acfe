// HttpClient: HTTP/1.1 requests with streamed answers on an EventLoop, and a blocking fetch() for tools.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "net/event_loop.h"
#include "net/http_server.h"

namespace tandem::net {

struct Url {
  std::string host;
  uint16_t port = 80;
  std::string path = "/";
  std::string origin() const;  // "http://host:port"
};
// "http://host:port/path", "host:port" (scheme may be left out), "[::1]:80". https is refused with a message.
Result<Url> parse_url(std::string_view text);

struct ClientRequest {
  std::string method = "POST";
  Url url = {};
  Headers headers = {};
  std::shared_ptr<const std::string> body = {};  // shared so that retries and both PD legs do not copy; null: none
  std::string body_tail = {};                    // sent right behind body, as one body: what differs between two sends
  Duration connect_timeout = std::chrono::seconds(5);
  Duration idle_timeout = std::chrono::hours(6);  // without a byte from the server
  bool keep_alive = true;                         // reuse a pooled connection to the same origin
};
// Headers that are left out are added: Host, Content-Length, Connection. A request on a pooled connection that the
// server had closed meanwhile is sent once more on a fresh one, if not a byte of an answer came.

// All on the loop's thread. Exactly one on_done ends the call; after cancel() none comes.
struct ClientHandlers {
  std::function<void(int status, const Headers& headers)> on_headers;
  std::function<void(std::string_view bytes)> on_body;  // pieces as they arrive, dechunked
  std::function<void(Status)> on_done;                  // Ok: the answer is complete; a cut answer is kPeerLost
};

class ClientCall {
 public:
  virtual ~ClientCall() = default;  // destroying cancels
  virtual void cancel() = 0;        // closes the connection; the loop's thread
  virtual void pause() = 0;         // stop reading (back-pressure)
  virtual void resume() = 0;
};

// Destroy on the loop's thread, or when the loop does not run. Calls in progress are cancelled: no handler is called.
class HttpClient {
 public:
  explicit HttpClient(EventLoop& loop);
  ~HttpClient();
  // The loop's thread.
  std::shared_ptr<ClientCall> start(ClientRequest request, ClientHandlers handlers);
  size_t pooled_connections() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;  // shared with the calls
};

// Blocking, with its own loop; for tools and tests. Not from a loop's thread.
Result<HttpResponse> fetch(ClientRequest request, Duration timeout);

}  // namespace tandem::net
