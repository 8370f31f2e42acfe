#include "engine/step/core.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "engine/roles/decode_worker.h"
#include "engine/roles/prefill_worker.h"
#include "engine/step/sampler.h"
#include "engine/step/times.h"

namespace tandem::engine {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// What cannot be served, in words for the client; empty: fine.
std::string refuse(const api::EngineRequest& input, std::span<const int32_t> prompt, int32_t max_request_tokens,
                   int32_t vocab_size) {
  if (prompt.empty()) return "input_ids is empty";
  const int32_t limit = max_request_tokens - 5;
  if (int64_t(prompt.size()) > limit) {
    return fmt::format("Input length ({} tokens) exceeds the maximum allowed length ({} tokens).", prompt.size(),
                       limit);
  }
  const auto outside = [&](int32_t id) { return id < 0 || id >= vocab_size; };
  for (const int32_t id : prompt) {
    if (outside(id)) return fmt::format("input_ids has {}, the vocabulary ends at {}", id, vocab_size - 1);
  }
  for (const int32_t id : input.token_ids_logprob) {
    if (outside(id)) return fmt::format("token_ids_logprob has {}, the vocabulary ends at {}", id, vocab_size - 1);
  }
  for (const auto& [id, bias] : input.sampling->logit_bias) {
    if (outside(id)) return fmt::format("logit_bias has {}, the vocabulary ends at {}", id, vocab_size - 1);
  }
  for (const int32_t id : input.sampling->stop_token_ids) {
    if (outside(id)) return fmt::format("stop_token_ids has {}, the vocabulary ends at {}", id, vocab_size - 1);
  }
  return "";
}

}  // namespace

Core::Core(const EngineConfig& engine_config, const EngineParts& engine_parts,
           std::function<void(api::EngineEvent)> sink)
    : config(engine_config),
      parts(engine_parts),
      vocab_size(engine_parts.model->config().vocab_size),
      max_request_tokens(std::min(engine_config.context_length, engine_config.max_total_tokens) - 1),
      metrics(*engine_parts.metrics, engine_config.model_name, engine_config.dp_rank, engine_config.tp_rank),
      pool(engine_config.max_total_tokens / engine_config.block_tokens),
      sink_(std::move(sink)) {
  // Decode computes no prompt, so it has nothing to look up.
  if (config.radix_cache && config.role != Role::kDecode) tree.emplace(pool, config.block_tokens);
}

Core::~Core() {
  for (auto& [id, request] : requests_) {
    release_blocks(*request, false);
  }
}

Request* Core::find(RequestId id) const {
  const auto it = requests_.find(id);
  return it == requests_.end() ? nullptr : it->second.get();
}

void Core::enqueue(std::deque<Request*>& queue, Request& request, bool first_of_its_urgency) const {
  const auto more = [this](const Request* a, const Request* b) { return urgency(*a) > urgency(*b); };
  queue.insert(first_of_its_urgency ? std::lower_bound(queue.begin(), queue.end(), &request, more)
                                    : std::upper_bound(queue.begin(), queue.end(), &request, more),
               &request);
}

int64_t Core::urgency(const Request& request) const {
  if (!config.priority_scheduling) return 0;
  if (!request.input.priority) return INT64_MIN / 2;  // halved, so that differences fit
  return config.low_priority_values_first ? -int64_t(*request.input.priority) : int64_t(*request.input.priority);
}

