// Two workers in one process. What happens when processes die is in tests/contract/kv_transfer_test.cc.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "transport/transport.h"

namespace tandem::transport {
namespace {

struct Side {
  explicit Side(size_t bytes, const Credentials& own = {}) : memory(bytes) {
    auto made = Context::create(memory, false, {}, own);
    EXPECT_TRUE(made) << made.error().message;
    context = std::move(made).value();
    auto worked = Worker::create(*context);
    EXPECT_TRUE(worked) << worked.error().message;
    worker = std::move(worked).value();
  }

  template <class E>
  const E* first() const {
    for (const Event& event : events) {
      if (const auto* found = std::get_if<E>(&event)) return found;
    }
    return nullptr;
  }
  template <class E>
  size_t count() const {
    return size_t(std::count_if(events.begin(), events.end(), [](const auto& e) { return std::get_if<E>(&e); }));
  }

  std::vector<std::byte> memory;
  std::unique_ptr<Context> context;
  std::unique_ptr<Worker> worker;
  std::vector<Event> events;
};

class TransportWorker : public testing::Test {
 protected:
  template <class Done>
  bool pump_until(Done done) {
    const TimePoint deadline = clock.now() + std::chrono::seconds(20);
    while (!done()) {
      if (clock.now() > deadline) return false;
      const bool any = client.worker->progress(clock.now(), client.events);
      if (!server.worker->progress(clock.now(), server.events) && !any) std::this_thread::yield();
    }
    return true;
  }
  EndpointId connect() {
    const auto port = server.worker->listen("127.0.0.1", 0);
    EXPECT_TRUE(port) << port.error().message;
    EXPECT_NE(*port, 0);
    const auto endpoint = client.worker->connect(*resolve("127.0.0.1", *port));
    EXPECT_TRUE(endpoint);
    client.worker->send(*endpoint, "hello");
    EXPECT_TRUE(pump_until([&] { return server.first<MessageArrived>() != nullptr; }));
    return *endpoint;
  }

