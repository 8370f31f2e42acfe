// DecodeWorker's use of the pool: whom it takes in, who gives way, who comes back.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/check.h"
#include "engine/roles/decode_worker.h"

namespace tandem::engine {

using scheduler::RequestState;

namespace {

// Of the pool: what everything taken in may need in the end. Beyond the pool itself requests give way to each other,
// and their rows wait in host memory, which this bounds.
constexpr int64_t kOvercommit = 2;
// Outputs longer than planning looks ahead can exceed it; here the request that has to give way fails instead.
constexpr int64_t kParkedPoolsAtMost = 4;
constexpr Duration kTellQueuedEvery = std::chrono::seconds(5);

int64_t planned_tokens(const Request& request) {
  return request.prompt_tokens + std::min(request.max_new_tokens, scheduler::kMaxPlannedOutput);
}

}  // namespace

scheduler::DecodeLoad DecodeWorker::decode_load() const {
  scheduler::DecodeLoad load;
  load.free_tokens = core_.available_blocks() * core_.config.block_tokens;
  for (const Request* request : running_.requests()) {
    load.retractable_tokens += request->num_tokens();
    const int64_t need = std::min(request->max_new_tokens, scheduler::kMaxPlannedOutput) + request->prompt_tokens;
    load.largest_need = std::max(load.largest_need, need);
  }
  load.num_running = running_.size();
  load.num_receiving = int64_t(receiving_.size());
  load.num_arrived = int64_t(arrived_.size());
  for (const Request* request : retracted_) load.retracted_tokens += request->num_tokens();
  load.num_retracted = int64_t(retracted_.size());
  return load;
}

// What all requests here but the waiting ones may need in the end.
int64_t DecodeWorker::taken_in_tokens() const {
  int64_t tokens = 0;
  for (const Request* request : running_.requests()) tokens += planned_tokens(*request);
  for (const Request* request : receiving_) tokens += planned_tokens(*request);
  for (const Request* request : arrived_) tokens += planned_tokens(*request);
  for (const Request* request : retracted_) tokens += planned_tokens(*request);
  return tokens;
}

void DecodeWorker::admit_prepared() {
  if (preparing_.empty() || !retracted_.empty()) return;
  const int64_t reserve = core_.config.num_reserved_decode_tokens;
  const scheduler::DecodeLoad load = decode_load();
  const bool idle = load.num_running + load.num_receiving + load.num_arrived == 0;
  int64_t allocatable = allocatable_tokens(load, reserve);
  int64_t may_be_taken = kOvercommit * core_.config.max_total_tokens - taken_in_tokens();
  bool taken_any = false;
  for (Request* request : preparing_) {
    if (is_terminal(request->state())) continue;
    const PrefillPeer* peer = request->sink->is_fake ? nullptr : find_source(*request);
    // A prefill server that is slow to answer does not hold up requests of the others.
    if (!request->sink->is_fake && peer == nullptr) continue;
    const scheduler::DecodeCandidate candidate{
        int64_t(core_.blocks_for(request->prompt_tokens)) * core_.config.block_tokens, request->max_new_tokens};
    std::optional<int64_t> taken = admit(candidate, allocatable, load.retractable_tokens, reserve);
    // With nothing else here the longest request that the pool can hold at all must get in, rounding or not.
    if (!taken && idle && !taken_any && core_.num_draining() == 0) taken = allocatable;
    may_be_taken -= planned_tokens(*request);
    if (!taken || may_be_taken < 0) break;
    if (!core_.reserve(*request, request->prompt_tokens)) break;
    allocatable -= *taken;
    taken_any = true;
    if (peer != nullptr) {
      ask(*request, *peer);
    } else {
      arrive(*request, 0, std::nullopt);
    }
  }
  std::erase_if(preparing_, [](const Request* r) { return r->state() != RequestState::kPreparing; });
}

// Prefill waits for Want only so long. What waits here for memory is not late: its rooms are named to prefill from time
// to time, for as long as this side lives and has them.
void DecodeWorker::tell_queued() {
  if (core_.now() < next_told_) return;
  next_told_ = core_.now() + kTellQueuedEvery;
  std::map<PeerId, api::HandoverQueued> queued;
  for (Request* request : preparing_) {
    if (is_terminal(request->state()) || request->sink->is_fake) continue;
    const PrefillPeer* peer = find_source(*request);
    if (peer == nullptr) continue;
    api::HandoverQueued& message = queued[*peer->id];
    message.rooms.push_back(request->sink->room);
    if (message.rooms.size() < api::kMaxHandoverRooms) continue;
    outbox_.send(*peer->id, message);
    message.rooms.clear();
  }
  for (const auto& [peer, message] : queued) {
    if (!message.rooms.empty()) outbox_.send(peer, message);
  }
}

// The connection to the rank of the prefill server that has the room, null while there is none. Where the ranks are is
// said in the handshake with the bootstrap address; both servers choose by the same rule.
const PrefillPeer* DecodeWorker::find_source(Request& request) {
  SinkHandover& sink = *request.sink;
  const PrefillPeer* peer = peers_.ready(sink.address);
  if (peer == nullptr || sink.is_routed) return peer;
  sink.is_routed = true;
  if (peer->ranks.size() < 2) return peer;
  const uint64_t rank = uint64_t(request.input.data_parallel_rank.value_or(int32_t(sink.room % peer->ranks.size())));
  if (rank >= peer->ranks.size()) {
    core_.end(request, aborted(fmt::format("data_parallel_rank {} is not in [0, {}), the ranks of prefill {}", rank,
                                           peer->ranks.size(), sink.address),
                               400));
    return nullptr;
  }
  const api::RankAddress& at = peer->ranks[rank];
  const std::string host = at.host.empty() ? request.input.bootstrap->host : at.host;
  sink.address = PrefillPeers::address_of(host, at.port);
  peers_.want(host, at.port, core_.now());
  return peers_.ready(sink.address);
}

void DecodeWorker::ask(Request& request, const PrefillPeer& peer) {
  SinkHandover& sink = *request.sink;
  advance(request.life, RequestState::kReserved, core_.now());
  sink.peer_ready_at = std::max(peer.ready_at, request.life.when(RequestState::kPreparing));
  sink.deadline = core_.now() + core_.config.waiting_timeout;
  receiving_.push_back(&request);
  outbox_.send(*peer.id, api::HandoverWant{sink.room, sink.tag, uint32_t(request.prompt_tokens),
                                           api::prompt_digest(request.prompt())});
}

void DecodeWorker::start_arrived() {
  while (!arrived_.empty() && running_.size() < core_.config.max_running_requests) {
    Request& request = *arrived_.front();
    arrived_.pop_front();
    if (request.state() != RequestState::kArrived) continue;
    advance(request.life, RequestState::kRunning, core_.now());
    running_.add(request);
  }
}

void DecodeWorker::retract(Request& request) {
  const int64_t bytes = int64_t(request.kv_tokens) * core_.parts.cache->layout().token_bytes();
  if (parked_bytes_ + bytes > kParkedPoolsAtMost * core_.parts.cache->layout().total_bytes()) {
    core_.end(request, failed("the KV cache pool and its host copy are full", 503));
    return;
  }
  park(request);
  request.retractions += 1;
  advance(request.life, RequestState::kRetracted, core_.now());
  retracted_.push_back(&request);
}

// Copies the request's rows to host memory and gives its blocks back.
void DecodeWorker::park(Request& request) {
  const kv::KvLayout& layout = core_.parts.cache->layout();
  const int32_t tokens = request.kv_tokens;
  request.parked.clear();
  request.parked.reserve(size_t(tokens * layout.token_bytes()));
  for (int32_t layer = 0; layer < layout.num_layers; ++layer) {
    for (int32_t done = 0; done < tokens; done += layout.block_tokens) {
      const int32_t block = request.block_table[size_t(done / layout.block_tokens)];
      const char* rows = static_cast<const char*>(core_.parts.cache->base()) + layout.offset(layer, block);
      const int64_t bytes = std::min(layout.block_tokens, tokens - done) * layout.row_bytes();
      request.parked.resize(request.parked.size() + size_t(bytes));
      device::copy_bytes(request.parked.data() + request.parked.size() - bytes, rows, size_t(bytes));
    }
  }
  parked_bytes_ += int64_t(request.parked.size());
  core_.release_blocks(request, false);
}

void DecodeWorker::unpark(Request& request) {
  const kv::KvLayout& layout = core_.parts.cache->layout();
  const int32_t tokens = request.num_tokens() - 1;
  CHECK(int64_t(request.parked.size()) == tokens * layout.token_bytes());
  const char* from = request.parked.data();
  for (int32_t layer = 0; layer < layout.num_layers; ++layer) {
    for (int32_t done = 0; done < tokens; done += layout.block_tokens) {
      const int32_t block = request.block_table[size_t(done / layout.block_tokens)];
      char* rows = static_cast<char*>(core_.parts.cache->base()) + layout.offset(layer, block);
      const int64_t bytes = std::min(layout.block_tokens, tokens - done) * layout.row_bytes();
      device::copy_bytes(rows, from, size_t(bytes));
      from += bytes;
    }
  }
  request.kv_tokens = tokens;
  parked_bytes_ -= int64_t(request.parked.size());
  request.parked = {};
}

void DecodeWorker::resume_retracted() {
  while (!retracted_.empty() && running_.size() < core_.config.max_running_requests) {
    Request& request = *retracted_.front();
    if (request.state() != RequestState::kRetracted) {
      retracted_.pop_front();
      continue;
    }
    const int32_t left = request.max_new_tokens - request.output_tokens();
    const int32_t needed = request.num_tokens() + std::min(core_.config.num_reserved_decode_tokens, left);
    if (core_.blocks_for(needed) > core_.available_blocks()) return;
    if (!core_.reserve(request, request.num_tokens())) return;
    retracted_.pop_front();
    unpark(request);
    advance(request.life, RequestState::kRunning, core_.now());
    running_.add(request);
  }
}

}  // namespace tandem::engine
