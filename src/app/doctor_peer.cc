#include "app/doctor_peer.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <sstream>

#include "transport/transport.h"

namespace tandem::app {
namespace {

using transport::EndpointId;

constexpr Duration kLook = std::chrono::milliseconds(20);
constexpr Duration kLongestStream = std::chrono::seconds(1);
constexpr int kPings = 50;
constexpr uint64_t kStreamBytes = uint64_t(32) << 20;
constexpr uint64_t kMostStreamBytes = uint64_t(1) << 30;
constexpr size_t kInFlight = size_t(4) << 20;
constexpr std::string_view kHello = "tandem-doctor 1";

// A context and a worker over the devices that a server with the same flags would use.
struct Wire {
  std::unique_ptr<transport::Context> context;
  std::unique_ptr<transport::Worker> worker;

  static Result<Wire> open(const PeerOptions& options) {
    Wire wire;
    ASSIGN_OR_RETURN(wire.context, transport::Context::create({}, true, options.devices, {options.secret}));
    ASSIGN_OR_RETURN(wire.worker, transport::Worker::create(*wire.context));
    return wire;
  }
};

// "ping 17" with the verb "ping" is 17.
std::optional<uint64_t> number_after(std::string_view line, std::string_view verb) {
  if (!line.starts_with(verb) || line.size() <= verb.size() + 1 || line[verb.size()] != ' ') return std::nullopt;
  uint64_t number = 0;
  const char* end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data() + verb.size() + 1, end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return number;
}

class Caller {
 public:
  Caller(transport::Worker& worker, EndpointId endpoint, std::string name, TimePoint deadline)
      : worker_(worker), endpoint_(endpoint), name_(std::move(name)), deadline_(deadline) {}

  Result<PeerFact> run() {
    ASSIGN_OR_RETURN(const std::string hello, ask(std::string(kHello)));
    std::istringstream words(hello);
    std::string verb;
    if (!(words >> verb >> fact_.version >> fact_.mtu) || verb != "hello") return stranger();
    RETURN_IF_ERROR(ping());
    RETURN_IF_ERROR(stream());
    worker_.close(endpoint_, true);
    return fact_;
  }

 private:
  Error stranger() const { return corrupt(fmt::format("{}: what answers there is not tandem doctor", name_)); }

  Result<std::string> next() {
    while (true) {
      if (!messages_.empty()) {
        std::string first = std::move(messages_.front());
        messages_.erase(messages_.begin());
        return first;
      }
      if (clock_.now() >= deadline_) return timed_out(fmt::format("{}: no answer in time", name_));
      std::vector<transport::Event> events;
      if (!worker_.progress(clock_.now(), events)) worker_.wait(kLook);
      for (transport::Event& event : events) {
        if (const auto* failed = std::get_if<transport::EndpointFailed>(&event)) {
          return peer_lost(fmt::format("{}: {}", name_, failed->reason));
        }
        if (auto* message = std::get_if<transport::MessageArrived>(&event)) {
          messages_.push_back(std::move(message->bytes));
        }
      }
    }
  }

  Result<std::string> ask(std::string question) {
    worker_.send(endpoint_, std::move(question));
    return next();
  }

  Status ping() {
    double best_s = 1e9;
    for (int i = 0; i < kPings; ++i) {
      const TimePoint sent = clock_.now();
      const double sent_unix_s = clock_.unix_seconds();
      ASSIGN_OR_RETURN(const std::string pong, ask(fmt::format("ping {}", i)));
      const double round_s = seconds(clock_.now() - sent);
      std::istringstream words(pong);
      std::string verb;
      int number = -1;
      double theirs_s = 0;
      if (!(words >> verb >> number >> theirs_s) || verb != "pong" || number != i) return stranger();
      if (round_s >= best_s) continue;
      best_s = round_s;
      fact_.round_trip_us = round_s * 1e6;
      fact_.skew_s = theirs_s - (sent_unix_s + round_s / 2);
    }
    return Ok{};
  }

