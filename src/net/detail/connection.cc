#include "net/detail/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <exception>
#include <utility>

#include "base/log.h"

namespace tandem::net {

namespace {

using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr size_t kSpareBytes = 64;  // simdjson's padding behind a body
constexpr Duration kLingerTime = std::chrono::seconds(2);
constexpr size_t kLingerBytes = size_t(64) << 20;  // discarded in that time; whoever sends more than this is cut
constexpr int kReadsPerWake = 16;                  // then the other connections get their turn

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string percent_decoded(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    int high = text[i] == '%' && i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
    int low = high >= 0 ? hex_digit(text[i + 2]) : -1;
    if (low >= 0) i += 2;
    out.push_back(low >= 0 ? static_cast<char>(high * 16 + low) : text[i]);
  }
  return out;
}

// "/a%20b?x=1" or, from a proxy, "http://host/a%20b?x=1".
void split_target(HttpRequest& request) {
  std::string_view target = request.target;
  if (target.starts_with("http://")) {
    size_t slash = target.find('/', 7);
    target = slash == std::string_view::npos ? std::string_view("/") : target.substr(slash);
  }
  size_t question = target.find('?');
  request.path = percent_decoded(target.substr(0, question));
  if (question != std::string_view::npos) request.query = target.substr(question + 1);
}

}  // namespace

const std::string* HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (equals_ignoring_case(key, name)) return &value;
  }
  return nullptr;
}

Connection::Connection(std::shared_ptr<ServerCore> core, tcp::socket socket)
    : core_(std::move(core)), socket_(std::move(socket)), deadline_(core_->loop.impl().context) {}

void Connection::start() {
  deadline_.bind(weak_from_this(), [this] { expired(); });
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
  if (auto peer = socket_.remote_endpoint(ignored); !ignored) {
    const char* form = peer.address().is_v6() ? "[{}]:{}" : "{}:{}";
    remote_ = fmt::format(fmt::runtime(form), peer.address().to_string(), peer.port());
  }
  deadline_.set(core_->options.header_timeout);
  wait_readable();
}

void Connection::wait_readable() {
  // A client that pipelines more than this is not read further until its first request is answered.
  if (waiting_ || state_ == State::kClosed) return;
  if (input_.size() > core_->options.max_header_bytes + core_->scratch.size()) return;
  waiting_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const error_code& error) {
    self->waiting_ = false;
    if (!error) self->on_readable();
  });
}

void Connection::on_readable() {
  auto& scratch = core_->scratch;
  for (int i = 0; i < kReadsPerWake && state_ != State::kClosed; ++i) {
    error_code error;
    size_t n = socket_.read_some(asio::buffer(scratch.data(), scratch.size()), error);
    if (error == asio::error::would_block || error == asio::error::try_again) break;
    if (error) {
      // Also the end of a half-closed connection: nobody who closes his side wants a long answer.
      close(true);
      return;
    }
    if (state_ == State::kLingering) {
      lingered_bytes_ += n;
      if (lingered_bytes_ > kLingerBytes) return close(true);
    } else {
      consume({scratch.data(), n});
    }
    if (n < scratch.size() || state_ == State::kPending) break;
  }
  wait_readable();
}

void Connection::consume(std::string_view bytes) {
  if (input_.empty()) {
    size_t n = parse(bytes);
    input_.assign(bytes.substr(n));
  } else {
    input_.append(bytes);
    size_t n = parse(input_);
    input_.erase(0, n);
  }
  if (input_.empty() && input_.capacity() > 4096) input_ = {};
}

size_t Connection::parse(std::string_view bytes) {
  size_t consumed = 0;
  auto on_body = [this](std::string_view piece) {
    grow_body(piece.size());
    body_.append(piece);
    waiting_bytes_ += piece.size();
    core_->waiting_bytes += piece.size();
  };
  while (consumed < bytes.size() && state_ <= State::kBody) {
    if (state_ == State::kIdle) {
      // Empty lines between requests are tolerated (RFC 9112, 2.2).
      if (bytes[consumed] == '\r' || bytes[consumed] == '\n') {
        ++consumed;
        continue;
      }
      state_ = State::kHeader;
      parser_ = HttpParser::for_request({core_->options.max_header_bytes, core_->options.max_body_bytes});
      deadline_.set(core_->options.header_timeout);
    }
    bool header_was_done = parser_->header_done();
    size_t n = parser_->feed(bytes.substr(consumed), on_body);
    consumed += n;
    if (const auto& fault = parser_->fault()) {
      refuse(fault->status, fault->message);
      return bytes.size();
    }
    if (core_->waiting_bytes > core_->options.max_waiting_bytes) {
      refuse(503, "too many large bodies are arriving at once");
      return bytes.size();
    }
    if (!header_was_done && parser_->header_done()) header_complete();
    if (state_ > State::kBody) return bytes.size();  // refused by its header
    if (state_ == State::kBody) deadline_.set(body_patience());
    if (parser_->done()) {
      dispatch();
    } else if (n == 0) {
      break;
    }
  }
  return consumed;
}

