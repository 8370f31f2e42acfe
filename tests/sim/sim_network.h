// A network under virtual time for the simulation: what a KvTransfer promises (ordered messages per peer, one
// ReadFinished per read, one PeerLost per lost connection), with everything that a real one may do within that promise:
// delay, duplicate messages, cut connections, reads whose bytes arrive long after their request was given up, crashes.
// One thread; every choice is drawn from one seeded generator, so the same seed gives the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "kv/storage.h"
#include "kv/transfer_thread.h"

namespace tandem::testing {

struct NetworkFaults {
  double cut_per_message = 0;  // chance that a message breaks its connection instead of arriving
  double duplicate_per_message = 0;
  double refused_connect = 0;
  double flip_per_read = 0;     // chance that a read brings a wrong bit
  double foreign_per_read = 0;  // chance that a piece of a read comes from another block than the one asked for
  Duration slowest_message = std::chrono::milliseconds(3);
  Duration slowest_read = std::chrono::milliseconds(8);
  Duration slowest_detection = std::chrono::milliseconds(200);  // of a lost connection
};

// Events in order of time; ties in order of making.
class Timeline {
 public:
  explicit Timeline(ManualClock& clock) : clock_(clock) {}
  void at(TimePoint when, std::function<void()> what) { events_.push({when, made_++, std::move(what)}); }
  void after(Duration delay, std::function<void()> what) { at(clock_.now() + delay, std::move(what)); }
  bool run_due();
  bool empty() const { return events_.empty(); }
  TimePoint next() const { return events_.top().when; }
  TimePoint now() const { return clock_.now(); }

 private:
  struct Event {
    TimePoint when;
    uint64_t number;
    std::function<void()> what;
    bool operator<(const Event& other) const {
      return std::pair(when, number) > std::pair(other.when, other.number);  // the queue's top is the earliest
    }
  };
  ManualClock& clock_;
  std::priority_queue<Event> events_;
  uint64_t made_ = 0;
};

class SimNetwork {
 public:
  SimNetwork(Timeline& timeline, std::mt19937_64& random, NetworkFaults faults)
      : timeline_(timeline), random_(random), faults_(faults) {}

  // A process with a cache and a port. address: where it listens, "" for one that does not.
  void join(uint64_t process, std::string address, uint64_t epoch, kv::TransferPort& port, kv::KvStorage& storage);
  // It is gone: nothing of it answers, its peers notice after a while.
  void crash(uint64_t process);
  uint64_t num_spoiled_reads() const { return spoiled_; }
  // Takes the commands of every process.
  bool take_commands();

 private:
  struct Process {
    std::string address;
    uint64_t epoch = 0;
    kv::TransferPort* port = nullptr;
    kv::KvStorage* storage = nullptr;
    uint64_t next_peer = 1;
  };
  struct Link {  // one connection: two ends
    uint64_t process[2] = {0, 0};
    PeerId peer[2];
    bool cut = false;
    bool lost_told[2] = {false, false};
    TimePoint last_arrival[2];
  };

  Duration draw(Duration longest) { return Duration(int64_t(random_() % uint64_t(longest.count() + 1))); }
  bool chance(double p) { return double(random_() >> 11) * 0x1.0p-53 < p; }
  Process* find(uint64_t process);
  std::pair<Link*, int> end_of(uint64_t process, PeerId peer);
  void report(uint64_t process, kv::TransferReport report);
  void apply(uint64_t process, kv::TransferCommand& command);
  void connect(uint64_t process, const kv::ConnectCommand& command);
  void send(uint64_t process, kv::SendCommand& command);
  void read(uint64_t process, kv::ReadCommand& command);
  void spoil(kv::KvStorage& here, const kv::KvStorage& there, const std::vector<kv::CopyRange>& ranges);
  void cut(Link& link, const std::string& reason);
  void tell_lost(Link& link, int end, const std::string& reason);

  Timeline& timeline_;
  std::mt19937_64& random_;
  const NetworkFaults faults_;
  std::map<uint64_t, Process> processes_;
  std::vector<std::unique_ptr<Link>> links_;
  uint64_t spoiled_ = 0;
};

}  // namespace tandem::testing