Request* Core::admit(api::EngineRequest input, scheduler::LifeKind kind) {
  auto made = std::make_unique<Request>();
  Request& request = *made;
  request.input = std::move(input);
  request.life.kind = kind;
  request.life.entered_at[size_t(scheduler::RequestState::kNew)] = now();
  request.arrival = arrivals_++;
  request.seed = request.input.seed.value_or(mix(config.seed ^ mix(request.id().value)));
  request.tokens = std::move(request.input.input_ids);  // not copied: thousands of long prompts may wait
  request.prompt_tokens = request.num_tokens();
  if (!requests_.emplace(request.id(), std::move(made)).second) {
    // Only another node can do that; an event would end the request that has the id.
    log::write(log::Level::kError, config.log_scope, "a second request came with an id in use: it is dropped");
    return nullptr;
  }
  if (const std::string fault = refuse(request.input, request.prompt(), max_request_tokens, vocab_size);
      !fault.empty()) {
    end(request, aborted(fault, 400));
    return nullptr;
  }
  request.max_new_tokens =
      std::clamp(request.input.sampling->max_new_tokens, 0, max_request_tokens - request.prompt_tokens - 1);
  request.stop_ids = std::move(request.input.eos_token_ids);
  const std::vector<int32_t>& stops = request.input.sampling->stop_token_ids;
  request.stop_ids.insert(request.stop_ids.end(), stops.begin(), stops.end());
  return &request;
}

void Core::emit(Request& request, api::EngineEvent event) {
  event.id = request.id();
  event.prompt_tokens = request.prompt_tokens;
  event.cached_tokens = request.cached_tokens;
  event.total_retractions = request.retractions;
  if (!request.input_logprobs_sent && !request.input_logprobs.empty()) {
    event.input_logprobs = std::move(request.input_logprobs);
    request.input_logprobs_sent = true;
  }
  if (!request.times_sent) {
    const api::RequestTimes times = times_of(request);
    if (times.queue_time) event.times = times;
    request.times_sent = event.times.has_value();
  }
  sink_(std::move(event));
}

void Core::end(Request& request, Ending ending, api::EngineEvent last) {
  if (scheduler::is_terminal(request.state())) return;
  if (request.in_step) {
    if (!request.pending_end) request.pending_end = std::make_unique<Ending>(std::move(ending));
    return;
  }
  advance(request.life, ending.state, now());
  release(request, ending);
  last.finish = std::move(ending.finish);
  emit(request, std::move(last));
}

void Core::end_all(const Ending& ending) {
  std::vector<Request*> all;
  for (auto& [id, request] : requests_) all.push_back(request.get());
  std::ranges::sort(all, {}, &Request::arrival);
  for (Request* request : all) end(*request, ending);
}

void Core::answer(api::EngineEvent event, Ending ending) {
  event.finish = std::move(ending.finish);
  sink_(std::move(event));
}

void Core::leave_step(Request& request) {
  request.in_step = false;
  if (!request.pending_end) return;
  Ending ending = std::move(*request.pending_end);
  request.pending_end.reset();
  end(request, std::move(ending));
}

bool Core::take_token(Request& request, const kernels::SampleResult& drawn) {
  if (!drawn.finite) {
    end(request, failed("NaN happened", 500));
    return false;
  }
  request.tokens.push_back(drawn.token);
  api::EngineEvent event;
  event.tokens.push_back(drawn.token);
  if (request.input.return_logprob) event.logprobs.push_back(to_logprob(drawn));
  if (std::optional<Ending> ending = check_finish(request)) {
    end(request, std::move(*ending), std::move(event));
    return false;
  }
  emit(request, std::move(event));
  return true;
}

// The one place where a request lets go of what it holds.
void Core::release(Request& request, const Ending& ending) {
  if (on_end) on_end(request, ending);
  if (!request.input.is_health_check) metrics.observe_end(request.life);
  if (config.log_request_times && !request.input.is_health_check) {
    log::write(log::Level::kInfo, config.log_scope, time_stats_line(request, now(), parts.clock->unix_seconds()));
  }
  if (request.sink != nullptr && request.sink->is_read()) {
    // A read may still write into these blocks.
    draining_[request.id()] = {std::move(request.lease), request.sink->incoming->reads.size()};
    request.block_table.clear();
    request.kv_tokens = 0;
  }
  release_blocks(request, ending.state != scheduler::RequestState::kFailed);
  request.parked = {};
  const auto it = requests_.find(request.id());
  CHECK(it != requests_.end());
  ended_.push_back(std::move(it->second));
  requests_.erase(it);
}

