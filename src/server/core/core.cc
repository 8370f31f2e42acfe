#include "server/core/core.h"

#include <fmt/format.h>

#include "api/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "server/core/request_log.h"

namespace tandem::server {
namespace {

// Up to this size a body is parsed and tokenized on the loop's thread: some milliseconds at most.
constexpr size_t kInlineBodyBytes = 16 << 10;
// A call of so many sequences leaves megabytes of freed memory behind: of parsing it, and of what it was.
constexpr size_t kManySequences = 512;
constexpr Duration kTakenAfter = std::chrono::milliseconds(200);
constexpr Duration kProbeInterval = std::chrono::milliseconds(10);
constexpr uint64_t kMaxRoom = (uint64_t(1) << 63) - 1;

size_t longest_token(const text::Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) longest = std::max(longest, tokenizer.token_bytes(id).size());
  return longest;
}

}  // namespace

Core::Core(ServerConfig config, ServerParts parts)
    : config_(std::move(config)),
      parts_(std::move(parts)),
      port_(*parts_.loop),
      inbox_(std::make_shared<Inbox>(*parts_.loop)),
      random_(config_.seed),
      intake_(std::make_unique<Intake>()) {
  if (config_.enable_metrics && parts_.metrics) metrics_.emplace(*parts_.metrics, config_.served_model_name);
  prepare_.config = &config_;
  prepare_.tokenizer = parts_.tokenizer.get();
  prepare_.chat_template = parts_.chat_template ? &*parts_.chat_template : nullptr;
  if (parts_.tokenizer) {
    prepare_.longest_token_bytes = longest_token(*parts_.tokenizer);
    token_text_ = [tokenizer = parts_.tokenizer](int32_t id) { return tokenizer->decode({&id, 1}, false); };
  }
  inbox_->set_reader([this](std::vector<api::EngineEvent>& events) { on_events(events); });
}

void Core::close() {
  inbox_->close();
  intake_.reset();
  probe_timer_.reset();
  give_back_timer_.reset();
  open_.clear();
}

Core::ActiveToken Core::count_active() {
  active_->fetch_add(1);
  return ActiveToken(static_cast<void*>(active_.get()), [count = active_](void*) { count->fetch_sub(1); });
}

void Core::generate(api::Dialect dialect, net::HttpRequest request, Writer writer) {
  if (!ready()) {
    return writer->send(
        error_response(dialect, 503, draining_ ? "The server is shutting down." : "The server is starting."));
  }
  double received_ts = clock().unix_seconds();
  ActiveToken active = count_active();
  if (request.body.size() <= kInlineBodyBytes) {
    return admit(prepare(prepare_, dialect, std::move(request.body)), received_ts, writer, std::move(active));
  }
  auto body = std::make_shared<std::string>(std::move(request.body));
  auto job = [this, weak = weak_from_this(), dialect, body, received_ts, writer, active] {
    auto prepared = std::make_shared<Prepared>(prepare(prepare_, dialect, std::move(*body)));
    loop().post([weak, prepared, received_ts, writer, active] {
      if (auto core = weak.lock()) core->admit(std::move(*prepared), received_ts, writer, active);
    });
  };
  if (!intake_->push(std::move(job))) writer->send(error_response(dialect, 503, "The request queue is full."));
}

void Core::compute_then_reply(size_t body_bytes, Writer writer, std::function<net::HttpResponse()> compute) {
  if (body_bytes <= kInlineBodyBytes) return writer->send(compute());
  auto job = [writer, compute = std::move(compute)] { writer->send(compute()); };
  if (!intake_->push(std::move(job))) {
    writer->send(error_response(api::Dialect::kNative, 503, "The request queue is full."));
  }
}

std::string Core::draw_rid() { return fmt::format("{:016x}{:016x}", random_(), random_()); }

