#include "net/http_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <iterator>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "net/detail/http_parser.h"
#include "net/detail/loop_impl.h"

namespace tandem::net {

namespace {

using boost::system::error_code;
using tcp = asio::ip::tcp;

// Below the 5 s after which this server and uvicorn close an idle connection: a request must not meet the close
// halfway.
constexpr Duration kPoolIdleTime = std::chrono::seconds(4);
constexpr size_t kMaxIdlePerOrigin = 1024;
constexpr int kReadsPerTurn = 16;
constexpr size_t kMaxAnswerHeader = 256 << 10;

struct IdleConnection {
  tcp::socket socket;
  TimePoint since;
};

class Call;

}  // namespace

struct HttpClient::Impl : std::enable_shared_from_this<HttpClient::Impl> {
  explicit Impl(EventLoop& l) : loop(l), context(l.impl().context) {}

  std::optional<tcp::socket> take_idle(const std::string& origin);
  void put_idle(const std::string& origin, tcp::socket socket);
  void prune();

  EventLoop& loop;
  asio::io_context& context;
  std::map<std::string, std::vector<IdleConnection>> idle;  // newest last
  std::shared_ptr<EventLoop::Timer> pruner;
  std::set<Call*> calls;
  std::vector<char> scratch = std::vector<char>(256 << 10);
  bool closed = false;
};

std::optional<tcp::socket> HttpClient::Impl::take_idle(const std::string& origin) {
  auto found = idle.find(origin);
  if (found == idle.end()) return std::nullopt;
  auto& connections = found->second;
  while (!connections.empty()) {
    tcp::socket socket = std::move(connections.back().socket);
    connections.pop_back();
    char byte;
    error_code error;
    socket.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, error);
    // Anything but "nothing to read" is a close, or bytes that nobody asked for.
    if (error == asio::error::would_block || error == asio::error::try_again) return socket;
  }
  return std::nullopt;
}

void HttpClient::Impl::put_idle(const std::string& origin, tcp::socket socket) {
  if (closed) return;
  auto& connections = idle[origin];
  if (connections.size() >= kMaxIdlePerOrigin) return;
  connections.push_back({std::move(socket), std::chrono::steady_clock::now()});
  if (!pruner) prune();
}

void HttpClient::Impl::prune() {
  const TimePoint oldest = std::chrono::steady_clock::now() - kPoolIdleTime;
  for (auto entry = idle.begin(); entry != idle.end();) {
    std::erase_if(entry->second, [&](const IdleConnection& c) { return c.since <= oldest; });
    entry = entry->second.empty() ? idle.erase(entry) : std::next(entry);
  }
  pruner.reset();
  if (idle.empty()) return;
  pruner = loop.after(kPoolIdleTime / 4, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->prune();
  });
}

namespace {

// One request and its answer. Kept alive by its pending operations; the user's handle cancels when it goes.
class Call final : public std::enable_shared_from_this<Call> {
 public:
  Call(std::shared_ptr<HttpClient::Impl> client, ClientRequest request, ClientHandlers handlers)
      : client_(std::move(client)),
        request_(std::move(request)),
        handlers_(std::make_shared<ClientHandlers>(std::move(handlers))),
        origin_(request_.url.origin()),
        socket_(client_->context),
        resolver_(client_->context),
        deadline_(client_->context) {}
  ~Call() { client_->calls.erase(this); }

  void start();
  void cancel();
  void pause();
  void resume();

 private:
  void connect();
  void connect_to(const std::vector<tcp::endpoint>& endpoints);
  void connected();
  void make_head();
  void write_some();
  void wait_readable();
  void on_readable();
  void parse(std::string_view bytes);
  void on_end(const error_code& error);
  void complete();
  void finish(Status status);
  void expired();
  std::string where() const { return fmt::format("{} {}{}", request_.method, origin_, request_.url.path); }