Request* Core::reader_of(uint64_t read_id) const {
  const auto reader = reader_of_read_.find(read_id);
  return reader == reader_of_read_.end() ? nullptr : find(reader->second);
}

void Core::read_ended(uint64_t read_id) {
  const auto reader = reader_of_read_.find(read_id);
  if (reader == reader_of_read_.end()) return;
  const RequestId id = reader->second;
  reader_of_read_.erase(reader);
  const auto drained = draining_.find(id);
  if (drained != draining_.end() && --drained->second.reads == 0) draining_.erase(drained);
}

int64_t Core::available_blocks() const { return pool.counts().free + (tree ? tree->evictable_blocks() : 0); }

int32_t Core::blocks_for(int32_t num_tokens) const {
  return (num_tokens + config.block_tokens - 1) / config.block_tokens;
}

int64_t Core::used_tokens() const { return (int64_t(pool.counts().total) - available_blocks()) * config.block_tokens; }

Result<scheduler::BlockLease> Core::lease(int32_t num_blocks) {
  const int32_t missing = num_blocks - pool.counts().free;
  if (missing > 0 && tree && available_blocks() >= num_blocks) tree->evict(missing);
  return pool.lease(num_blocks);
}

Status Core::extend(scheduler::BlockLease& lease, int32_t num_blocks) {
  const int32_t missing = num_blocks - pool.counts().free;
  if (missing > 0 && tree && available_blocks() >= num_blocks) tree->evict(missing);
  return pool.extend(lease, num_blocks);
}

int32_t Core::match_prefix(const Request& request) const {
  if (!tree) return 0;
  // The last token is always computed, and so is every token whose logits are wanted.
  int32_t longest = request.num_tokens() - 1;
  if (request.wants_input_logprobs()) longest = std::min(longest, request.first_logprob_position());
  return tree->match(request.tokens, longest / config.block_tokens);
}

void Core::hold_prefix(Request& request) {
  CHECK(request.prefix.num_blocks() == 0);
  if (tree) request.prefix = tree->hold(request.tokens, match_prefix(request));
}

Status Core::reserve(Request& request, int32_t num_tokens) {
  CHECK(request.block_table.empty());
  const int32_t held = request.prefix.num_blocks();
  Result<scheduler::BlockLease> leased = lease(blocks_for(num_tokens) - held);
  if (!leased) {
    request.prefix = {};
    return leased.error();
  }
  request.lease = std::move(*leased);
  const int32_t longest = request.prompt_tokens + request.max_new_tokens + 1;
  request.tokens.reserve(size_t(longest));
  request.block_table.reserve(size_t(blocks_for(longest)));
  for (const BlockId block : request.prefix.blocks()) request.block_table.push_back(block.value);
  for (const BlockId block : request.lease.blocks()) request.block_table.push_back(block.value);
  request.kv_tokens = held * config.block_tokens;
  return Ok{};
}

Status Core::grow(Request& request, int32_t num_tokens) {
  const int32_t missing = blocks_for(num_tokens) - int32_t(request.block_table.size());
  if (missing <= 0) return Ok{};
  RETURN_IF_ERROR(extend(request.lease, missing));
  for (const BlockId block : request.lease.blocks().last(size_t(missing))) {
    request.block_table.push_back(block.value);
  }
  return Ok{};
}

void Core::release_blocks(Request& request, bool keep_as_cache) {
  if (tree && keep_as_cache && request.kv_tokens > 0) {
    const std::span<const int32_t> computed(request.tokens.data(), size_t(request.kv_tokens));
    tree->absorb(computed, std::move(request.prefix), std::move(request.lease));
  }
  request.prefix = {};
  request.lease = {};
  request.block_table.clear();
  request.kv_tokens = 0;
}

bool Core::flush_cache() {
  if (!requests_.empty() || !draining_.empty()) return false;
  if (tree) tree->evict(tree->cached_blocks());
  return true;
}

}  // namespace tandem::engine