void Core::admit(Prepared prepared, double received_ts, const Writer& writer, ActiveToken active) {
  if (writer->closed()) return;
  api::Call& call = prepared.call;
  if (prepared.error) {
    net::HttpResponse response;
    response.status = api::http_status(prepared.error->code);
    response.body = api::validation_error_body(prepared.error->message);
    return writer->send(std::move(response));
  }
  if (call.refusal) {
    int status = api::http_status(call.refusal->code);
    if (!call.stream) return writer->send(error_response(call.dialect, status, call.refusal->message));
    writer->begin(200, "text/event-stream; charset=utf-8", {});
    if (writer->write(error_events(call.dialect, status, call.refusal->message))) writer->end();
    return;
  }
  if (!ready()) return writer->send(error_response(call.dialect, 503, "The server is shutting down."));

  std::vector<Sequence> sequences = make_sequences(call);
  Answer answer = make_answer(call, sequences, received_ts);
  GenerationParts parts;
  parts.clock = parts_.clock;
  parts.port = &port_;
  parts.metrics = metrics_ && call.log_metrics ? &*metrics_ : nullptr;
  parts.is_prefill = config_.role == engine::Role::kPrefill;
  if (config_.log_requests) parts.log_level = config_.log_requests_level;
  auto generation = std::make_shared<Generation>(parts, std::move(answer), std::move(sequences), writer);
  generation->active = std::move(active);
  if (!submit(call, generation)) {
    return writer->send(error_response(call.dialect, 503, "The request queue is full."));
  }
  if (generation->sequences().size() >= kManySequences) give_back_soon();
  generation->begin();
  writer->on_closed([weak = weak_from_this(), gone = std::weak_ptr<Generation>(generation)] {
    auto core = weak.lock();
    auto generation = gone.lock();
    if (core && generation) core->abandon(*generation, engine::CancelReason::kDisconnected);
  });
}

// Sequences of a call differ in little; what they have in common is held once.
std::shared_ptr<const SequenceOptions> Core::sequence_options(const api::Call& call, size_t index,
                                                              const SequenceOptions* like) const {
  const api::PromptItem& item = call.items[index];
  const int32_t interval = call.sampling[index]->stream_interval.value_or(config_.stream_interval);
  api::NativeOptions native;
  native.with_text = parts_.tokenizer != nullptr;
  native.disjoint_ids = config_.stream_output && call.stream;
  native.return_logprob = item.return_logprob;
  native.with_top = item.top_logprobs_num > 0;
  native.token_ids_logprob = item.token_ids_logprob;
  if (call.return_text_in_logprobs) native.token_text = token_text_;
  const bool same =
      like != nullptr && like->stream_interval == interval && like->native->return_logprob == native.return_logprob &&
      like->native->with_top == native.with_top && like->native->token_ids_logprob == native.token_ids_logprob;
  if (same) return nullptr;
  auto options = std::make_shared<SequenceOptions>();
  options->tokenizer = parts_.tokenizer.get();
  options->dialect = call.dialect;
  options->native = std::make_shared<const api::NativeOptions>(std::move(native));
  options->token_text = token_text_;
  if (config_.log_requests) options->logged_text_bytes = logged_length(config_.log_requests_level);
  options->stream_interval = interval;
  return options;
}

std::vector<Sequence> Core::make_sequences(const api::Call& call) {
  std::vector<Sequence> sequences;
  sequences.reserve(call.items.size() * static_cast<size_t>(call.n));
  std::shared_ptr<const SequenceOptions> options;
  for (size_t i = 0; i < call.items.size(); ++i) {
    const api::PromptItem& item = call.items[i];
    if (auto others = sequence_options(call, i, options.get())) options = std::move(others);
    for (int32_t k = 0; k < call.n; ++k) {
      Sequence& sequence = sequences.emplace_back(options, *call.sampling[i]);
      sequence.id = RequestId{next_id_++};
      sequence.index = static_cast<int32_t>(sequences.size()) - 1;
      sequence.rid = item.rid.empty() ? draw_rid() : call.n > 1 ? fmt::format("{}_{}", item.rid, k) : item.rid;
      sequence.prompt_tokens = static_cast<int32_t>(item.input_ids.size());
      if (call.echo && !item.has_ids) sequence.prepend(item.text);
      if (call.echo && item.has_ids && parts_.tokenizer)
        sequence.prepend(parts_.tokenizer->decode(item.input_ids, true));
    }
  }
  return sequences;
}