void Connection::header_complete() {
  state_ = State::kBody;
  body_began_ = std::chrono::steady_clock::now();
  const std::string* expect = parser_->head().find("expect");
  if (!expect || parser_->done()) return;
  if (!equals_ignoring_case(*expect, "100-continue")) return refuse(417, "only Expect: 100-continue is understood");
  if (!parser_->head().http11 || writing_) return;
  interim_ = true;
  outgoing_.head = "HTTP/1.1 100 Continue\r\n\r\n";
  pieces_ = {outgoing_.head};
  write_some();
}

// Memory follows the bytes that came, not the Content-Length that was promised: address space is reserved for at most
// eight times what is there, so growing copies little and the peak stays near one body.
void Connection::grow_body(size_t more) {
  size_t needed = body_.size() + more + kSpareBytes;
  if (needed <= body_.capacity()) return;
  constexpr size_t kFirst = 64 << 10;
  const auto& length = parser_->head().content_length;
  if (length) {
    needed = std::max<size_t>(needed, std::min<uint64_t>(*length + kSpareBytes, std::max(kFirst, 8 * needed)));
  } else {
    needed = std::max(needed, body_.capacity() * 3 / 2);
  }
  body_.reserve(needed);
}

void Connection::forget_body() {
  core_->waiting_bytes -= std::exchange(waiting_bytes_, 0);
  body_ = {};
}

// Until the next piece of the body: the idle timeout, or less where the body has come too slowly so far.
Duration Connection::body_patience() const {
  const HttpServerOptions& options = core_->options;
  const auto earned = from_seconds(double(waiting_bytes_) / double(std::max<size_t>(1, options.min_body_bytes_per_s)));
  const Duration spent = std::chrono::steady_clock::now() - body_began_;
  return std::min(options.body_idle_timeout, options.body_idle_timeout + earned - spent);
}

std::shared_ptr<Exchange> Connection::new_exchange(bool head_only, bool http11, bool keep_alive) {
  Exchange::Traits traits{head_only, http11, keep_alive && !core_->draining, core_->options.max_stream_backlog};
  return std::make_shared<Exchange>(core_->loop, traits, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->flush();
  });
}

void Connection::dispatch() {
  state_ = State::kPending;
  deadline_.clear();
  MessageHead& head = parser_->head();
  exchange_ = new_exchange(head.method == "HEAD", head.http11, head.keep_alive);
  HttpRequest request;
  request.method = std::move(head.method);
  request.target = std::move(head.target);
  request.headers = std::move(head.headers);
  request.remote = remote_;
  split_target(request);
  parser_.reset();
  if (core_->options.access_log) logged_ = request;
  if (body_.capacity() < body_.size() + kSpareBytes) body_.reserve(body_.size() + kSpareBytes);
  request.body.swap(body_);
  forget_body();
  auto exchange = exchange_;
  try {
    core_->handler(std::move(request), std::make_shared<ExchangeWriter>(exchange));
  } catch (const std::exception& e) {
    log::error("an HTTP handler threw: {}", e.what());
  }
}

// The server's own answer to a request that never reaches the handler; what follows on the connection cannot be
// trusted.
void Connection::refuse(int status, std::string message) {
  bool head_only = parser_ && parser_->head().method == "HEAD";
  state_ = State::kPending;
  deadline_.clear();
  parser_.reset();
  forget_body();
  HttpResponse response;
  if (core_->options.error_response) {
    response = core_->options.error_response(status, std::move(message));
  } else {
    std::string quoted;
    for (char c : message) {
      if (c == '"' || c == '\\') quoted.push_back('\\');
      quoted.push_back(static_cast<unsigned char>(c) < ' ' || static_cast<unsigned char>(c) > '~' ? '?' : c);
    }
    response.body = fmt::format(R"({{"error":{{"message":"{}"}}}})", quoted);
    response.status = status;
  }
  exchange_ = new_exchange(head_only, true, false);
  exchange_->send(std::move(response));
}

