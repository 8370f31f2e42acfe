#include "engine/roles/decode_worker.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "engine/roles/combined_worker.h"
#include "engine/roles/prefill_worker.h"
#include "engine/step/sampler.h"

namespace tandem::engine {

using scheduler::RequestState;

namespace {

constexpr int kMaxReportsPerTurn = 1024;
constexpr Duration kCheckEvery = std::chrono::milliseconds(5);

// Whether this handover's bytes are compared: a draw that depends on the request only.
bool is_sampled(uint64_t room, double rate) {
  uint64_t x = room + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return double((x ^ (x >> 31)) >> 11) * 0x1.0p-53 < rate;
}

void add_merged(std::vector<kv::CopyRange>& ranges, const kv::CopyRange& next) {
  if (!ranges.empty()) {
    kv::CopyRange& last = ranges.back();
    if (last.remote_offset + last.bytes == next.remote_offset && last.local_offset + last.bytes == next.local_offset) {
      last.bytes += next.bytes;
      return;
    }
  }
  ranges.push_back(next);
}

}  // namespace

DecodeWorker::DecodeWorker(Core& core)
    : core_(core),
      outbox_(*core.parts.transfer, core.config.epoch, core.parts.flight),
      peers_(outbox_, identity_of(core), core.config.log_scope),
      running_(core),
      reporter_(core) {
  core_.on_end = [this](Request& request, const Ending&) { on_end(request); };
}

void DecodeWorker::submit(api::EngineRequest input) {
  const bool busy = running_.size() > 0 || !receiving_.empty() || !arrived_.empty();
  const auto [request, is_fake, room] =
      admit_disaggregated(core_, std::move(input), scheduler::LifeKind::kDecode, rooms_, busy);
  if (request == nullptr) return;
  request->sink = std::make_unique<SinkHandover>();
  SinkHandover& sink = *request->sink;
  sink.tag = request->id().value;
  sink.is_fake = is_fake;
  if (!is_fake) {
    rooms_[room] = request;
    sink.room = room;
    const api::BootstrapInfo& bootstrap = *request->input.bootstrap;
    sink.port = bootstrap.port.value_or(core_.config.default_bootstrap_port);
    sink.address = PrefillPeers::address_of(bootstrap.host, sink.port);
    sink.wants_digest = is_sampled(sink.room, core_.config.digest_sample_rate);
    if (!peers_.has_room_for(sink.address)) {
      sink.settled = true;
      return core_.end(*request, failed("too many prefill addresses are being called", 503));
    }
    peers_.want(bootstrap.host, sink.port, core_.now());
  }
  advance(request->life, RequestState::kPreparing, core_.now());
  core_.enqueue(preparing_, *request);
}

void DecodeWorker::cancel(Request& request, const CancelCommand& command) {
  core_.end(request, ending_of(command, request.state() != RequestState::kPreparing));
}

bool DecodeWorker::take_reports() {
  bool any = false;
  for (int i = 0; i < kMaxReportsPerTurn; ++i) {
    std::optional<kv::TransferReport> next = core_.parts.transfer->reports.try_pop();
    if (!next) break;
    any = true;
    if (const auto* finished = std::get_if<kv::ReadFinished>(&*next)) {
      read_finished(*finished);
      continue;
    }
    const PeerNews news = peers_.take(*next, core_.now());
    if (const auto* gone = std::get_if<PeerGone>(&news)) lose_peer(*gone);
    if (const auto* says = std::get_if<PeerSays>(&news)) {
      std::visit([&](const auto& message) { handle(says->address, message); }, says->message);
    }
  }
  post_reads();
  outbox_.flush();
  return any;
}

void DecodeWorker::fail(Request& request, const std::string& reason) {
  core_.metrics.transfer_failed.add();
  log::write(log::Level::kError, core_.config.log_scope,
             fmt::format("Decode transfer failed for request rank=0 req.rid='{}' req.bootstrap_room={} with exception "
                         "KVTransferError(bootstrap_room={}): {}",
                         request.input.rid, request.sink->room, request.sink->room, reason));
  core_.end(request, failed(reason, 500));
}

Request* DecodeWorker::find(const std::string& address, uint64_t room, uint64_t tag) const {
  const auto known = rooms_.find(room);
  if (known == rooms_.end()) return nullptr;
  const SinkHandover& sink = *known->second->sink;
  return sink.tag == tag && sink.address == address ? known->second : nullptr;
}

std::string DecodeWorker::fault_of(const Request& request, const api::HandoverSource& message,
                                   int32_t remote_blocks) const {
  const int32_t wanted = core_.blocks_for(request.prompt_tokens);
  if (int32_t(message.blocks.size()) != wanted) {
    return fmt::format("prefill named {} source blocks, the prompt has {}", message.blocks.size(), wanted);
  }
  for (const int32_t block : message.blocks) {
    if (block < 0 || block >= remote_blocks) {
      return fmt::format("prefill named block {}, its cache has {}", block, remote_blocks);
    }
  }
  return "";
}

void DecodeWorker::handle(const std::string& address, const api::HandoverSource& message) {
  Request* request = find(address, message.room, message.tag);
  const PrefillPeer* peer = peers_.ready(address);
  if (request == nullptr || peer == nullptr || request->state() != RequestState::kReserved) return;
  const std::string fault = fault_of(*request, message, peer->num_blocks);
  if (!fault.empty()) return fail(*request, fault);
  SinkHandover& sink = *request->sink;
  sink.generation = message.generation;
  sink.incoming = std::make_unique<SinkHandover::Incoming>();
  sink.incoming->source_blocks = message.blocks;
  sink.incoming->layer_tokens.assign(size_t(core_.parts.cache->layout().num_layers), 0);
  advance(request->life, RequestState::kReceiving, core_.now());
}

void DecodeWorker::handle(const std::string& address, const api::HandoverAnnounce& message) {
  Request* request = find(address, message.room, message.tag);
  const PrefillPeer* peer = peers_.ready(address);
  if (request == nullptr || peer == nullptr || request->state() != RequestState::kReceiving) return;
  SinkHandover& sink = *request->sink;
  if (message.generation != sink.generation) return;
  const auto num_layers = uint32_t(sink.incoming->layer_tokens.size());
  const bool in_range = message.layer_begin < message.layer_end && message.layer_end <= num_layers &&
                        message.token_begin < message.token_end &&
                        message.token_end <= uint32_t(request->prompt_tokens);
  if (!in_range) {
    return fail(*request, fmt::format("prefill announced layers [{}, {}) tokens [{}, {}) of {} layers and {} tokens",
                                      message.layer_begin, message.layer_end, message.token_begin, message.token_end,
                                      num_layers, request->prompt_tokens));
  }
  const auto begin = int32_t(message.token_begin), end = int32_t(message.token_end);
  for (uint32_t layer = message.layer_begin; layer < message.layer_end; ++layer) {
    int32_t& have = sink.incoming->layer_tokens[layer];
    if (end <= have) continue;  // the same once more
    if (begin > have) {
      return fail(*request, fmt::format("prefill announced layer {} from token {} on, wanted {}", layer, begin, have));
    }
    add_ranges(*request, int32_t(layer), have, end, peer->num_blocks);
    have = end;
    if (have == request->prompt_tokens) sink.layers_complete += 1;
  }
}

// Rows [token_begin, token_end) of one layer, block by block, neighbours merged.
void DecodeWorker::add_ranges(Request& request, int32_t layer, int32_t token_begin, int32_t token_end,
                              int32_t remote_blocks) {
  SinkHandover::Incoming& incoming = *request.sink->incoming;
  const kv::KvLayout& local = core_.parts.cache->layout();
  kv::KvLayout remote = local;  // the handshake compared everything but the number of blocks
  remote.num_blocks = remote_blocks;
  if (incoming.unposted.empty()) to_post_.push_back(&request);
  for (int32_t token = token_begin; token < token_end;) {
    const int32_t index = token / local.block_tokens, within = token % local.block_tokens;
    const int32_t count = std::min(local.block_tokens - within, token_end - token);
    const int64_t skip = within * local.row_bytes();
    add_merged(incoming.unposted,
               {remote.offset(layer, incoming.source_blocks[size_t(index)]) + skip,
                local.offset(layer, request.block_table[size_t(index)]) + skip, count * local.row_bytes()});
    token += count;
  }
}

void DecodeWorker::post_reads() {
  for (Request* request : to_post_) {
    if (request->state() != RequestState::kReceiving) continue;
    SinkHandover::Incoming& incoming = *request->sink->incoming;
    const PrefillPeer* peer = peers_.ready(request->sink->address);
    CHECK(peer != nullptr);  // its loss would have ended the request
    const uint64_t read_id = next_read_++;
    incoming.reads.insert(read_id);
    core_.read_posted(read_id, request->id());
    for (const kv::CopyRange& range : incoming.unposted) core_.handover_bytes += uint64_t(range.bytes);
    outbox_.command(kv::ReadCommand{read_id, *peer->id, std::move(incoming.unposted)});
    incoming.unposted.clear();
  }
  to_post_.clear();
}

void DecodeWorker::read_finished(const kv::ReadFinished& finished) {
  Request* request = core_.reader_of(finished.read_id);
  core_.read_ended(finished.read_id);
  if (request == nullptr) return;
  request->sink->incoming->reads.erase(finished.read_id);
  if (!finished.status) return fail(*request, "reading the prompt's cache failed: " + finished.status.error().message);
  maybe_confirm(*request);
}

void DecodeWorker::maybe_confirm(Request& request) {
  SinkHandover& sink = *request.sink;
  const bool complete = sink.layers_complete == int32_t(sink.incoming->layer_tokens.size());
  if (!complete || sink.is_read() || !sink.incoming->unposted.empty() || sink.confirm_sent) return;
  const PrefillPeer* peer = peers_.ready(sink.address);
  CHECK(peer != nullptr);
  sink.confirm_sent = true;
  outbox_.send(*peer->id, api::HandoverConfirm{sink.room, sink.tag, sink.generation, sink.wants_digest});
}

bool DecodeWorker::digest_matches(const Request& request, const api::HandoverConfirmed& message) const {
  if (!request.sink->wants_digest) return true;
  const uint64_t ours = core_.parts.cache->digest(request.block_table.data(), request.prompt_tokens);
  return message.digest.has_value() && *message.digest == ours;
}

void DecodeWorker::handle(const std::string& address, const api::HandoverConfirmed& message) {
  Request* request = find(address, message.room, message.tag);
  if (request == nullptr || request->state() != RequestState::kReceiving || !request->sink->confirm_sent) return;
  SinkHandover& sink = *request->sink;
  if (message.generation != sink.generation) return fail(*request, "prefill confirmed another generation");
  if (message.first_token < 0 || message.first_token >= core_.vocab_size) {
    return fail(*request, fmt::format("prefill's first token is {}", message.first_token));
  }
  if (message.cached_tokens > uint32_t(request->prompt_tokens)) {
    return fail(*request,
                fmt::format("prefill had {} of {} tokens cached", message.cached_tokens, request->prompt_tokens));
  }
  if (!digest_matches(*request, message)) {
    core_.metrics.digest_mismatches.add();
    return fail(*request, "the digest of the prompt's cache differs between prefill and decode");
  }
  sink.settled = true;
  outbox_.send(*peers_.ready(address)->id, api::HandoverAck{sink.room, sink.tag});
  request->cached_tokens = int32_t(message.cached_tokens);
  core_.handovers += 1;
  const double elapsed = seconds(core_.now() - request->life.when(RequestState::kReserved));
  const double bytes = double(request->prompt_tokens) * double(core_.parts.cache->layout().token_bytes());
  core_.metrics.handover_done(elapsed > 0 ? bytes / elapsed / 1e9 : 0, elapsed * 1e3);
  std::erase(receiving_, request);
  arrive(*request, message.first_token, message.logprob);
}

void DecodeWorker::handle(const std::string& address, const api::HandoverAbort& message) {
  Request* request = find(address, message.room, message.tag);
  if (request == nullptr || request->sink->settled) return;
  request->sink->settled = true;  // no answer to an abort
  fail(*request, "prefill gave up: " + message.reason);
}

// The cache is here: the first token goes out at once, with or without a running slot.
void DecodeWorker::arrive(Request& request, int32_t first_token, const std::optional<api::TokenLogprob>& logprob) {
  request.kv_tokens = request.prompt_tokens;
  advance(request.life, RequestState::kArrived, core_.now());
  if (request.max_new_tokens == 0) return core_.end(request, finished_by_length(0));
  request.tokens.push_back(first_token);
  api::EngineEvent event;
  event.tokens.push_back(first_token);
  if (request.input.return_logprob && logprob) event.logprobs.push_back(*logprob);
  if (std::optional<Ending> ending = check_finish(request)) {
    return core_.end(request, std::move(*ending), std::move(event));
  }
  core_.emit(request, std::move(event));
  core_.enqueue(arrived_, request);
}

void DecodeWorker::lose_peer(const PeerGone& gone) {
  std::vector<Request*> affected, waiting;
  for (Request* request : receiving_) {
    if (request->sink->address == gone.address && !is_terminal(request->state())) affected.push_back(request);
  }
  for (Request* request : preparing_) {
    if (request->sink->address == gone.address && !is_terminal(request->state())) waiting.push_back(request);
  }
  log::write(log::Level::kError, core_.config.log_scope,
             fmt::format("Losing connection with prefill instance (bootstrap_addr: {}), {} requests affected: {}",
                         gone.address, affected.size() + (gone.was_ready ? 0 : waiting.size()), gone.reason));
  for (Request* request : affected) {
    request->sink->settled = true;
    fail(*request, fmt::format("prefill {} lost: {}", gone.address, gone.reason));
  }
  if (gone.was_ready && !waiting.empty()) {
    // Nothing of these has begun: they try the address once more, where another process may answer now.
    for (Request* request : waiting) {
      SinkHandover& sink = *request->sink;
      const std::string& host = request->input.bootstrap->host;
      sink.address = PrefillPeers::address_of(host, sink.port);
      sink.is_routed = false;
      peers_.want(host, sink.port, core_.now());
    }
    return;
  }
  for (Request* request : waiting) {
    core_.metrics.bootstrap_failed.add();
    core_.end(*request, failed(fmt::format("Could not fetch prefill parallel info from bootstrap_addr {}: {}",
                                           gone.address, gone.reason),
                               500));
  }
}

void DecodeWorker::tick() {
  if (core_.now() >= next_check_) {
    next_check_ = core_.now() + kCheckEvery;
    for (const PeerGone& gone : peers_.expire(core_.now())) lose_peer(gone);
    for (Request* request : std::vector<Request*>(receiving_)) {
      if (is_terminal(request->state()) || core_.now() < request->sink->deadline) continue;
      fail(*request, fmt::format("Request {} timed out after {:.1f}s in KVPoll.WaitingForInput", request->sink->room,
                                 seconds(core_.config.waiting_timeout)));
    }
  }
  resume_retracted();
  admit_prepared();
  tell_queued();
  start_arrived();
}

void DecodeWorker::form(Batch& batch, bool holds_decode) {
  if (holds_decode) return batch.start(model::Phase::kDecode);
  const std::vector<Request*> others(arrived_.begin(), arrived_.end());
  running_.form(batch, others, [this](Request& victim) { retract(victim); });
  std::erase_if(arrived_, [](const Request* request) { return request->state() != RequestState::kArrived; });
}

void DecodeWorker::after_step(const Batch& batch, const Sampler& sampler) {
  running_.after_step(batch, sampler);
  running_.forget_ended();
  const auto num_running = int32_t(batch.entries().size());
  reporter_.decode_done(num_running, num_running, load(), running_.new_token_ratio());
}

void DecodeWorker::forget_ended() {
  const auto ended = [](const Request* request) { return is_terminal(request->state()); };
  std::erase_if(preparing_, ended);
  std::erase_if(receiving_, ended);
  std::erase_if(arrived_, ended);
  std::erase_if(retracted_, ended);
  std::erase_if(to_post_, ended);
  running_.forget_ended();
}

LoadFigures DecodeWorker::load() const {
  LoadFigures load;
  load.running = running_.size();
  load.queued = int32_t(arrived_.size());
  load.prealloc = int32_t(preparing_.size());
  load.transferring = int32_t(receiving_.size());
  load.retracted = int32_t(retracted_.size());
  load.used_tokens = core_.used_tokens();
  load.total_tokens = core_.config.max_total_tokens;
  for (const Request* request : receiving_) load.preallocated_tokens += request->num_tokens();
  return load;
}

int64_t DecodeWorker::waiting_tokens() const {
  int64_t tokens = 0;
  for (const auto* queue : {&preparing_, &arrived_, &retracted_}) {
    for (const Request* request : *queue) tokens += request->num_tokens();
  }
  for (const Request* request : receiving_) tokens += request->num_tokens();
  return tokens;
}

void DecodeWorker::on_end(Request& request) {
  parked_bytes_ -= int64_t(request.parked.size());
  if (request.sink == nullptr || request.sink->is_fake) return;
  const SinkHandover& sink = *request.sink;
  rooms_.erase(sink.room);
  if (sink.is_read()) {
    for (const uint64_t read_id : sink.incoming->reads) outbox_.command(kv::CancelReadCommand{read_id});
  }
  if (sink.settled) return;
  peers_.give_up(sink.address, api::HandoverAbort{sink.room, sink.tag, "the decode side ended it"});
}

}  // namespace tandem::engine
