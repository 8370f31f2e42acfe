// Two workers in one process. What happens when processes die is in tests/contract/kv_transfer_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "transport/transport.h"

namespace tandem::transport {
namespace {

struct Side {
  explicit Side(size_t bytes) : memory(bytes) {
    auto made = Context::create(memory);
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