  SystemClock clock;
  Side server{1 << 20}, client{1 << 20};
};

TEST_F(TransportWorker, MessagesArriveInOrderOnTheAcceptedEndpoint) {
  const EndpointId endpoint = connect();
  ASSERT_NE(server.first<EndpointAccepted>(), nullptr);
  EXPECT_EQ(server.first<MessageArrived>()->endpoint, server.first<EndpointAccepted>()->endpoint);
  for (int i = 0; i < 300; ++i) client.worker->send(endpoint, std::string(size_t(i * 100), char('a' + i % 26)));
  ASSERT_TRUE(pump_until([&] { return server.count<MessageArrived>() == 301; }));
  int i = -1;
  for (const Event& event : server.events) {
    const auto* message = std::get_if<MessageArrived>(&event);
    if (message == nullptr) continue;
    if (i >= 0) {
      EXPECT_EQ(message->bytes, std::string(size_t(i * 100), char('a' + i % 26)));
    }
    ++i;
  }
  EXPECT_EQ(client.worker->queued_bytes(endpoint), 0u);
}

TEST_F(TransportWorker, LingeringCloseDeliversTheLastMessageAndBothSidesLetGo) {
  const EndpointId endpoint = connect();
  const EndpointId accepted = server.first<EndpointAccepted>()->endpoint;
  server.worker->send(accepted, "last words");
  server.worker->close(accepted, true);
  ASSERT_TRUE(pump_until([&] { return client.first<MessageArrived>() != nullptr; }));
  EXPECT_EQ(client.first<MessageArrived>()->bytes, "last words");
  client.worker->send(endpoint, "ignored over there");
  ASSERT_TRUE(pump_until([&] { return client.first<EndpointFailed>() != nullptr; }));
  EXPECT_EQ(server.count<MessageArrived>(), 1u);
  EXPECT_EQ(server.first<EndpointFailed>(), nullptr) << "who closes is told nothing";
}

TEST_F(TransportWorker, ReadsNeedAnImportedRegionAndStayInsideIt) {
  const EndpointId endpoint = connect();
  const std::span<std::byte> local(client.memory.data(), 4096);
  EXPECT_EQ(client.worker->get(1, endpoint, 0, local).error().code, ErrorCode::kPeerLost);
  const auto base = reinterpret_cast<uint64_t>(server.memory.data());
  EXPECT_FALSE(client.worker->import_region(endpoint, base, 4096, ""));
  EXPECT_FALSE(client.worker->import_region(endpoint, base, 4096, std::string(kMaxKeyBytes + 1, 'x')));
  EXPECT_FALSE(client.worker->import_region(endpoint, UINT64_MAX - 10, 4096, server.context->key()));
  ASSERT_TRUE(client.worker->import_region(endpoint, base, server.memory.size(), server.context->key()));
  EXPECT_EQ(client.worker->get(1, endpoint, server.memory.size() - 4095, local).error().code, ErrorCode::kInvalidInput);
  EXPECT_EQ(client.worker->get(1, endpoint, UINT64_MAX, local).error().code, ErrorCode::kInvalidInput);
  server.memory[server.memory.size() - 1] = std::byte(77);
  ASSERT_TRUE(client.worker->get(5, endpoint, server.memory.size() - 4096, local));
  ASSERT_TRUE(pump_until([&] { return client.first<GetFinished>() != nullptr; }));
  EXPECT_EQ(client.first<GetFinished>()->get_id, 5u);
  EXPECT_EQ(client.first<GetFinished>()->bytes, 4096u);
  EXPECT_TRUE(client.first<GetFinished>()->status);
  EXPECT_EQ(client.memory[4095], std::byte(77));
}

TEST_F(TransportWorker, AKeyOfRubbishIsAnErrorOrLeadsNowhereButNeverCrashes) {
  const EndpointId endpoint = connect();
  const auto base = reinterpret_cast<uint64_t>(server.memory.data());
  for (const std::string& key : {std::string(1, '\xff'), std::string(11, '\0'), server.context->key().substr(0, 3)}) {
    const EndpointId again = *client.worker->connect(*resolve("127.0.0.1", 1));
    static_cast<void>(client.worker->import_region(again, base, 4096, key));
    client.worker->close(again, false);
  }
  client.worker->send(endpoint, "fine");
  EXPECT_TRUE(pump_until([&] { return server.count<MessageArrived>() == 2; }));
}

TEST_F(TransportWorker, AConnectionNobodyTakesFails) {
  const auto endpoint = client.worker->connect(*resolve("127.0.0.1", 1));
  ASSERT_TRUE(endpoint);
  ASSERT_TRUE(pump_until([&] { return client.first<EndpointFailed>() != nullptr; }));
  EXPECT_EQ(client.first<EndpointFailed>()->endpoint, *endpoint);
  client.worker->send(*endpoint, "nobody");  // a no-op
  client.worker->close(*endpoint, true);
}

TEST_F(TransportWorker, APortInUseIsAnErrorThatNamesIt) {
  const auto port = server.worker->listen("127.0.0.1", 0);
  ASSERT_TRUE(port);
  const auto again = client.worker->listen("127.0.0.1", *port);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find(std::to_string(*port)), std::string::npos) << again.error().message;
}

// Two workers with credentials of their own; the caller has said something before the greeting was done.
struct Greeters {
  Greeters(const Credentials& caller, const Credentials& listener) : client(64, caller), server(64, listener) {
    const auto port = server.worker->listen("127.0.0.1", 0);
    endpoint = *client.worker->connect(*resolve("127.0.0.1", *port));
    client.worker->send(endpoint, "early");
  }
  bool pump_until(const std::function<bool()>& done) {
    const TimePoint deadline = clock.now() + std::chrono::seconds(20);
    while (!done()) {
      if (clock.now() > deadline) return false;
      const bool any = client.worker->progress(clock.now(), client.events);
      if (!server.worker->progress(clock.now(), server.events) && !any) std::this_thread::yield();
    }
    return true;
  }

