#include "kv/transfer_thread.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <thread>

#include "base/check.h"

namespace tandem::kv {
namespace {

constexpr size_t kCommandsPerTurn = 256;
constexpr int kBusyTurns = 64;  // turns without news before the thread starts to sleep between looks
// Sleeps between looks grow to this while nothing happens: a message to an idle instance waits half of it on average.
constexpr Duration kFirstNap = std::chrono::microseconds(20);
constexpr Duration kLongestNap = std::chrono::microseconds(400);

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;  // clang 14 does not deduce aggregates

}  // namespace

struct TransferThread::State {
  State(std::unique_ptr<KvTransfer> transfer, TransferPort& port, const Clock& clock, std::function<void()> on_report,
        profile::SharedRecorder* spans)
      : transfer(std::move(transfer)), port(port), clock(clock), on_report(std::move(on_report)), spans(spans) {
    address = this->transfer->address();
  }

  void run(std::stop_token stop) {
    int idle_turns = 0;
    while (!stop.stop_requested()) {
      if (turn()) {
        idle_turns = 0;
      } else if (++idle_turns < kBusyTurns) {
        std::this_thread::yield();
      } else {
        const Duration nap = std::min(kLongestNap, kFirstNap * (1 + (idle_turns - kBusyTurns) / 8));
        if (auto command = port.commands.pop(nap)) {
          apply(std::move(*command));
          idle_turns = 0;
        }
      }
    }
  }

  bool turn() {
    bool any = false;
    // A stalled engine holds us back: no polling while its reports wait here, and no more commands than reports fit.
    for (size_t i = 0; i < kCommandsPerTurn && backlog.size() < port.reports.capacity(); ++i) {
      auto command = port.commands.try_pop();
      if (!command) break;
      apply(std::move(*command));
      any = true;
    }
    if (backlog.empty()) {
      events.clear();
      const TimePoint began = clock.now();
      const bool moved = transfer->poll(began, events);
      any |= moved;
      if (spans != nullptr) record(began, moved);
      for (TransferEvent& event : events) {
        std::visit([&](auto& e) { backlog.push_back(std::move(e)); }, event);
      }
      bytes_read.store(transfer->bytes_read(), std::memory_order_relaxed);
    }
    return hand_over() || any;
  }

  // Reads from their posting to their end; a poll that did something, which on a prefill server is rows being sent.
  void record(TimePoint began, bool moved) {
    const bool on = spans->on();
    for (const TransferEvent& event : events) {
      const auto* read = std::get_if<ReadFinished>(&event);
      if (read == nullptr) continue;
      const auto posted = reads.find(read->read_id);
      if (posted == reads.end()) continue;
      if (on) push("read", profile::SpanKind::kAsync, posted->second, read->read_id);
      reads.erase(posted);
    }
    if (on && moved) push("transfer", profile::SpanKind::kSpan, {began, 0}, 0);
  }
  struct PostedRead {
    TimePoint at;
    uint64_t num_bytes;
  };
  void push(const char* name, profile::SpanKind kind, const PostedRead& what, uint64_t id) {
    profile::Span span{};
    span.begin_ns = what.at.time_since_epoch().count();
    span.end_ns = spans->now_ns();
    span.name = name;
    span.track = profile::Track::kTransfer;
    span.kind = kind;
    span.id = id;
    span.layer = -1;
    if (what.num_bytes > 0) {
      span.labels = "bytes";
      span.values[0] = double(what.num_bytes);
      span.num_values = 1;
    }
    spans->push(span);
  }

  // This thread is the only producer of reports, so room seen is room kept.
  bool hand_over() {
    bool any = false;
    while (!backlog.empty() && port.reports.size() < port.reports.capacity()) {
      const PushResult pushed = port.reports.push(std::move(backlog.front()));
      CHECK(pushed != PushResult::kFull);
      backlog.pop_front();
      any = true;
    }
    if (any && on_report) on_report();
    return any;
  }

  void apply(TransferCommand command) {
    std::visit(Overloaded{
                   [&](ConnectCommand& c) {
                     const PeerId peer = transfer->connect(c.host, c.port, clock.now());
                     backlog.push_back(ConnectStarted{c.connect_id, peer});
                   },
                   [&](SendCommand& c) { transfer->send(c.peer, std::move(c.bytes)); },
                   [&](ReadCommand& c) {
                     if (spans != nullptr) note(c);
                     transfer->post_read(c.read_id, c.peer, c.ranges);
                   },
                   [&](CancelReadCommand& c) { transfer->cancel_read(c.read_id); },
                   [&](DisconnectCommand& c) { transfer->disconnect(c.peer); },
               },
               command);
  }

  void note(const ReadCommand& read) {
    uint64_t num_bytes = 0;
    for (const CopyRange& range : read.ranges) num_bytes += range.bytes;
    reads[read.read_id] = {clock.now(), num_bytes};
  }

  const std::unique_ptr<KvTransfer> transfer;
  TransferPort& port;
  const Clock& clock;
  const std::function<void()> on_report;
  profile::SharedRecorder* const spans;  // null: nothing is recorded
  std::map<uint64_t, PostedRead> reads;  // under way; every read ends
  std::string address;
  std::atomic<uint64_t> bytes_read = 0;
  std::deque<TransferReport> backlog;  // at most one poll's events, or as many as reports fit
  std::vector<TransferEvent> events;   // scratch
  std::jthread thread;
};

TransferThread::TransferThread(std::unique_ptr<KvTransfer> transfer, TransferPort& port, const Clock& clock,
                               std::function<void()> on_report, profile::SharedRecorder* spans)
    : state_(std::make_unique<State>(std::move(transfer), port, clock, std::move(on_report), spans)) {
  state_->thread = std::jthread([state = state_.get()](std::stop_token stop) { state->run(stop); });
}

TransferThread::~TransferThread() {
  state_->thread.request_stop();
  state_->port.commands.wake();
  state_->thread.join();
}

std::string TransferThread::address() const { return state_->address; }
uint64_t TransferThread::bytes_read() const { return state_->bytes_read.load(std::memory_order_relaxed); }

}  // namespace tandem::kv
