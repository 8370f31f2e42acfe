#include "net/detail/http_parser.h"

#include <fmt/format.h>

#include <boost/beast/http/basic_parser.hpp>
#include <utility>

namespace tandem::net {

namespace http = boost::beast::http;
using boost::beast::string_view;
using boost::system::error_code;

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    char x = a[i], y = b[i];
    if (x >= 'A' && x <= 'Z') x += 'a' - 'A';
    if (y >= 'A' && y <= 'Z') y += 'a' - 'A';
    if (x != y) return false;
  }
  return true;
}

const std::string* MessageHead::find(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (equals_ignoring_case(key, name)) return &value;
  }
  return nullptr;
}

namespace {

using Fault = HttpParser::Fault;

std::string_view view(string_view s) { return {s.data(), s.size()}; }

// Beast's callbacks, gathered into a MessageHead. Errors that Beast would let pass are kept in `refusal`.
template <bool is_request>
class Core final : public http::basic_parser<is_request> {
 public:
  explicit Core(MessageHead& head) : head_(head) {}

  const std::function<void(std::string_view)>* on_body = nullptr;
  std::optional<Fault> refusal;

 private:
  void on_request_impl(http::verb, string_view method, string_view target, int version, error_code&) override {
    head_.method = view(method);
    head_.target = view(target);
    head_.http11 = version >= 11;
  }
  void on_response_impl(int status, string_view, int version, error_code&) override {
    head_.status = status;
    head_.http11 = version >= 11;
  }
  void on_field_impl(http::field field, string_view name, string_view value, error_code&) override {
    if (in_trailer_) return;
    if (field == http::field::content_length && ++content_lengths_ > 1) {
      refusal = Fault{400, "more than one Content-Length"};
    }
    // A comma list of equal lengths is legal to accept and safer to refuse.
    if (field == http::field::content_length && value.find(',') != string_view::npos) {
      refusal = Fault{400, "more than one Content-Length"};
    }
    if (field == http::field::transfer_encoding && !equals_ignoring_case(view(value), "chunked")) {
      refusal = Fault{is_request ? 501 : 502, fmt::format("Transfer-Encoding {} is not supported", view(value))};
    }
    if (field == http::field::host) ++hosts_;
    head_.headers.emplace_back(view(name), view(value));
  }
  void on_header_impl(error_code&) override {
    in_trailer_ = true;
    head_.chunked = this->chunked();
    if (auto length = this->content_length()) head_.content_length = *length;
    head_.keep_alive = this->keep_alive();
    if (!is_request || refusal) return;
    if (head_.http11 ? hosts_ != 1 : hosts_ > 1) refusal = Fault{400, "exactly one Host header is wanted"};
    if (!head_.http11 && head_.find("transfer-encoding")) {
      refusal = Fault{400, "Transfer-Encoding in an HTTP/1.0 request"};
    }
  }
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(string_view body, error_code&) override {
    (*on_body)(view(body));
    return body.size();
  }
  void on_chunk_header_impl(uint64_t, string_view, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, string_view body, error_code&) override {
    (*on_body)(view(body));
    return body.size();
  }
  void on_finish_impl(error_code&) override {}

  MessageHead& head_;
  int content_lengths_ = 0, hosts_ = 0;
  bool in_trailer_ = false;
};

template <bool is_request>
class Parser final : public HttpParser {
 public:
  Parser(Limits limits, bool skip_body) : limits_(limits), core_(head_) {
    core_.header_limit(static_cast<uint32_t>(std::min<size_t>(limits.max_header_bytes, 1u << 30)));
    if (limits.max_body_bytes == UINT64_MAX) {
      core_.body_limit(boost::none);
    } else {
      core_.body_limit(limits.max_body_bytes);
    }
    core_.skip(skip_body);
  }

  size_t feed(std::string_view bytes, const std::function<void(std::string_view)>& on_body) override {
    size_t consumed = 0;
    core_.on_body = &on_body;
    while (!fault_ && !done_ && consumed < bytes.size()) {
      started_ = true;
      if (!header_done_ && !look_for_fold(bytes.substr(consumed))) break;
      error_code error;
      size_t n = core_.put({bytes.data() + consumed, bytes.size() - consumed}, error);
      consumed += n;
      if (!header_done_) header_bytes_ += n;
      if (core_.refusal) {
        fault_ = core_.refusal;
      } else if (error == http::error::need_more) {
        check_size(bytes.size() - consumed);
        break;
      } else if (error) {
        fault_ = describe(error);
      } else if (!header_done_ && core_.is_header_done()) {
        header_done_ = true;
        done_ = core_.is_done();
        if (header_bytes_ > limits_.max_header_bytes) fault_ = header_too_large();
        break;
      }
      done_ = core_.is_done();
    }
    core_.on_body = nullptr;
    return consumed;
  }

  bool finish_at_eof() override {
    if (done_) return true;
    if (!started_ || fault_ || !core_.got_some() || !header_done_) return false;
    error_code error;
    core_.put_eof(error);
    done_ = !error && core_.is_done();
    return done_;
  }

 private:
  // Folded header lines: a client may join them (RFC 9112, 5.2), a server had better refuse, as proxies differ on them.
  bool look_for_fold(std::string_view header) {
    if (!is_request) return true;
    for (size_t at = header.find("\r\n"); at != std::string_view::npos; at = header.find("\r\n", at + 2)) {
      if (at + 2 >= header.size()) break;
      if (header[at + 2] == '\r') break;  // the end of the header, or a fault that Beast names
      if (header[at + 2] == ' ' || header[at + 2] == '\t') {
        fault_ = Fault{400, "folded header line"};
        return false;
      }
    }
    return true;
  }
  Fault header_too_large() const {
    return {431, fmt::format("the request header is larger than {} bytes", limits_.max_header_bytes)};
  }
  // Bytes that wait for more: an unfinished header, or an unfinished chunk header or trailer.
  void check_size(size_t waiting) {
    if (!header_done_ && header_bytes_ + waiting > limits_.max_header_bytes) fault_ = header_too_large();
    if (header_done_ && waiting > limits_.max_header_bytes) fault_ = Fault{400, "chunk header or trailer too large"};
  }
  Fault describe(const error_code& error) const {
    if (error == http::error::header_limit) return header_too_large();
    if (error == http::error::body_limit) {
      return {413, fmt::format("the body is larger than {} bytes", limits_.max_body_bytes)};
    }
    if (error == http::error::bad_version) return {400, "malformed request line or unsupported HTTP version"};
    return {400, fmt::format("malformed HTTP message: {}", error.message())};
  }

  Limits limits_;
  Core<is_request> core_;
  size_t header_bytes_ = 0;
};

}  // namespace

std::unique_ptr<HttpParser> HttpParser::for_request(Limits limits) {
  return std::make_unique<Parser<true>>(limits, false);
}
std::unique_ptr<HttpParser> HttpParser::for_response(Limits limits, bool head_request) {
  return std::make_unique<Parser<false>>(limits, head_request);
}

}  // namespace tandem::net