  std::shared_ptr<HttpClient::Impl> client_;  // the pool outlives the calls
  ClientRequest request_;
  std::shared_ptr<ClientHandlers> handlers_;  // shared with a running callback, which may cancel this call
  const std::string origin_;
  tcp::socket socket_;
  tcp::resolver resolver_;
  Deadline deadline_;
  bool over_ = false, pooled_ = false, connected_ = false;
  bool waiting_ = false, paused_ = false, received_ = false, told_headers_ = false;
  int attempt_ = 0;
  std::string head_;
  std::vector<std::string_view> pieces_;  // of the request, what is left to write
  std::string input_;                     // received and not yet parsed
  std::unique_ptr<HttpParser> parser_;
};

class CallHandle final : public ClientCall {
 public:
  explicit CallHandle(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  ~CallHandle() override { call_->cancel(); }
  void cancel() override { call_->cancel(); }
  void pause() override { call_->pause(); }
  void resume() override { call_->resume(); }

 private:
  std::shared_ptr<Call> call_;  // shared with its pending operations
};

void Call::start() {
  client_->calls.insert(this);
  deadline_.bind(weak_from_this(), [this] { expired(); });
  make_head();
  if (request_.keep_alive) {
    if (auto socket = client_->take_idle(origin_)) {
      socket_ = std::move(*socket);
      pooled_ = true;
      // Not at once: no handler is called before start() has returned.
      return client_->loop.post([self = shared_from_this()] {
        if (!self->over_) self->connected();
      });
    }
  }
  connect();
}

void Call::make_head() {
  auto has = [&](std::string_view name) {
    return std::any_of(request_.headers.begin(), request_.headers.end(),
                       [&](const auto& header) { return equals_ignoring_case(header.first, name); });
  };
  auto out = std::back_inserter(head_);
  fmt::format_to(out, "{} {} HTTP/1.1\r\n", request_.method, request_.url.path);
  if (!has("host")) fmt::format_to(out, "host: {}\r\n", origin_.substr(std::string_view("http://").size()));
  size_t length = (request_.body ? request_.body->size() : 0) + request_.body_tail.size();
  if (request_.body || length > 0 || request_.method == "POST" || request_.method == "PUT") {
    fmt::format_to(out, "content-length: {}\r\n", length);
  }
  if (!request_.keep_alive) head_.append("connection: close\r\n");
  for (const auto& [name, value] : request_.headers) {
    if (equals_ignoring_case(name, "content-length") || equals_ignoring_case(name, "transfer-encoding") ||
        equals_ignoring_case(name, "connection")) {
      continue;
    }
    std::string line = name + ": " + value;
    std::replace_if(
        line.begin(), line.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
    head_.append(line).append("\r\n");
  }
  head_.append("\r\n");
}

void Call::connect() {
  deadline_.set(request_.connect_timeout);
  error_code error;
  if (auto address = asio::ip::make_address(request_.url.host, error); !error) {
    return connect_to({tcp::endpoint(address, request_.url.port)});
  }
  resolver_.async_resolve(
      request_.url.host, std::to_string(request_.url.port), tcp::resolver::numeric_service,
      [self = shared_from_this()](const error_code& failure, const tcp::resolver::results_type& results) {
        if (self->over_) return;
        if (failure) {
          return self->finish(peer_lost(fmt::format("{}: cannot resolve host '{}': {}", self->where(),
                                                    self->request_.url.host, failure.message())));
        }
        std::vector<tcp::endpoint> endpoints;
        for (const auto& result : results) endpoints.push_back(result.endpoint());
        self->connect_to(endpoints);
      });
}

void Call::connect_to(const std::vector<tcp::endpoint>& endpoints) {
  asio::async_connect(socket_, endpoints, [self = shared_from_this()](const error_code& error, const tcp::endpoint&) {
    if (self->over_) return;
    if (error) {
      return self->finish(peer_lost(fmt::format("{}: cannot connect: {}", self->where(), error.message())));
    }
    self->connected();
  });
}

void Call::connected() {
  connected_ = true;
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
  deadline_.set(request_.idle_timeout);
  parser_ = HttpParser::for_response({kMaxAnswerHeader, UINT64_MAX}, request_.method == "HEAD");
  pieces_ = {head_};
  if (request_.body && !request_.body->empty()) pieces_.push_back(*request_.body);
  if (!request_.body_tail.empty()) pieces_.push_back(request_.body_tail);
  write_some();
  wait_readable();
}

void Call::write_some() {
  std::array<asio::const_buffer, 3> buffers{};
  for (size_t i = 0; i < pieces_.size(); ++i) buffers[i] = {pieces_[i].data(), pieces_[i].size()};
  socket_.async_write_some(buffers,
                           [self = shared_from_this(), attempt = attempt_](const error_code& error, size_t written) {
                             // A server may answer and close before it has read everything: what it says is for the
                             // reading side to find out.
                             if (self->over_ || error || attempt != self->attempt_) return;
                             self->deadline_.set(self->request_.idle_timeout);
                             while (written > 0) {
                               std::string_view& piece = self->pieces_.front();
                               size_t n = std::min(written, piece.size());
                               piece.remove_prefix(n);
                               written -= n;
                               if (piece.empty()) self->pieces_.erase(self->pieces_.begin());
                             }
                             if (!self->pieces_.empty()) self->write_some();
                           });
}

void Call::wait_readable() {
  if (waiting_ || paused_ || over_) return;
  waiting_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const error_code& error) {
    self->waiting_ = false;
    if (!self->over_ && !error && !self->paused_) self->on_readable();
  });
}

void Call::pause() {
  paused_ = true;
  if (connected_) deadline_.clear();  // it is we who wait
}

void Call::resume() {
  paused_ = false;
  if (!over_ && connected_) {
    deadline_.set(request_.idle_timeout);
    wait_readable();
  }
}

void Call::on_readable() {
  auto client = client_;
  for (int i = 0; i < kReadsPerTurn && !over_ && !paused_; ++i) {
    error_code error;
    size_t n = socket_.read_some(asio::buffer(client->scratch.data(), client->scratch.size()), error);
    if (error == asio::error::would_block || error == asio::error::try_again) break;
    if (error) return on_end(error);
    received_ = true;
    deadline_.set(request_.idle_timeout);
    if (input_.empty()) {
      parse({client->scratch.data(), n});
    } else {
      input_.append(client->scratch.data(), n);
      std::string input = std::move(input_);
      input_.clear();
      parse(input);
    }
    if (n < client->scratch.size()) break;
  }
  wait_readable();
}

void Call::parse(std::string_view bytes) {
  auto handlers = handlers_;
  auto on_body = [&](std::string_view piece) {
    if (!over_ && handlers->on_body) handlers->on_body(piece);
  };
  while (!over_) {
    size_t n = parser_->feed(bytes, on_body);
    bytes.remove_prefix(n);
    if (over_) return;
    if (const auto& fault = parser_->fault()) {
      return finish(corrupt(fmt::format("{}: the answer is not HTTP: {}", where(), fault->message)));
    }
    const MessageHead& head = parser_->head();
    if (parser_->header_done() && head.status / 100 == 1) {
      if (head.status == 101) return finish(corrupt(where() + ": unexpected switch of protocols"));
      parser_ = HttpParser::for_response({kMaxAnswerHeader, UINT64_MAX}, request_.method == "HEAD");
      continue;
    }
    if (parser_->header_done() && !told_headers_) {
      told_headers_ = true;
      if (handlers->on_headers) handlers->on_headers(head.status, head.headers);
      if (over_) return;
    }
    if (parser_->done()) {
      if (!bytes.empty()) request_.keep_alive = false;  // more than the answer: not to be reused
      return complete();
    }
    if (n == 0) break;
  }
  input_.assign(bytes);
}

void Call::on_end(const error_code& error) {
  if (error == asio::error::eof && parser_->finish_at_eof()) {
    request_.keep_alive = false;
    return complete();
  }
  if (pooled_ && !received_) {
    pooled_ = connected_ = false;
    ++attempt_;  // a completed write of the old connection may still be on its way here
    error_code ignored;
    socket_.close(ignored);
    socket_ = tcp::socket(client_->context);
    return connect();
  }
  finish(peer_lost(fmt::format("{}: the connection ended {}: {}", where(),
                               !received_       ? "before an answer came"
                               : !told_headers_ ? "inside the answer's header"
                                                : "inside the answer's body",
                               error.message())));
}

void Call::complete() {
  bool reusable = request_.keep_alive && parser_->head().keep_alive && pieces_.empty();
  if (reusable) {
    client_->put_idle(origin_, std::move(socket_));
    socket_ = tcp::socket(client_->context);
  }
  finish(Ok{});
}

void Call::finish(Status status) {
  if (over_) return;
  auto self = shared_from_this();
  auto handlers = handlers_;
  cancel();
  if (handlers->on_done) handlers->on_done(std::move(status));
}

void Call::cancel() {
  if (over_) return;
  auto self = shared_from_this();
  over_ = true;
  deadline_.clear();
  resolver_.cancel();
  error_code ignored;
  socket_.close(ignored);
  handlers_.reset();
}

void Call::expired() {
  if (over_) return;
  finish(timed_out(connected_
                       ? fmt::format("{}: nothing came for {:.1f} s", where(), seconds(request_.idle_timeout))
                       : fmt::format("{}: not connected after {:.1f} s", where(), seconds(request_.connect_timeout))));
}

}  // namespace

