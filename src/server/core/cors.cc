#include "server/core/cors.h"

namespace tandem::server {
namespace {

class CorsWriter final : public net::ResponseWriter {
 public:
  explicit CorsWriter(std::shared_ptr<net::ResponseWriter> inner) : inner_(std::move(inner)) {}

  void send(net::HttpResponse response) override {
    add_headers(response.headers);
    inner_->send(std::move(response));
  }
  void begin(int status, std::string content_type, net::Headers headers) override {
    add_headers(headers);
    inner_->begin(status, std::move(content_type), std::move(headers));
  }
  bool write(std::string bytes) override { return inner_->write(std::move(bytes)); }
  void end() override { inner_->end(); }
  void on_closed(std::function<void()> on_closed) override { inner_->on_closed(std::move(on_closed)); }
  bool closed() const override { return inner_->closed(); }
  size_t backlog() const override { return inner_->backlog(); }
  void on_drained(std::function<void()> on_drained) override { inner_->on_drained(std::move(on_drained)); }

 private:
  static void add_headers(net::Headers& headers) {
    headers.emplace_back("Access-Control-Allow-Origin", "*");
    headers.emplace_back("Access-Control-Allow-Credentials", "true");
  }

  std::shared_ptr<net::ResponseWriter> inner_;
};

}  // namespace

std::shared_ptr<net::ResponseWriter> with_cors(const net::HttpRequest& request,
                                               std::shared_ptr<net::ResponseWriter> writer) {
  if (!request.header("origin")) return writer;
  return std::make_shared<CorsWriter>(std::move(writer));
}

bool is_preflight(const net::HttpRequest& request) {
  return request.method == "OPTIONS" && request.header("origin") && request.header("access-control-request-method");
}

net::HttpResponse preflight_response(const net::HttpRequest& request) {
  net::HttpResponse response;
  response.content_type = "text/plain; charset=utf-8";
  response.body = "OK";
  response.headers = {{"Access-Control-Allow-Methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"},
                      {"Access-Control-Max-Age", "600"},
                      {"Vary", "Origin"}};
  if (const std::string* wanted = request.header("access-control-request-headers")) {
    response.headers.emplace_back("Access-Control-Allow-Headers", *wanted);
  }
  return response;
}

}  // namespace tandem::server
