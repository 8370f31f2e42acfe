// What a large body costs a router: it is held once, whatever the two legs do with it.
#include <charconv>
#include <fstream>

#include "tests/router/support.h"

namespace tandem::router {
namespace {

using net::testing::RawClient;
using net::testing::RawServer;
using namespace std::chrono_literals;

size_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return std::stoull(line.substr(field.size() + 1)) * 1024;
  }
  ADD_FAILURE() << "no " << field;
  return 0;
}

// Answers each request after reading it, and keeps nothing of it.
void serve_discarding(int fd) {
  for (;;) {
    const std::string head = RawServer::hear_until(fd, "\r\n\r\n");
    if (head.empty()) return;
    size_t left = 0;
    const size_t at = head.find("content-length: ");
    if (at != std::string::npos) std::from_chars(head.data() + at + 16, head.data() + head.size(), left);
    std::vector<char> scratch(1 << 16);
    while (left > 0) {
      const ssize_t n = ::recv(fd, scratch.data(), std::min(left, scratch.size()), 0);
      if (n <= 0) return;
      left -= static_cast<size_t>(n);
    }
    RawServer::say(fd, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
    return;
  }
}

TEST(RouterMemory, ALargeBodyIsHeldOnce) {
  constexpr size_t kBody = size_t(200) << 20;
  RawServer prefill([](int fd, int) { serve_discarding(fd); }), decode([](int fd, int) { serve_discarding(fd); });
  RouterConfig config = testing::quick_config();
  config.health.interval = 1h;
  config.instances = {{"127.0.0.1:" + std::to_string(prefill.port()), Role::kPrefill, 8998},
                      {"127.0.0.1:" + std::to_string(decode.port()), Role::kDecode, {}}};
  testing::RouterThread router(config);
  ASSERT_TRUE(router.wait_ready());
  const std::string front = R"({"text":")", back = R"("})";
  const std::string piece(1 << 20, 'p');
  const size_t before = status_bytes("VmRSS:");
  std::ofstream("/proc/self/clear_refs") << "5";  // VmHWM starts again from here
  RawClient client(router.port());
  client.say("POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: " +
             std::to_string(front.size() + kBody + back.size()) + "\r\n\r\n" + front);
  for (size_t sent = 0; sent < kBody; sent += piece.size()) ASSERT_TRUE(client.say(piece));
  client.say(back);
  EXPECT_TRUE(client.hear_until("{}", 60s).starts_with("HTTP/1.1 200"));
  const size_t peak = status_bytes("VmHWM:") - before;
  std::printf("body_mib=%zu peak_mib=%zu\n", kBody >> 20, peak >> 20);
  EXPECT_LT(peak, kBody * 3 / 2) << "the contract is 3 times; the parts are made for once";
}

}  // namespace
}  // namespace tandem::router