  Status stream() {
    const TimePoint begin = clock_.now();
    worker_.send(endpoint_, fmt::format("send {}", kStreamBytes));
    uint64_t got = 0;
    while (got < kStreamBytes && clock_.now() - begin < kLongestStream) {
      ASSIGN_OR_RETURN(const std::string part, next());
      got += part.size();
    }
    fact_.bandwidth_mb_per_s = double(got) / 1e6 / std::max(1e-6, seconds(clock_.now() - begin));
    return Ok{};
  }

  const SystemClock clock_;
  transport::Worker& worker_;
  const EndpointId endpoint_;
  const std::string name_;
  const TimePoint deadline_;
  std::vector<std::string> messages_;
  PeerFact fact_;
};

class Listener {
 public:
  Listener(transport::Worker& worker, const PeerOptions& options) : worker_(worker), options_(options) {}

  void turn() {
    std::vector<transport::Event> events;
    const bool busy = worker_.progress(clock_.now(), events);
    for (const transport::Event& event : events) {
      if (const auto* failed = std::get_if<transport::EndpointFailed>(&event)) owed_.erase(failed->endpoint);
      if (const auto* message = std::get_if<transport::MessageArrived>(&event)) {
        answer(message->endpoint, message->bytes);
      }
    }
    if (!pay() && !busy && events.empty()) worker_.wait(kLook);
  }

 private:
  void answer(EndpointId endpoint, std::string_view line) {
    if (line == kHello) {
      worker_.send(endpoint, fmt::format("hello {} {}", options_.version, options_.own_mtu));
    } else if (const auto ping = number_after(line, "ping")) {
      worker_.send(endpoint, fmt::format("pong {} {:.9f}", *ping, clock_.unix_seconds()));
    } else if (const auto bytes = number_after(line, "send"); bytes && *bytes <= kMostStreamBytes) {
      owed_[endpoint] = *bytes;
    } else {
      worker_.close(endpoint, false);  // a stranger
      owed_.erase(endpoint);
    }
  }

  // Sends of what is owed as much as may be under way. Returns whether anything was sent.
  bool pay() {
    bool any = false;
    for (auto it = owed_.begin(); it != owed_.end();) {
      auto& [endpoint, left] = *it;
      while (left > 0 && worker_.queued_bytes(endpoint) < kInFlight) {
        const uint64_t part = std::min<uint64_t>(left, transport::kMaxMessageBytes);
        worker_.send(endpoint, std::string(part, '\0'));
        left -= part;
        any = true;
      }
      it = left == 0 ? owed_.erase(it) : std::next(it);
    }
    return any;
  }

  const SystemClock clock_;
  transport::Worker& worker_;
  const PeerOptions& options_;
  std::map<EndpointId, uint64_t> owed_;
};

}  // namespace

Result<PeerFact> call_peer(const std::string& host, uint16_t port, const PeerOptions& options, Duration timeout) {
  ASSIGN_OR_RETURN(const transport::SocketAddress address, transport::resolve(host, port));
  ASSIGN_OR_RETURN(Wire wire, Wire::open(options));
  ASSIGN_OR_RETURN(const EndpointId endpoint, wire.worker->connect(address));
  const std::string name = fmt::format("{}:{}", host, port);
  ASSIGN_OR_RETURN(PeerFact fact, Caller(*wire.worker, endpoint, name, SystemClock().now() + timeout).run());
  fact.address = name;
  fact.own_mtu = options.own_mtu;
  return fact;
}

Status listen_for_peers(const std::string& host, uint16_t port, const PeerOptions& options,
                        const std::function<void(uint16_t)>& started, const std::function<bool()>& stopped) {
  ASSIGN_OR_RETURN(Wire wire, Wire::open(options));
  ASSIGN_OR_RETURN(const uint16_t bound, wire.worker->listen(host, port));
  started(bound);
  Listener listener(*wire.worker, options);
  while (!stopped()) listener.turn();
  return Ok{};
}

}  // namespace tandem::app
