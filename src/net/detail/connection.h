// Connection: one accepted socket of an HttpServer. The loop's thread only.
#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "net/detail/exchange.h"
#include "net/detail/http_parser.h"
#include "net/detail/loop_impl.h"
#include "net/http_server.h"

namespace tandem::net {

class Connection;

// What the connections of one server share.
struct ServerCore {
  EventLoop& loop;
  HttpServerOptions options;
  HttpHandler handler;
  std::vector<char> scratch =
      std::vector<char>(256 << 10);  // every read lands here first: idle connections hold no buffer
  std::set<std::shared_ptr<Connection>> connections = {};
  std::atomic<size_t> open = 0;
  size_t waiting_bytes = 0;  // of all bodies that are still arriving
  bool draining = false;
};

//   kIdle --byte--> kHeader --header--> kBody --body--> kPending --answer written--> kIdle
//                      \------------------\--fault--> kPending (the server's own answer) --> kLingering --> kClosed
// A read is pending in every state, so a hang-up is noticed at once; bytes of later (pipelined) requests wait in
// input_.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<ServerCore> core, asio::ip::tcp::socket socket);
  void start();
  void drain();  // closes when idle; otherwise after the running answer
  void close(bool hang_up);

 private:
  enum class State : uint8_t { kIdle, kHeader, kBody, kPending, kLingering, kClosed };

  void wait_readable();
  void on_readable();
  void consume(std::string_view bytes);
  size_t parse(std::string_view bytes);
  void header_complete();
  void dispatch();
  void refuse(int status, std::string message);
  void expired();
  std::shared_ptr<Exchange> new_exchange(bool head_only, bool http11, bool keep_alive);
  void grow_body(size_t more);
  void forget_body();
  Duration body_patience() const;

  void flush();
  void write_some();
  void advance(size_t written);
  void answer_written();
  void linger();

  std::shared_ptr<ServerCore> core_;
  asio::ip::tcp::socket socket_;
  Deadline deadline_;
  std::string remote_;
  State state_ = State::kIdle;
  bool waiting_ = false;
  std::string input_;  // received and not yet parsed
  std::unique_ptr<HttpParser> parser_;
  std::string body_;
  size_t lingered_bytes_ = 0;
  size_t waiting_bytes_ = 0;  // this body's part of the core's
  TimePoint body_began_ = {};
  std::shared_ptr<Exchange> exchange_;  // shared with the writers
  std::optional<HttpRequest> logged_;   // without its body; only with an access log

  bool writing_ = false;
  Exchange::Outgoing outgoing_;
  bool interim_ = false;                  // outgoing_ is "100 Continue"
  std::vector<std::string_view> pieces_;  // of outgoing_, what is left to write
};

}  // namespace tandem::net