HttpClient::HttpClient(EventLoop& loop) : impl_(std::make_shared<Impl>(loop)) {}

HttpClient::~HttpClient() {
  impl_->closed = true;
  // Cancelling one call may destroy others, with what its handlers own.
  while (!impl_->calls.empty()) {
    auto call = (*impl_->calls.begin())->shared_from_this();
    impl_->calls.erase(call.get());
    call->cancel();
  }
  impl_->idle.clear();
  impl_->pruner.reset();
}

std::shared_ptr<ClientCall> HttpClient::start(ClientRequest request, ClientHandlers handlers) {
  auto call = std::make_shared<Call>(impl_, std::move(request), std::move(handlers));
  call->start();
  return std::make_shared<CallHandle>(std::move(call));
}

size_t HttpClient::pooled_connections() const {
  size_t count = 0;
  for (const auto& [origin, connections] : impl_->idle) count += connections.size();
  return count;
}

Result<HttpResponse> fetch(ClientRequest request, Duration timeout) {
  EventLoop loop;
  HttpClient client(loop);
  HttpResponse response;
  const std::string origin = request.url.origin();
  request.keep_alive = false;
  Status outcome = timed_out(fmt::format("{} {}{}: no complete answer within {:.1f} s", request.method, origin,
                                         request.url.path, seconds(timeout)));
  ClientHandlers handlers;
  handlers.on_headers = [&](int status, const Headers& headers) {
    response.status = status;
    response.headers = headers;
    response.content_type.clear();
    for (const auto& [name, value] : headers) {
      if (equals_ignoring_case(name, "content-type")) response.content_type = value;
    }
  };
  handlers.on_body = [&](std::string_view bytes) { response.body.append(bytes); };
  handlers.on_done = [&](Status status) {
    outcome = std::move(status);
    loop.stop();
  };
  auto call = client.start(std::move(request), std::move(handlers));
  auto deadline = loop.after(timeout, [&] { loop.stop(); });
  loop.run();
  call->cancel();
  if (!outcome) return outcome.error();
  return response;
}

}  // namespace tandem::net