  SystemClock clock;
  Side client, server;
  EndpointId endpoint;
};

TEST(TransportGreeting, TheSameSecretLetsInAndEpochsAreKnown) {
  Greeters pair({"a secret of the deployment", 3}, {"a secret of the deployment", 4});
  ASSERT_TRUE(pair.pump_until([&] { return pair.server.first<MessageArrived>() != nullptr; }));
  const EndpointId accepted = pair.server.first<EndpointAccepted>()->endpoint;
  EXPECT_EQ(pair.server.first<MessageArrived>()->bytes, "early");
  EXPECT_EQ(pair.server.worker->peer_epoch(accepted), 3u);
  EXPECT_EQ(pair.client.worker->peer_epoch(pair.endpoint), 4u);
}

TEST(TransportGreeting, AnotherOrNoSecretIsRefusedByNameOnBothSides) {
  struct Case {
    Credentials caller, listener;
    std::string word;
  };
  for (const Case& c :
       {Case{{"another secret, as long"}, {"a secret of the deployment"}, "its deployment secret differs"},
        {{}, {"a secret of the deployment"}, "it has no deployment secret"},
        {{"a secret of the deployment"}, {}, "it has a deployment secret, and none is set here"}}) {
    ::testing::internal::CaptureStderr();
    Greeters pair(c.caller, c.listener);
    EXPECT_TRUE(pair.pump_until([&] { return pair.client.first<EndpointFailed>() != nullptr; }));
    const std::string logged = ::testing::internal::GetCapturedStderr();
    ASSERT_NE(pair.client.first<EndpointFailed>(), nullptr);
    EXPECT_TRUE(pair.client.first<EndpointFailed>()->not_greeted);
    EXPECT_NE(pair.client.first<EndpointFailed>()->reason.find(c.word), std::string::npos);
    EXPECT_NE(logged.find("a connection from 127.0.0.1:"), std::string::npos) << logged;
    EXPECT_NE(logged.find("was refused: " + c.word), std::string::npos) << logged;
    EXPECT_EQ(logged.find("a secret of the deployment"), std::string::npos) << "secrets are not logged";
    EXPECT_TRUE(pair.server.events.empty()) << "the owner does not hear of strangers";
  }
}

// What scanners and lost clients say to UCX's own port, which reads before we do. Bytes made for it can end the process
// (docs/security.md).
TEST(TransportGreeting, BytesOfAnotherProtocolHarmNobody) {
  Side server(64);
  const SystemClock clock;
  const auto port = server.worker->listen("127.0.0.1", 0);
  const SocketAddress address = *resolve("127.0.0.1", *port);
  std::vector<int> sockets;
  for (const std::string& said :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(8192, 'A'), std::string(1, '\0'),
        std::string("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 TLS", 15), std::string("SSH-2.0-x\r\n"), std::string()}) {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    ASSERT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(address.bytes.data()), socklen_t(address.bytes.size())),
              0);
    static_cast<void>(!::send(fd, said.data(), said.size(), MSG_NOSIGNAL));
    sockets.push_back(fd);
  }
  Side client(64);
  client.worker->send(*client.worker->connect(address), "hello");
  const TimePoint deadline = clock.now() + std::chrono::seconds(20);
  while (server.first<MessageArrived>() == nullptr && clock.now() < deadline) {
    server.worker->progress(clock.now(), server.events);
    client.worker->progress(clock.now(), client.events);
  }
  EXPECT_NE(server.first<MessageArrived>(), nullptr);
  EXPECT_EQ(server.count<EndpointAccepted>(), 1u);
  for (const int fd : sockets) ::close(fd);
}

