#include "engine/roles/prefill_worker.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "engine/roles/combined_worker.h"
#include "engine/step/sampler.h"

namespace tandem::engine {

using scheduler::RequestState;

namespace {

constexpr int kMaxReportsPerTurn = 1024;
constexpr size_t kMaxStrangers = 65536;  // wants without a request, rooms given up early
constexpr Duration kCheckEvery = std::chrono::milliseconds(5);
// How long a room that one side gave up is remembered for the other's first word.
constexpr Duration kRememberGone = std::chrono::seconds(30);
constexpr size_t kMaxKeptReason = 256;  // a peer's words, kept for each of kMaxStrangers rooms

}  // namespace

api::KvIdentity identity_of(const Core& core) {
  const kv::KvLayout& layout = core.parts.cache->layout();
  api::KvIdentity identity;
  identity.model_fingerprint = core.parts.model->fingerprint();
  identity.dtype = uint32_t(layout.dtype);
  identity.num_layers = uint32_t(layout.num_layers);
  identity.row_width = uint32_t(layout.row_width);
  identity.block_tokens = uint32_t(layout.block_tokens);
  return identity;
}

PrefillWorker::PrefillWorker(Core& core)
    : core_(core),
      outbox_(*core.parts.transfer, core.config.epoch, core.parts.flight),
      prefill_(core),
      reporter_(core) {
  core_.on_end = [this](Request& request, const Ending& ending) { on_end(request, ending); };
}

void PrefillWorker::submit(api::EngineRequest input) {
  const auto [request, is_fake, room] =
      admit_disaggregated(core_, std::move(input), scheduler::LifeKind::kPrefill, rooms_, prefill_.has_work());
  if (request == nullptr) return;
  request->max_new_tokens = 1;  // the rest is decode's
  request->source = std::make_unique<SourceHandover>();
  SourceHandover& source = *request->source;
  source.is_fake = is_fake;
  if (is_fake) {
    advance(request->life, RequestState::kWaiting, core_.now());
    prefill_.push(*request);
    return;
  }
  source.room = room;
  rooms_[source.room] = request;
  advance(request->life, RequestState::kBootstrapping, core_.now());
  num_bootstrapping_ += 1;
  source.deadline = core_.now() + core_.config.bootstrap_timeout;
  if (const auto gone = gone_.find(source.room); gone != gone_.end()) {
    const std::string reason = gone->second.reason;
    gone_.erase(gone);
    source.settled = true;
    return core_.end(*request, failed("decode gave the room up: " + reason, 500));
  }
  if (const auto early = wants_.find(source.room); early != wants_.end()) {
    const Want want = early->second;
    wants_.erase(early);
    handle(want.peer, want.message);
  }
}

void PrefillWorker::cancel(Request& request, const CancelCommand& command) {
  core_.end(request, ending_of(command, request.state() != RequestState::kWaiting));
}

bool PrefillWorker::take_reports() {
  bool any = false;
  for (int i = 0; i < kMaxReportsPerTurn; ++i) {
    std::optional<kv::TransferReport> next = core_.parts.transfer->reports.try_pop();
    if (!next) break;
    report(*next);
    any = true;
  }
  outbox_.flush();
  return any;
}

void PrefillWorker::report(kv::TransferReport& report) {
  if (const auto* connected = std::get_if<kv::PeerConnected>(&report)) {
    peers_[connected->peer] = {connected->epoch, false};
    outbox_.notes().connected(connected->peer, connected->epoch, fmt::format("peer {}", connected->peer.value));
  } else if (const auto* lost = std::get_if<kv::PeerLost>(&report)) {
    lose_peer(lost->peer, lost->reason);
  } else if (const auto* message = std::get_if<kv::PeerMessage>(&report)) {
    receive(message->peer, message->bytes);
  }
}

void PrefillWorker::receive(PeerId peer, const std::string& bytes) {
  const auto known = peers_.find(peer);
  if (known == peers_.end()) return;  // already lost
  const Result<api::HandoverEnvelope> decoded = api::decode_handover(bytes);
  std::string fault;
  if (!decoded) {
    fault = decoded.error().message;
  } else if (decoded->epoch != known->second.epoch) {
    fault =
        fmt::format("epoch differs: the connection has {:x}, the message {:x}", known->second.epoch, decoded->epoch);
  } else if (!known->second.greeted && !std::holds_alternative<api::HandoverHello>(decoded->message)) {
    fault = "a message came before the handshake";
  }
  if (!fault.empty()) {
    log::write(log::Level::kWarning, core_.config.log_scope,
               fmt::format("handover peer={} refused: {}", peer.value, fault));
    outbox_.send(peer, api::HandoverHelloReply{false, fault, identity_of(core_), 0, {}});
    outbox_.command(kv::DisconnectCommand{peer});
    lose_peer(peer, fault);
    return;
  }
  outbox_.notes().received(peer, decoded->message);
  std::visit([&](const auto& message) { handle(peer, message); }, decoded->message);
}

void PrefillWorker::handle(PeerId peer, const api::HandoverHello& hello) {
  api::HandoverHelloReply reply;
  reply.identity = identity_of(core_);
  reply.num_blocks = uint32_t(core_.parts.cache->layout().num_blocks);
  reply.ranks = core_.config.rank_addresses;
  const Status compatible = check_compatible(reply.identity, hello.identity);
  reply.accepted = compatible.has_value();
  if (!reply.accepted) {
    reply.reason = compatible.error().message;
    log::write(log::Level::kWarning, core_.config.log_scope,
               fmt::format("handover peer={} refused: {}", peer.value, reply.reason));
  }
  peers_[peer].greeted = reply.accepted;
  outbox_.send(peer, reply);
}

std::string PrefillWorker::fault_of(const Request& request, const api::HandoverWant& want) const {
  if (request.source->is_wanted) return fmt::format("bootstrap_room {} is already in use", want.room);
  if (int32_t(want.prompt_tokens) != request.prompt_tokens) {
    return fmt::format("prompt differs: prefill has {} tokens, decode has {}", request.prompt_tokens,
                       want.prompt_tokens);
  }
  if (want.prompt_digest != api::prompt_digest(request.prompt())) return "prompt differs: same length, other ids";
  return "";
}

void PrefillWorker::handle(PeerId peer, const api::HandoverWant& want) {
  if (const auto known = rooms_.find(want.room); known != rooms_.end()) {
    Request& request = *known->second;
    if (find(peer, want.room, want.tag) != nullptr) return;  // the same once more
    const std::string fault = fault_of(request, want);
    if (!fault.empty()) return refuse(peer, want.room, want.tag, fault);
    return accept(request, peer, want);
  }
  if (const auto gone = gone_.find(want.room); gone != gone_.end()) {
    refuse(peer, want.room, want.tag, gone->second.reason);
    gone_.erase(gone);
    return;
  }
  if (const auto other = wants_.find(want.room); other != wants_.end()) {
    if (other->second.peer == peer && other->second.message.tag == want.tag) return;
    return refuse(peer, want.room, want.tag, fmt::format("bootstrap_room {} is already in use", want.room));
  }
  if (wants_.size() >= kMaxStrangers) return refuse(peer, want.room, want.tag, "too many unknown rooms are waiting");
  wants_[want.room] = {peer, want, core_.now() + core_.config.bootstrap_timeout};
}

void PrefillWorker::refuse(PeerId peer, uint64_t room, uint64_t tag, const std::string& reason) {
  outbox_.send(peer, api::HandoverAbort{room, tag, reason});
}

void PrefillWorker::accept(Request& request, PeerId peer, const api::HandoverWant& want) {
  SourceHandover& source = *request.source;
  source.is_wanted = true;
  source.peer = peer;
  source.tag = want.tag;
  num_bootstrapping_ -= 1;
  advance(request.life, RequestState::kWaiting, core_.now());
  prefill_.push(request);
}

Request* PrefillWorker::find(PeerId peer, uint64_t room, uint64_t tag) const {
  const auto known = rooms_.find(room);
  if (known == rooms_.end()) return nullptr;
  const SourceHandover& source = *known->second->source;
  const bool same = source.is_wanted && source.peer == peer && source.tag == tag;
  return same ? known->second : nullptr;
}

void PrefillWorker::handle(PeerId peer, const api::HandoverConfirm& message) {
  Request* request = find(peer, message.room, message.tag);
  if (request == nullptr || request->source->generation != message.generation) {
    return refuse(peer, message.room, message.tag, "the source blocks are not held any more");
  }
  SourceHandover& source = *request->source;
  source.wants_digest = message.wants_digest;
  if (source.complete) return confirm(*request);
  source.confirm_waits = true;
}

void PrefillWorker::handle(PeerId peer, const api::HandoverAck& ack) {
  Request* request = find(peer, ack.room, ack.tag);
  if (request == nullptr || !request->source->complete) return;
  core_.handovers += 1;
  core_.handover_bytes += uint64_t(request->prompt_tokens) * uint64_t(core_.parts.cache->layout().token_bytes());
  request->source->settled = true;
  api::EngineEvent event = std::move(*request->source->first);
  core_.end(*request, finished_by_length(0), std::move(event));
}

void PrefillWorker::handle(PeerId peer, const api::HandoverAbort& abort) {
  if (Request* request = find(peer, abort.room, abort.tag)) {
    core_.metrics.transfer_failed.add();
    request->source->settled = true;
    return core_.end(*request, failed("decode gave up: " + abort.reason, 500));
  }
  const auto known = rooms_.find(abort.room);
  if (known != rooms_.end()) {
    // Nobody else asked for this room, so it is this decode request that will not.
    Request& request = *known->second;
    if (request.source->is_wanted) return;
    request.source->settled = true;
    return core_.end(request, failed("decode gave up: " + abort.reason, 500));
  }
  const auto early = wants_.find(abort.room);
  if (early != wants_.end() && (early->second.peer != peer || early->second.message.tag != abort.tag)) return;
  if (early != wants_.end()) wants_.erase(early);
  remember_gone(abort.room, abort.reason);
}

// Decode has these rooms and waits for memory: the time to ask for them counts from here again.
void PrefillWorker::handle(PeerId, const api::HandoverQueued& queued) {
  for (const uint64_t room : queued.rooms) {
    const auto known = rooms_.find(room);
    if (known == rooms_.end() || known->second->state() != RequestState::kBootstrapping) continue;
    known->second->source->deadline = core_.now() + core_.config.bootstrap_timeout;
  }
}

void PrefillWorker::remember_gone(uint64_t room, std::string reason) {
  if (gone_.size() >= kMaxStrangers) return;
  reason.resize(std::min(reason.size(), kMaxKeptReason));
  gone_[room] = {std::move(reason), core_.now() + kRememberGone};
}

void PrefillWorker::lose_peer(PeerId peer, const std::string& reason) {
  peers_.erase(peer);
  outbox_.notes().lost(peer);
  std::erase_if(wants_, [&](const auto& entry) { return entry.second.peer == peer; });
  std::vector<Request*> affected;
  for (const auto& [room, request] : rooms_) {
    if (request->source->is_wanted && request->source->peer == peer) affected.push_back(request);
  }
  std::ranges::sort(affected, {}, &Request::arrival);
  if (affected.empty()) return;
  log::write(log::Level::kError, core_.config.log_scope,
             fmt::format("Losing connection with decode instance (peer: {}), {} requests affected: {}", peer.value,
                         affected.size(), reason));
  for (Request* request : affected) {
    core_.metrics.transfer_failed.add();
    request->source->settled = true;
    core_.end(*request, failed("decode instance lost: " + reason, 500));
  }
}

void PrefillWorker::tick() {
  if (core_.now() < next_check_) return;
  next_check_ = core_.now() + kCheckEvery;
  std::vector<Request*> late;
  for (const auto& [room, request] : rooms_) {
    const bool bootstrapping = request->state() == RequestState::kBootstrapping;
    const bool inflight = request->state() == RequestState::kInflight;
    if ((bootstrapping || inflight) && core_.now() >= request->source->deadline) late.push_back(request);
  }
  std::ranges::sort(late, {}, &Request::arrival);
  for (Request* request : late) {
    if (request->state() == RequestState::kBootstrapping) {
      core_.metrics.bootstrap_failed.add();
      core_.end(*request, failed(fmt::format("Request {} timed out after {:.1f}s in KVPoll.Bootstrapping",
                                             request->source->room, seconds(core_.config.bootstrap_timeout)),
                                 500));
    } else {
      core_.metrics.transfer_failed.add();
      core_.end(*request, failed(fmt::format("Request {}: no acknowledgement from decode within {:.1f}s",
                                             request->source->room, seconds(core_.config.source_lease_timeout)),
                                 500));
    }
  }
  for (const auto& [room, want] : wants_) {
    if (core_.now() >= want.deadline) {
      refuse(want.peer, room, want.message.tag, "the request did not reach prefill in time");
    }
  }
  std::erase_if(wants_, [&](const auto& entry) { return core_.now() >= entry.second.deadline; });
  std::erase_if(gone_, [&](const auto& entry) { return core_.now() >= entry.second.forget_at; });
}

LoadFigures PrefillWorker::load() const {
  LoadFigures load;
  load.queued = int32_t(prefill_.num_waiting());
  load.prealloc = num_bootstrapping_;
  load.inflight = num_inflight_;
  load.used_tokens = core_.used_tokens();
  load.total_tokens = core_.config.max_total_tokens;
  return load;
}

void PrefillWorker::form(Batch& batch, bool) {
  const LoadFigures before = load();
  const int32_t free_slots = core_.config.max_running_requests - prefill_.num_cut();
  const PrefillQueue::Formed formed = prefill_.form(batch, free_slots, 0);
  for (Request* request : formed.started) {
    if (!request->source->is_fake) name_source(*request);
  }
  if (batch.empty()) return;
  LoadFigures figures = before;
  figures.queued = int32_t(prefill_.num_waiting());
  reporter_.prefill_formed(formed.figures, figures, 0);
}

// Tells decode where the prompt's rows will be; those of a cached prefix are there already.
void PrefillWorker::name_source(Request& request) {
  SourceHandover& source = *request.source;
  source.generation = request.lease.generation();
  CHECK(source.generation != 0);
  outbox_.send(source.peer, api::HandoverSource{source.room, source.tag, source.generation, request.block_table});
  if (request.kv_tokens > 0) {
    announce(request, 0, core_.parts.cache->layout().num_layers, 0, request.kv_tokens);
  }
}

void PrefillWorker::announce(const Request& request, int32_t layer_begin, int32_t layer_end, int32_t token_begin,
                             int32_t token_end) {
  const SourceHandover& source = *request.source;
  api::HandoverAnnounce message;
  message.room = source.room;
  message.tag = source.tag;
  message.generation = source.generation;
  message.layer_begin = uint32_t(layer_begin);
  message.layer_end = uint32_t(layer_end);
  message.token_begin = uint32_t(token_begin);
  message.token_end = uint32_t(token_end);
  outbox_.send(source.peer, message);
}

void PrefillWorker::layer_done(const Batch& batch, int32_t layer) {
  for (const BatchEntry& entry : batch.entries()) {
    if (entry.request->source->is_fake || entry.request->pending_end) continue;
    announce(*entry.request, layer, layer + 1, entry.first_token, entry.end_token());
  }
}

void PrefillWorker::after_step(const Batch& batch, const Sampler& sampler) {
  prefill_.after_forward(batch);
  for (const BatchEntry& entry : batch.entries()) {
    Request& request = *entry.request;
    core_.leave_step(request);
    if (is_terminal(request.state())) continue;
    if (request.kv_tokens < request.prompt_tokens) continue;
    complete(request, sampler.result(entry));
  }
}

void PrefillWorker::complete(Request& request, const kernels::SampleResult& drawn) {
  if (!drawn.finite) return core_.end(request, failed("NaN happened", 500));
  SourceHandover& source = *request.source;
  source.complete = true;
  source.first = std::make_unique<api::EngineEvent>();
  source.first->tokens = {drawn.token};
  if (request.input.return_logprob) source.first->logprobs = {to_logprob(drawn)};
  advance(request.life, RequestState::kInflight, core_.now());
  source.deadline = core_.now() + core_.config.source_lease_timeout;
  if (!source.is_fake) num_inflight_ += 1;
  if (source.is_fake) {
    core_.end(request, finished_by_length(0), std::move(*source.first));
  } else if (source.confirm_waits) {
    confirm(request);
  }
}

// Decode says that its last read is done; the lease still stands, so what it read is what was computed.
void PrefillWorker::confirm(const Request& request) {
  const SourceHandover& source = *request.source;
  CHECK(source.generation == request.lease.generation());
  api::HandoverConfirmed message;
  message.room = source.room;
  message.tag = source.tag;
  message.generation = source.generation;
  message.first_token = source.first->tokens.front();
  message.cached_tokens = uint32_t(request.cached_tokens);
  if (source.wants_digest) {
    message.digest = core_.parts.cache->digest(request.block_table.data(), request.prompt_tokens);
  }
  if (!source.first->logprobs.empty()) message.logprob = source.first->logprobs.front();
  outbox_.send(source.peer, message);
}

void PrefillWorker::on_end(Request& request, const Ending& ending) {
  if (request.source == nullptr || request.source->is_fake) return;
  const SourceHandover& source = *request.source;
  rooms_.erase(source.room);
  if (!source.is_wanted) num_bootstrapping_ -= 1;
  if (source.complete) num_inflight_ -= 1;
  if (source.settled) return;
  const std::string& reason = ending.finish.message;
  if (source.is_wanted) {
    refuse(source.peer, source.room, source.tag, reason);
  } else {
    remember_gone(source.room, reason);
  }
}

}  // namespace tandem::engine
