// HttpParser: one HTTP/1.1 message from bytes, on Boost.Beast's parser, with the strictness that a server facing the
// open network needs on top. One source file includes Beast. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "net/http_server.h"

namespace tandem::net {

struct MessageHead {
  std::string method, target;  // requests
  int status = 0;              // responses
  Headers headers;             // trailers of a chunked body are dropped
  bool http11 = true;
  bool keep_alive = true;
  bool chunked = false;
  std::optional<uint64_t> content_length;

  const std::string* find(std::string_view name) const;  // case-insensitive
};

class HttpParser {
 public:
  // What is wrong with the message, and the status a server should answer.
  struct Fault {
    int status = 400;
    std::string message;
  };
  struct Limits {
    size_t max_header_bytes = 64 << 10;
    uint64_t max_body_bytes = UINT64_MAX;
  };

  virtual ~HttpParser() = default;
  static std::unique_ptr<HttpParser> for_request(Limits limits);
  // head_request: the answer to HEAD, which has no body whatever its headers say.
  static std::unique_ptr<HttpParser> for_response(Limits limits, bool head_request);

  // Consumes bytes from the front of `bytes` and returns how many; what is left must be presented again with more
  // behind it. Stops at the end of the header, once, and at the end of the message. `on_body` gets pieces of the body.
  virtual size_t feed(std::string_view bytes, const std::function<void(std::string_view)>& on_body) = 0;
  // The sender closed: true if that is a proper end of this message.
  virtual bool finish_at_eof() = 0;

  const std::optional<Fault>& fault() const { return fault_; }
  bool started() const { return started_; }
  bool header_done() const { return header_done_; }
  bool done() const { return done_; }
  const MessageHead& head() const { return head_; }
  MessageHead& head() { return head_; }

 protected:
  std::optional<Fault> fault_;
  bool started_ = false, header_done_ = false, done_ = false;
  MessageHead head_;
};

}  // namespace tandem::net
