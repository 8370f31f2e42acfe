#include "tests/sim/sim_network.h"

#include <cstring>

#include "base/check.h"

namespace tandem::testing {

bool Timeline::run_due() {
  bool any = false;
  while (!events_.empty() && events_.top().when <= clock_.now()) {
    std::function<void()> what = events_.top().what;
    events_.pop();
    what();
    any = true;
  }
  return any;
}

void SimNetwork::join(uint64_t process, std::string address, uint64_t epoch, kv::TransferPort& port,
                      kv::KvStorage& storage) {
  processes_[process] = {std::move(address), epoch, &port, &storage, 1};
}

void SimNetwork::crash(uint64_t process) {
  processes_.erase(process);
  for (const auto& link : links_) {
    if (link->process[0] == process || link->process[1] == process) cut(*link, "connection reset by peer");
  }
}

SimNetwork::Process* SimNetwork::find(uint64_t process) {
  const auto it = processes_.find(process);
  return it == processes_.end() ? nullptr : &it->second;
}

std::pair<SimNetwork::Link*, int> SimNetwork::end_of(uint64_t process, PeerId peer) {
  for (const auto& link : links_) {
    for (const int end : {0, 1}) {
      if (link->process[end] == process && link->peer[end] == peer) return {link.get(), end};
    }
  }
  return {nullptr, 0};
}

void SimNetwork::report(uint64_t process, kv::TransferReport report) {
  Process* to = find(process);
  if (to == nullptr) return;  // crashed meanwhile
  CHECK(to->port->reports.push(std::move(report)) == PushResult::kPushed);
}

bool SimNetwork::take_commands() {
  bool any = false;
  for (auto& [id, process] : processes_) {
    while (auto command = process.port->commands.try_pop()) {
      apply(id, *command);
      any = true;
    }
  }
  return any;
}

void SimNetwork::apply(uint64_t process, kv::TransferCommand& command) {
  if (auto* c = std::get_if<kv::ConnectCommand>(&command)) {
    connect(process, *c);
  } else if (auto* s = std::get_if<kv::SendCommand>(&command)) {
    send(process, *s);
  } else if (auto* r = std::get_if<kv::ReadCommand>(&command)) {
    read(process, *r);
  } else if (auto* d = std::get_if<kv::DisconnectCommand>(&command)) {
    const auto [link, end] = end_of(process, d->peer);
    if (link == nullptr || link->cut) return;
    link->lost_told[end] = true;  // it knows
    cut(*link, "disconnected by peer");
  }
  // CancelReadCommand: a cancelled read may still land; that is the harder case, so it always does.
}

void SimNetwork::connect(uint64_t process, const kv::ConnectCommand& command) {
  const std::string address = command.host + ":" + std::to_string(command.port);
  const PeerId peer{find(process)->next_peer++};
  report(process, kv::ConnectStarted{command.connect_id, peer});
  const bool refused = chance(faults_.refused_connect);
  timeline_.after(draw(faults_.slowest_message), [this, process, peer, address, refused] {
    uint64_t other = 0;
    for (const auto& [id, candidate] : processes_) {
      if (candidate.address == address) other = id;
    }
    Process* from = find(process);
    if (from == nullptr) return;
    if (other == 0 || refused) return report(process, kv::PeerLost{peer, address + ": connection refused"});
    auto link = std::make_unique<Link>();
    link->process[0] = process;
    link->process[1] = other;
    link->peer[0] = peer;
    link->peer[1] = PeerId{find(other)->next_peer++};
    report(other, kv::PeerConnected{link->peer[1], from->epoch});
    report(process, kv::PeerConnected{peer, find(other)->epoch});
    links_.push_back(std::move(link));
  });
}

void SimNetwork::send(uint64_t process, kv::SendCommand& command) {
  const auto [link, end] = end_of(process, command.peer);
  if (link == nullptr || link->cut) return;
  if (chance(faults_.cut_per_message)) return cut(*link, "connection reset by peer");
  const int there = 1 - end;
  const int copies = chance(faults_.duplicate_per_message) ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    const TimePoint arrival = std::max(link->last_arrival[there], timeline_.now() + draw(faults_.slowest_message));
    link->last_arrival[there] = arrival;
    timeline_.at(arrival, [this, link = link, there, bytes = command.bytes] {
      if (link->cut || link->lost_told[there]) return;
      report(link->process[there], kv::PeerMessage{link->peer[there], bytes});
    });
  }
}

void SimNetwork::read(uint64_t process, kv::ReadCommand& command) {
  const auto [link, end] = end_of(process, command.peer);
  const Duration until_copy = draw(faults_.slowest_read);
  const Duration until_end = until_copy + draw(faults_.slowest_read);
  if (link == nullptr) {
    return report(process, kv::ReadFinished{command.read_id, peer_lost("no such peer")});
  }
  const auto copied = std::make_shared<bool>(false);  // shared by the two events of this read
  timeline_.after(until_copy, [this, link = link, end = end, copied, ranges = std::move(command.ranges)] {
    Process* here = find(link->process[end]);
    Process* there = find(link->process[1 - end]);
    if (here == nullptr || there == nullptr) return;
    for (const kv::CopyRange& range : ranges) {
      CHECK(range.bytes > 0);
      CHECK(range.remote_offset >= 0 && range.remote_offset + range.bytes <= there->storage->layout().total_bytes());
      CHECK(range.local_offset >= 0 && range.local_offset + range.bytes <= here->storage->layout().total_bytes());
      std::memcpy(static_cast<char*>(here->storage->base()) + range.local_offset,
                  static_cast<char*>(there->storage->base()) + range.remote_offset, size_t(range.bytes));
    }
    spoil(*here->storage, *there->storage, ranges);
    *copied = true;
  });
  timeline_.after(until_end, [this, process, link = link, copied, read_id = command.read_id] {
    const bool ok = *copied && !link->cut;
    report(process, kv::ReadFinished{read_id, ok ? Status(Ok{}) : Status(peer_lost("connection reset by peer"))});
  });
}

// What hardware, or a block that was let go too early, may do to a read.
void SimNetwork::spoil(kv::KvStorage& here, const kv::KvStorage& there, const std::vector<kv::CopyRange>& ranges) {
  const kv::CopyRange& range = ranges[random_() % ranges.size()];
  char* to = static_cast<char*>(here.base()) + range.local_offset;
  if (chance(faults_.flip_per_read)) {
    to[random_() % uint64_t(range.bytes)] ^= char(1u << random_() % 8);
    ++spoiled_;
  }
  if (chance(faults_.foreign_per_read)) {
    const auto last = uint64_t(there.layout().total_bytes() - range.bytes);
    std::memcpy(to, static_cast<const char*>(there.base()) + random_() % (last + 1), size_t(range.bytes));
    ++spoiled_;
  }
}

void SimNetwork::cut(Link& link, const std::string& reason) {
  if (link.cut) return;
  link.cut = true;
  for (const int end : {0, 1}) {
    if (link.lost_told[end]) continue;
    timeline_.after(draw(faults_.slowest_detection),
                    [this, link = &link, end, reason] { tell_lost(*link, end, reason); });
  }
}

void SimNetwork::tell_lost(Link& link, int end, const std::string& reason) {
  if (link.lost_told[end]) return;
  link.lost_told[end] = true;
  report(link.process[end], kv::PeerLost{link.peer[end], reason});
}

}  // namespace tandem::testing
