#include "net/http_server.h"

#include <fmt/format.h>

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "base/log.h"
#include "net/detail/connection.h"

namespace tandem::net {

namespace {

using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr int kAcceptQueue = 4096;
constexpr Duration kAcceptPause = std::chrono::milliseconds(100);

// Accepts connections until it is closed; owned by the server and by the pending accept.
class Listener : public std::enable_shared_from_this<Listener> {
 public:
  explicit Listener(std::shared_ptr<ServerCore> core) : core_(std::move(core)), acceptor_(core_->loop.impl().context) {}

  Status open() {
    const auto& options = core_->options;
    auto wrong = [&](std::string_view what, const error_code& error) {
      return invalid_input(fmt::format("cannot {} {}:{}: {}", what, options.host, options.port, error.message()));
    };
    error_code error;
    tcp::endpoint endpoint;
    if (auto address = asio::ip::make_address(options.host.empty() ? "0.0.0.0" : options.host, error); !error) {
      endpoint = {address, options.port};
    } else {
      tcp::resolver resolver(core_->loop.impl().context);
      auto found = resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
      if (error) return wrong("resolve", error);
      endpoint = found.begin()->endpoint();
    }
    acceptor_.open(endpoint.protocol(), error);
    if (error) return wrong("open a socket for", error);
    acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    acceptor_.bind(endpoint, error);
    if (error) return wrong("bind", error);
    acceptor_.listen(kAcceptQueue, error);
    if (error) return wrong("listen on", error);
    port_ = acceptor_.local_endpoint(error).port();
    return Ok{};
  }

  void accept() {
    acceptor_.async_accept([self = shared_from_this()](const error_code& error, tcp::socket socket) {
      if (!self->acceptor_.is_open() || error == asio::error::operation_aborted) return;
      if (error) {
        // Out of descriptors, most likely: waiting lets connections end; accepting again at once would spin.
        log::warning("port={} cannot accept a connection: {}", self->port_, error.message());
        self->pause_ = self->core_->loop.after(kAcceptPause, [self] { self->accept(); });
        return;
      }
      self->welcome(std::move(socket));
      self->accept();
    });
  }

  void close() {
    error_code ignored;
    acceptor_.close(ignored);
    pause_.reset();
  }
  uint16_t port() const { return port_; }

 private:
  void welcome(tcp::socket socket) {
    if (core_->connections.size() >= core_->options.max_connections) {
      static constexpr std::string_view kFull =
          "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
      error_code ignored;
      socket.non_blocking(true, ignored);
      socket.write_some(asio::buffer(kFull.data(), kFull.size()), ignored);
      socket.shutdown(tcp::socket::shutdown_send, ignored);
      return;
    }
    auto connection = std::make_shared<Connection>(core_, std::move(socket));
    core_->connections.insert(connection);
    core_->open.fetch_add(1, std::memory_order_relaxed);
    connection->start();
  }

  std::shared_ptr<ServerCore> core_;  // shared with the connections, which may outlive the server
  tcp::acceptor acceptor_;
  uint16_t port_ = 0;
  std::shared_ptr<EventLoop::Timer> pause_;
};

class AsioHttpServer final : public HttpServer {
 public:
  AsioHttpServer(std::shared_ptr<ServerCore> core, std::shared_ptr<Listener> listener)
      : core_(std::move(core)), listener_(std::move(listener)), port_(listener_->port()) {}

  ~AsioHttpServer() override {
    listener_->close();
    auto connections = core_->connections;  // close() erases
    for (const auto& connection : connections) connection->close(false);
    core_->handler = nullptr;
  }

  uint16_t port() const override { return port_; }
  size_t open_connections() const override { return core_->open.load(std::memory_order_relaxed); }

  void drain() override {
    core_->draining = true;
    listener_->close();
    auto connections = core_->connections;
    for (const auto& connection : connections) connection->drain();
  }

 private:
  std::shared_ptr<ServerCore> core_;
  std::shared_ptr<Listener> listener_;
  const uint16_t port_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::listen(EventLoop& loop, HttpServerOptions options,
                                                       HttpHandler handler) {
  auto core = std::shared_ptr<ServerCore>(new ServerCore{loop, std::move(options), std::move(handler)});
  auto listener = std::make_shared<Listener>(core);
  RETURN_IF_ERROR(listener->open());
  // listen() may be called on any thread; accepting begins on the loop's.
  loop.post([listener] { listener->accept(); });
  return std::unique_ptr<HttpServer>(std::make_unique<AsioHttpServer>(std::move(core), std::move(listener)));
}

}  // namespace tandem::net
