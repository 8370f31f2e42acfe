#include "profile/flight/handover_waits.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace tandem::profile {
namespace {

struct Open {
  const char* awaited;
  std::string address;
  int64_t since_ns;
};

// What comes next from the other side after this message; null: nothing is waited for.
const char* awaited_after(FlightRole role, FlightKind kind, FlightMessage message) {
  const bool sent = kind == FlightKind::kSent;
  if (role == FlightRole::kPrefill) return sent && message == FlightMessage::kConfirmed ? "'ack'" : nullptr;
  switch (message) {
    case FlightMessage::kHello: return sent ? "'hello reply'" : nullptr;
    case FlightMessage::kWant: return sent ? "'source'" : nullptr;
    case FlightMessage::kSource: return sent ? nullptr : "'announce' of the last layer";
    case FlightMessage::kAnnounce: return sent ? nullptr : "the rows of the cache";
    case FlightMessage::kConfirm: return sent ? "'confirmed'" : nullptr;
    default: return nullptr;
  }
}

class Reader {
 public:
  explicit Reader(const FlightLog& log) : role_(FlightRole(log.header.role)) {
    for (const FlightEntry& entry : log.entries) {
      if (flight_lane(entry.kind) == 2) take(entry);
    }
  }

  std::vector<HandoverWait> waits() const {
    std::map<std::tuple<uint64_t, std::string, std::string>, HandoverWait> by_kind;
    for (const auto& [key, open] : open_) {
      HandoverWait& wait = by_kind[{key.epoch, open.address, open.awaited}];
      if (wait.awaited.empty() || open.since_ns < wait.since_ns) {
        wait.room = key.room;
        wait.since_ns = open.since_ns;
      }
      wait.awaited = open.awaited;
      wait.epoch = key.epoch;
      wait.address = open.address;
      wait.num_rooms += 1;
      const auto heard = heard_.find(key.epoch);
      if (heard != heard_.end()) wait.heard_ns = heard->second;
    }
    std::vector<HandoverWait> waits;
    for (auto& [kind, wait] : by_kind) waits.push_back(std::move(wait));
    std::ranges::stable_sort(waits, {}, &HandoverWait::since_ns);
    return waits;
  }

 private:
  struct Key {
    uint64_t epoch, room;
    std::string address;  // of a connection that has not answered; else empty
    auto operator<=>(const Key&) const = default;
  };

  void take(const FlightEntry& entry) {
    const uint64_t epoch = flight_epoch(entry);
    const std::string address = flight_address(entry);
    const Key connection{0, 0, address};
    switch (entry.kind) {
      case FlightKind::kConnect: open_[connection] = {"the connection", address, entry.time_ns}; return;
      case FlightKind::kConnected:
        open_.erase(connection);
        heard_[epoch] = entry.time_ns;
        return;
      case FlightKind::kPeerLost:
        open_.erase(connection);
        std::erase_if(open_, [&](const auto& open) { return epoch != 0 && open.first.epoch == epoch; });
        return;
      default: break;
    }
    if (entry.kind == FlightKind::kReceived) heard_[epoch] = entry.time_ns;
    const Key key{epoch, entry.step, ""};
    const auto message = FlightMessage(entry.detail);
    if (const char* awaited = awaited_after(role_, entry.kind, message)) {
      open_[key] = {awaited, address, entry.time_ns};
    } else {
      open_.erase(key);
    }
  }

  const FlightRole role_;
  std::map<Key, Open> open_;
  std::map<uint64_t, int64_t> heard_;  // by epoch
};

}  // namespace

std::vector<HandoverWait> handover_waits(const FlightLog& log) { return Reader(log).waits(); }

}  // namespace tandem::profile
