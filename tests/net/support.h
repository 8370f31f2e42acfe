// A server on its own loop thread, and a raw socket that says exactly what a test wants said.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "net/http_client.h"
#include "net/http_server.h"

namespace tandem::net::testing {

using Steady = std::chrono::steady_clock;

// Waits for condition() without sleeping longer than a scheduler's turn.
inline bool eventually(const std::function<bool()>& condition, Duration within = std::chrono::seconds(10)) {
  const auto deadline = Steady::now() + within;
  while (!condition()) {
    if (Steady::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

// A loop on a thread of its own. Objects that live on it are made and destroyed through on_loop().
class LoopThread {
 public:
  LoopThread() : thread_([this] { loop_.run(); }) {}
  ~LoopThread() { loop_.stop(); }
  EventLoop& loop() { return loop_; }
  void on_loop(const std::function<void()>& task) {
    std::promise<void> done;
    loop_.post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }

 private:
  EventLoop loop_;
  std::jthread thread_;
};

class ServerThread : public LoopThread {
 public:
  explicit ServerThread(HttpHandler handler, HttpServerOptions options = {}) {
    auto server = HttpServer::listen(loop(), std::move(options), std::move(handler));
    EXPECT_TRUE(server.has_value()) << server.error().message;
    server_ = std::move(server).value();
  }
  ~ServerThread() {
    on_loop([&] { server_.reset(); });
  }
  uint16_t port() const { return server_->port(); }
  HttpServer& server() { return *server_; }
  Url url(std::string path) const { return {"127.0.0.1", port(), std::move(path)}; }

 private:
  std::unique_ptr<HttpServer> server_;
};

class RawClient {
 public:
  explicit RawClient(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  bool say(std::string_view bytes) {
    while (!bytes.empty()) {
      ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(n);
    }
    return true;
  }
  // One more piece; empty at the end of the connection or after `within`.
  std::string hear_some(Duration within = std::chrono::seconds(10)) {
    pollfd p{fd_, POLLIN, 0};
    if (::poll(&p, 1, static_cast<int>(within / std::chrono::milliseconds(1))) <= 0) return {};
    std::string bytes(64 << 10, '\0');
    ssize_t n = ::recv(fd_, bytes.data(), bytes.size(), 0);
    bytes.resize(n > 0 ? n : 0);
    return bytes;
  }
  std::string hear_until(std::string_view ending, Duration within = std::chrono::seconds(10)) {
    while (heard_.find(ending) == std::string::npos) {
      std::string more = hear_some(within);
      if (more.empty()) break;
      heard_ += more;
    }
    size_t end = heard_.find(ending);
    end = end == std::string::npos ? heard_.size() : end + ending.size();
    std::string said = heard_.substr(0, end);
    heard_.erase(0, end);
    return said;
  }
  std::string hear_all(Duration within = std::chrono::seconds(10)) {
    std::string all = std::move(heard_);
    heard_.clear();
    for (std::string more = hear_some(within); !more.empty(); more = hear_some(within)) all += more;
    return all;
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }
  void reset() {
    linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
  bool connected_ = false;
  std::string heard_;
};

// Accepts one connection after the other and plays a script on each.
class RawServer {
 public:
  explicit RawServer(std::function<void(int fd, int nth)> script) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(fd_, 16), 0);
    socklen_t size = sizeof address;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::jthread([this, script = std::move(script)] {
      for (int nth = 0;; ++nth) {
        int fd = ::accept(fd_, nullptr, nullptr);
        if (fd < 0) return;
        script(fd, nth);
        ::close(fd);
      }
    });
  }
  ~RawServer() {
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    ::close(fd_);
  }
  uint16_t port() const { return port_; }

  static void say(int fd, std::string_view bytes) {
    EXPECT_EQ(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL), ssize_t(bytes.size()));
  }
  static std::string hear_until(int fd, std::string_view ending) {
    std::string all;
    char byte;
    while (all.find(ending) == std::string::npos && ::recv(fd, &byte, 1, 0) == 1) all.push_back(byte);
    return all;
  }

 private:
  int fd_;
  uint16_t port_ = 0;
  std::jthread thread_;
};

inline int count_of(std::string_view text, std::string_view what) {
  int count = 0;
  for (size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + what.size())) ++count;
  return count;
}

}  // namespace tandem::net::testing