Answer Core::make_answer(const api::Call& call, const std::vector<Sequence>& sequences, double received_ts) const {
  AnswerOptions options;
  options.head.dialect = call.dialect;
  options.head.id = sequences[0].rid;
  options.head.model = call.model.empty() ? config_.served_model_name : call.model;
  options.head.created = static_cast<int64_t>(received_ts);
  options.stream = call.stream;
  options.indexed = call.is_batch || call.n > 1;
  options.n = call.n;
  options.include_usage = call.include_usage;
  options.continuous_usage = call.continuous_usage_stats;
  options.report_cached = config_.enable_cache_report;
  options.report_times = config_.enable_metrics;
  options.received_ts = received_ts;
  options.submitted_ts = clock().unix_seconds();
  return Answer(std::move(options));
}

api::EngineRequest Core::make_request(api::Call& call, const Sequence& sequence) {
  auto item_index = static_cast<size_t>(sequence.index / call.n);
  auto k = static_cast<uint64_t>(sequence.index % call.n);
  bool last_use = static_cast<int32_t>(k) + 1 == call.n;
  api::PromptItem& item = call.items[item_index];
  api::EngineRequest request;
  request.id = sequence.id;
  request.rid = sequence.rid;
  request.input_ids = last_use ? std::move(item.input_ids) : item.input_ids;
  request.sampling = call.sampling[item_index];
  request.seed = request.sampling->seed ? *request.sampling->seed + k : random_();
  request.eos_token_ids = config_.eos_token_ids;
  request.return_logprob = item.return_logprob;
  // A decode server never gives log-probabilities of the prompt.
  bool decode = config_.role == engine::Role::kDecode;
  request.logprob_start_len = decode ? -1 : item.logprob_start_len;
  request.top_logprobs_num = item.top_logprobs_num;
  request.token_ids_logprob = item.token_ids_logprob;
  request.priority = call.priority;
  request.data_parallel_rank = call.data_parallel_rank;
  if (config_.role == engine::Role::kCombined) return request;
  request.bootstrap = item.bootstrap;
  // n sequences of one prompt need rooms of their own, the same on both legs and apart from the other prompts'.
  uint64_t stride = static_cast<uint64_t>(call.items.size());
  request.bootstrap->room = (*item.bootstrap.room + k * stride) & kMaxRoom;
  return request;
}

bool Core::submit(api::Call& call, const std::shared_ptr<Generation>& generation) {
  std::vector<Sequence>& sequences = generation->sequences();
  for (size_t i = 0; i < sequences.size(); ++i) {
    open_[sequences[i].id.value] = Where{generation, i};
    api::EngineRequest request = make_request(call, sequences[i]);
    if (config_.log_requests) {
      log::info("{}", received_line(config_.log_requests_level, request, call.stream, parts_.tokenizer.get()));
    }
    if (port_.submit(std::move(request)) == PushResult::kPushed) continue;
    generation->drop_from(i);
    abandon(*generation, engine::CancelReason::kAborted);
    return false;
  }
  return true;
}

void Core::on_events(std::vector<api::EngineEvent>& events) {
  events_seen_ += events.size();
  std::vector<std::shared_ptr<Generation>> touched;
  for (api::EngineEvent& event : events) {
    auto found = open_.find(event.id.value);
    if (found == open_.end()) continue;  // ended by us meanwhile
    Where where = found->second;
    where.generation->on_event(where.sequence, std::move(event));
    if (where.generation->sequences()[where.sequence].closed) {
      open_.erase(found);
      if (where.generation->sequences().size() >= kManySequences) ++freed_sequences_;
    }
    if (where.generation->touch()) touched.push_back(std::move(where.generation));
  }
  if (freed_sequences_ >= kManySequences) {
    // The engine frees what it had of them from heaps of its own, which nobody else allocates from.
    freed_sequences_ = 0;
    give_back_free_memory();
  }
  for (const auto& generation : touched) settle(generation);
  if (!probes_.empty()) check_probes();
}