struct WaitingSide {
  WaitingSide() : context(*Context::create({}, true)), worker(*Worker::create(*context)) {}
  std::unique_ptr<Context> context;
  std::unique_ptr<Worker> worker;
  std::vector<Event> events;
};

TEST(TransportWait, EndsByAMessageByWakeAndByTheTimeout) {
  SystemClock clock;
  WaitingSide server, client;
  const auto port = server.worker->listen("127.0.0.1", 0);
  ASSERT_TRUE(port);
  const auto endpoint = client.worker->connect(*resolve("127.0.0.1", *port));
  const auto pump = [&](size_t events) {
    const TimePoint deadline = clock.now() + std::chrono::seconds(20);
    while (server.events.size() < events && clock.now() < deadline) {
      client.worker->progress(clock.now(), client.events);
      server.worker->progress(clock.now(), server.events);
    }
    return server.events.size() >= events;
  };
  client.worker->send(*endpoint, "first");
  ASSERT_TRUE(pump(2));  // accepted, arrived
  for (int i = 0; i < 20; ++i) {
    const TimePoint begin = clock.now();
    std::jthread sender([&] { client.worker->send(*endpoint, "more"); });
    while (server.events.size() < size_t(3 + i) && clock.now() - begin < std::chrono::seconds(15)) {
      if (!server.worker->progress(clock.now(), server.events)) server.worker->wait(std::chrono::seconds(15));
    }
    EXPECT_LT(clock.now() - begin, std::chrono::seconds(10)) << i;
  }
  {
    const TimePoint begin = clock.now();
    std::jthread waker([&] { server.worker->wake(); });
    server.worker->wait(std::chrono::seconds(15));
    EXPECT_LT(clock.now() - begin, std::chrono::seconds(10));
  }
  while (server.worker->progress(clock.now(), server.events)) {
  }
  const TimePoint begin = clock.now();
  while (clock.now() - begin < std::chrono::milliseconds(5)) server.worker->wait(std::chrono::milliseconds(5));
  EXPECT_LT(clock.now() - begin, std::chrono::seconds(10));
}

TEST(TransportResolve, TheOwnAddressTowardsLoopbackIsLoopback) {
  EXPECT_EQ(*local_host_towards(*resolve("127.0.0.1", 9)), "127.0.0.1");
}

TEST(TransportResolve, NumbersAndLocalhostNeedNoNameServer) {
  EXPECT_TRUE(resolve("127.0.0.1", 80));
  EXPECT_TRUE(resolve("localhost", 80));
  EXPECT_EQ(resolve("::1", 80)->bytes.size(), resolve("[::1]", 80)->bytes.size());
  EXPECT_GT(resolve("::1", 80)->bytes.size(), resolve("127.0.0.1", 80)->bytes.size());
}

TEST(TransportResolve, RubbishIsNotFound) {
  const auto address = resolve("no such host", 80);
  ASSERT_FALSE(address);
  EXPECT_EQ(address.error().code, ErrorCode::kNotFound);
}

TEST(TransportDevices, OnlyTheNamedOnesAreUsed) {
  const auto all = Context::create({});
  ASSERT_TRUE(all);
  ASSERT_FALSE((*all)->devices().empty());
  const std::string name = (*all)->devices().back().name;
  const auto one = Context::create({}, true, {name});
  ASSERT_TRUE(one) << one.error().message;
  for (const NetworkDevice& device : (*one)->devices()) EXPECT_EQ(device.name, name);
}

TEST(TransportDevices, OneThatIsNotThereIsRefusedBesideOneThatIs) {
  const auto all = Context::create({});
  ASSERT_TRUE(all);
  const auto none = Context::create({}, false, {(*all)->devices().front().name, "nonexistent0"});
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kInvalidInput);
  EXPECT_NE(none.error().message.find("'nonexistent0'"), std::string::npos) << none.error().message;
}

}  // namespace
}  // namespace tandem::transport