void Connection::expired() {
  switch (state_) {
    case State::kHeader: return refuse(408, "the request header did not arrive in time");
    case State::kBody: return refuse(408, "the request body stopped arriving or came too slowly");
    case State::kPending:
      log::warning("remote={} has not read its answer for {:.0f} s: closed", remote_,
                   seconds(core_->options.write_stall_timeout));
      [[fallthrough]];
    case State::kIdle:
    case State::kLingering: return close(true);
    case State::kClosed: return;
  }
}

void Connection::flush() {
  if (state_ != State::kPending || !exchange_) return;
  if (exchange_->overflowed()) {
    if (exchange_->backlog() > 0) log::warning("remote={} does not keep up with its stream: closed", remote_);
    return close(true);
  }
  if (writing_) return;
  outgoing_ = exchange_->take();
  pieces_.clear();
  for (std::string_view piece : {std::string_view(outgoing_.head), std::string_view(outgoing_.prefix),
                                 std::string_view(outgoing_.payload), outgoing_.suffix}) {
    if (!piece.empty()) pieces_.push_back(piece);
  }
  if (!pieces_.empty()) {
    write_some();
  } else if (outgoing_.last) {
    answer_written();
  }
}

void Connection::write_some() {
  writing_ = true;
  deadline_.set(core_->options.write_stall_timeout);
  std::array<asio::const_buffer, 4> buffers{};
  for (size_t i = 0; i < pieces_.size(); ++i) buffers[i] = {pieces_[i].data(), pieces_[i].size()};
  socket_.async_write_some(buffers, [self = shared_from_this()](const error_code& error, size_t n) {
    self->writing_ = false;
    if (self->state_ == State::kClosed) return;
    if (error) return self->close(true);
    self->advance(n);
  });
}

void Connection::advance(size_t written) {
  while (written > 0) {
    std::string_view& piece = pieces_.front();
    size_t n = std::min(written, piece.size());
    piece.remove_prefix(n);
    written -= n;
    if (piece.empty()) pieces_.erase(pieces_.begin());
  }
  if (!pieces_.empty()) return write_some();
  if (state_ == State::kPending) deadline_.clear();
  if (state_ == State::kBody) deadline_.set(body_patience());
  if (std::exchange(interim_, false)) return flush();
  const size_t payload_bytes = outgoing_.payload.size();
  const bool last = outgoing_.last;
  outgoing_ = {};
  exchange_->written(payload_bytes);
  if (state_ != State::kPending) return;  // its callback closed us
  if (last) return answer_written();
  flush();
}

void Connection::answer_written() {
  bool keep = exchange_->keep_alive() && !core_->draining;
  if (logged_) core_->options.access_log(*logged_, exchange_->status());
  logged_.reset();
  exchange_->close(false);
  exchange_.reset();
  if (!keep) return linger();
  state_ = State::kIdle;
  deadline_.set(core_->options.keep_alive_timeout);
  if (!input_.empty()) consume(std::exchange(input_, {}));
  wait_readable();
}

// Closing a socket with unread bytes resets it, and the reset can overtake the answer: say goodbye, then discard what
// the client still sends for a while.
void Connection::linger() {
  state_ = State::kLingering;
  input_ = {};
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  deadline_.set(kLingerTime);
  wait_readable();
}

void Connection::drain() {
  if (exchange_) exchange_->forbid_keep_alive();
  if (state_ == State::kIdle) close(false);
}

void Connection::close(bool hang_up) {
  if (state_ == State::kClosed) return;
  auto self = shared_from_this();
  state_ = State::kClosed;
  deadline_.clear();
  error_code ignored;
  socket_.close(ignored);
  if (core_->connections.erase(self)) core_->open.fetch_sub(1, std::memory_order_relaxed);
  parser_.reset();
  forget_body();
  input_ = {};
  if (!exchange_) return;
  auto exchange = std::move(exchange_);
  if (auto callback = exchange->close(hang_up)) callback();
}

}  // namespace tandem::net