void Core::settle(const std::shared_ptr<Generation>& generation) {
  if (generation->done() && generation->sequences().size() >= kManySequences) {
    give_back_free_memory();  // before the answer is made, which is large
    give_back_soon();         // and after it was given away
  }
  if (!generation->flush()) return abandon(*generation, engine::CancelReason::kDisconnected);
  if (generation->done()) forget(*generation);
}

// Now, behind the task at hand, and once more when the engine has taken what was queued for it.
void Core::give_back_soon() {
  loop().post(give_back_free_memory);
  give_back_timer_ = loop().after(kTakenAfter, give_back_free_memory);
}

void Core::abandon(Generation& generation, engine::CancelReason reason) {
  generation.abandon(reason);
  forget(generation);
}

void Core::forget(Generation& generation) {
  // The map may hold the last references: keep it until the loop is through.
  std::vector<std::shared_ptr<Generation>> keep;
  for (const Sequence& sequence : generation.sequences()) {
    auto found = open_.find(sequence.id.value);
    if (found == open_.end()) continue;
    if (keep.empty()) keep.push_back(found->second.generation);
    open_.erase(found);
  }
  generation.active.reset();
}

void Core::abort(const std::string& rid_prefix) {
  for (auto& [id, where] : open_) {
    const Sequence& sequence = where.generation->sequences()[where.sequence];
    if (sequence.rid.starts_with(rid_prefix)) port_.cancel(sequence.id, engine::CancelReason::kAborted, "");
  }
}

void Core::drain() {
  if (draining_) return;
  draining_ = true;
  port_.drain();
}

void Core::fail_all(const std::string& message) {
  std::vector<std::shared_ptr<Generation>> all;
  for (auto& [id, where] : open_) {
    if (where.generation->touch()) all.push_back(where.generation);
  }
  for (const auto& generation : all) {
    generation->fail(message, 503);
    settle(generation);
  }
}

void Core::probe(std::function<void(bool alive)> done) {
  if (!ready()) return done(false);
  api::EngineRequest request;
  request.id = RequestId{next_id_++};
  request.rid = "HEALTH_CHECK_" + draw_rid();
  request.input_ids = {0};
  request.sampling.edit().max_new_tokens = 1;
  request.sampling.edit().temperature = 0;
  request.seed = 0;
  request.is_health_check = true;
  if (config_.role != engine::Role::kCombined) {
    request.bootstrap = api::BootstrapInfo{"2.2.2.2", std::nullopt, 0};
  }
  Probe probe;
  probe.done = std::move(done);
  probe.id = request.id;
  probe.forward_steps = port_.engine()->snapshot().forward_steps;
  probe.events = events_seen_;
  probe.deadline = clock().now() + config_.health_timeout;
  static_cast<void>(port_.submit(std::move(request)));  // full: the engine is busy, and shows that by its steps
  probes_.push_back(std::move(probe));
  if (!probe_timer_) check_probes();
}

void Core::check_probes() {
  uint64_t steps = port_.engine()->snapshot().forward_steps;
  TimePoint now = clock().now();
  std::vector<Probe> waiting;
  std::vector<std::pair<std::function<void(bool)>, bool>> answers;
  for (Probe& probe : probes_) {
    bool alive = events_seen_ > probe.events || steps > probe.forward_steps;
    if (!alive && now < probe.deadline) {
      waiting.push_back(std::move(probe));
      continue;
    }
    if (!alive) port_.cancel(probe.id, engine::CancelReason::kAborted, "");
    answers.emplace_back(std::move(probe.done), alive);
  }
  probes_ = std::move(waiting);
  probe_timer_.reset();
  if (!probes_.empty()) {
    probe_timer_ = loop().after(kProbeInterval, [weak = weak_from_this()] {
      if (auto core = weak.lock()) core->check_probes();
    });
  }
  for (auto& [done, alive] : answers) done(alive);
}

}  // namespace tandem::server
