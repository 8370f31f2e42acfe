#include "tests/sim/sim_fleet.h"

#include <gtest/gtest.h>

namespace tandem::testing {
namespace {

constexpr int32_t kLayers = 3, kVocab = 97;
constexpr Duration kTurn = std::chrono::microseconds(200);  // what one step takes
constexpr Duration kLongestRun = std::chrono::minutes(10);  // virtual

router::PolicyConfig policy(router::Policy which) {
  router::PolicyConfig config;
  config.policy = which;
  return config;
}

}  // namespace

SimFleet::SimFleet(const SimOptions& options)
    : options_(options),
      random_(options.seed),
      timeline_(clock_),
      network_(timeline_, random_, options.faults),
      pool_(1),
      workspace_(device::Device::kCpu, 1 << 20),
      pick_prefill_(policy(router::Policy::kPowerOfTwo), options.seed),
      pick_decode_(policy(router::Policy::kRandom), options.seed + 1) {
  clock_.advance(std::chrono::seconds(1));
  prefills_.resize(size_t(options.num_prefill));
  decodes_.resize(size_t(options.num_decode));
  for (int i = 0; i < options.num_prefill; ++i) start_process(true, i);
  for (int i = 0; i < options.num_decode; ++i) start_process(false, i);
}

engine::EngineConfig SimFleet::config(bool is_prefill, uint64_t epoch) const {
  engine::EngineConfig config;
  config.role = is_prefill ? engine::Role::kPrefill : engine::Role::kDecode;
  config.block_tokens = 4;
  config.max_total_tokens = is_prefill ? 320 : 192;
  config.max_running_requests = 6;
  config.chunked_prefill_size = 16;
  config.max_prefill_tokens = 32;
  config.context_length = 128;
  config.num_reserved_decode_tokens = 6;
  config.bootstrap_timeout = std::chrono::milliseconds(1500);
  config.waiting_timeout = std::chrono::milliseconds(1000);
  config.source_lease_timeout = std::chrono::milliseconds(1200);
  config.digest_sample_rate = options_.seed % 2 == 0 ? 1 : 0;  // without it, wrong bytes must not happen at all
  if (options_.digest_sample_rate >= 0) config.digest_sample_rate = options_.digest_sample_rate;
  config.epoch = epoch;
  config.decode_log_interval = 1 << 30;
  return config;
}

void SimFleet::start_process(bool is_prefill, int index) {
  auto process = std::make_unique<Process>();
  process->id = next_process_++;
  process->is_prefill = is_prefill;
  process->index = index;
  const engine::EngineConfig engine_config = config(is_prefill, random_());
  process->storage = std::make_unique<kv::KvStorage>(
      device::Device::kCpu, fake_layout(kLayers, engine_config.block_tokens, engine_config.max_total_tokens));
  process->model = std::make_unique<FakeModel>(kLayers, kVocab);
  process->communicators = parallel::make_local_communicators(1, std::chrono::seconds(10));
  engine::EngineParts parts;
  parts.clock = &clock_;
  parts.model = process->model.get();
  parts.kernels.pool = &pool_;
  parts.kernels.workspace = &workspace_;
  parts.cache = process->storage.get();
  parts.transfer = &process->port;
  parts.communicator = process->communicators[0].get();
  parts.metrics = &process->metrics;
  process->engine = std::move(*engine::Engine::create(
      engine_config, parts, [this, id = process->id](api::EngineEvent event) { take(id, std::move(event)); }));
  const std::string address = is_prefill ? "prefill" + std::to_string(index) + ":9000" : "";
  network_.join(process->id, address, engine_config.epoch, process->port, *process->storage);
  slot(is_prefill, index) = std::move(process);
}

void SimFleet::crash_process(bool is_prefill, int index) {
  std::unique_ptr<Process>& process = slot(is_prefill, index);
  if (!process) return;
  outcome_.crashes += 1;
  const uint64_t id = process->id;
  network_.crash(id);
  process.reset();
  for (auto& [rid, request] : requests_) {
    for (auto [mine, other] :
         {std::pair(&request.prefill, &request.decode), std::pair(&request.decode, &request.prefill)}) {
      if (mine->process != id || !mine->submitted || mine->over()) continue;
      mine->lost = true;
      // The router sees the stream break and gives the other side up.
      timeline_.after(delay(), [this, rid = rid, other] { cancel(rid, *other); });
    }
  }
  timeline_.after(std::chrono::milliseconds(50 + draw(500)), [=, this] { start_process(is_prefill, index); });
}

SimFleet::Process* SimFleet::alive(uint64_t id) {
  for (auto* side : {&prefills_, &decodes_}) {
    for (auto& process : *side) {
      if (process && process->id == id) return process.get();
    }
  }
  return nullptr;
}

void SimFleet::plan_requests() {
  const std::vector<int32_t> shared = prompt_of(1, 40, kVocab);
  Duration at{};
  std::vector<uint64_t> rooms = router::draw_rooms(random_, size_t(options_.num_requests));
  for (int i = 0; i < options_.num_requests; ++i) {
    const auto id = uint64_t(i) + 1;
    std::vector<int32_t> prompt(shared.begin(), shared.begin() + int64_t(draw(3) * 16));
    const std::vector<int32_t> own = prompt_of(options_.seed * 1000 + id, 1 + int32_t(draw(40)), kVocab);
    prompt.insert(prompt.end(), own.begin(), own.end());
    SimRequest& request = requests_[id];
    request.wire = greedy_request(id, prompt, int32_t(draw(30)));
    request.wire.bootstrap = api::BootstrapInfo{"", 9000, rooms[size_t(i)]};
    at += Duration(int64_t(draw(uint64_t(2 * options_.arrivals.count()))));
    timeline_.after(at, [this, id] { arrive(id); });
    if (double(draw(1000)) < options_.cancel_rate * 1000) {
      request.cancelled = true;
      timeline_.after(at + std::chrono::microseconds(draw(60000)), [this, id] { cancel_both(id); });
    }
  }
  for (int i = 0; i < options_.num_crashes; ++i) {
    const bool is_prefill = draw(2) == 0;
    const auto index = int(draw(uint64_t(is_prefill ? options_.num_prefill : options_.num_decode)));
    timeline_.after(Duration(int64_t(draw(uint64_t(at.count())))), [=, this] { crash_process(is_prefill, index); });
  }
}

// The router's part: choose a pair among those that are up, send the request to both.
void SimFleet::arrive(uint64_t id) {
  SimRequest& request = requests_.at(id);
  std::vector<router::Candidate> prefills, decodes;
  for (const auto& p : prefills_) {
    if (p) prefills.push_back({router::InstanceId{uint32_t(p->id)}, in_flight_[p->id], std::nullopt});
  }
  for (const auto& d : decodes_) {
    if (d) decodes.push_back({router::InstanceId{uint32_t(d->id)}, in_flight_[d->id], std::nullopt});
  }
  const auto choice = router::pick_pair({pick_prefill_, pick_decode_}, prefills, decodes, "", clock_.now());
  if (!choice) {  // 503 at the router
    request.prefill.lost = request.decode.lost = true;
    return;
  }
  request.prefill.process = choice->prefill.value;
  request.decode.process = choice->decode.value;
  request.wire.bootstrap->host = "prefill" + std::to_string(alive(choice->prefill.value)->index);
  timeline_.after(delay(), [this, id, &request] { submit(id, request.prefill); });
  timeline_.after(delay(), [this, id, &request] { submit(id, request.decode); });
}

void SimFleet::submit(uint64_t id, Leg& leg) {
  SimRequest& request = requests_.at(id);
  Process* process = alive(leg.process);
  leg.submitted = true;
  if (process == nullptr) {  // connection refused
    leg.lost = true;
    Leg& other = &leg == &request.prefill ? request.decode : request.prefill;
    timeline_.after(delay(), [this, id, &other] { cancel(id, other); });
    return;
  }
  in_flight_[leg.process] += 1;
  EXPECT_EQ(process->engine->submit(engine::SubmitCommand{request.wire}), PushResult::kPushed);
}

void SimFleet::cancel(uint64_t id, Leg& leg) {
  if (leg.over()) return;
  if (!leg.submitted) {  // still on its way: it will be cancelled when it is there
    timeline_.after(std::chrono::milliseconds(1), [this, id, &leg] { cancel(id, leg); });
    return;
  }
  if (Process* process = alive(leg.process)) {
    process->engine->submit(engine::CancelCommand{{id}, engine::CancelReason::kDisconnected, ""});
  }
}

void SimFleet::cancel_both(uint64_t id) {
  SimRequest& request = requests_.at(id);
  if (request.prefill.process == 0) return;  // has not been sent anywhere
  timeline_.after(delay(), [this, id, &request] { cancel(id, request.prefill); });
  timeline_.after(delay(), [this, id, &request] { cancel(id, request.decode); });
}

void SimFleet::take(uint64_t process, api::EngineEvent event) {
  const uint64_t id = event.id.value;
  SimRequest& request = requests_.at(id);
  const bool is_prefill = request.prefill.process == process;
  Leg& leg = is_prefill ? request.prefill : request.decode;
  EXPECT_EQ(leg.process, process);
  EXPECT_FALSE(leg.finish.has_value()) << "seed " << options_.seed << ": event after the end of request " << id;
  leg.tokens.insert(leg.tokens.end(), event.tokens.begin(), event.tokens.end());
  leg.retractions = event.total_retractions;
  trace(process);
  trace(id);
  trace(uint64_t(clock_.now().time_since_epoch().count()));
  for (const int32_t token : event.tokens) trace(uint64_t(token));
  if (!event.finish) return;
  leg.finish = std::move(event.finish);
  trace(uint64_t(leg.finish->kind));
  in_flight_[process] -= 1;
  if (leg.finish->kind != api::FinishKind::kAbort) return;
  // The router answers its client and gives the other side up.
  Leg& other = is_prefill ? request.decode : request.prefill;
  timeline_.after(delay(), [this, id, &other] { cancel(id, other); });
}

bool SimFleet::turn_engines() {
  bool any = false;
  for (auto* side : {&prefills_, &decodes_}) {
    for (auto& process : *side) {
      if (!process || clock_.now() < process->stalled_until) continue;
      if (double(draw(100000)) < options_.stall_rate * 100000) {
        process->stalled_until = clock_.now() + std::chrono::milliseconds(draw(300));
        continue;
      }
      any |= process->engine->turn();
    }
  }
  return any;
}

bool SimFleet::all_over() const {
  for (const auto& [id, request] : requests_) {
    if (!request.prefill.over() || !request.decode.over()) return false;
  }
  return timeline_.empty();
}

SimOutcome SimFleet::run() {
  plan_requests();
  const TimePoint give_up = clock_.now() + kLongestRun;
  while (!all_over() && clock_.now() < give_up) {
    bool any = timeline_.run_due();
    any |= turn_engines();
    any |= network_.take_commands();
    Duration step = any ? kTurn : std::chrono::milliseconds(5);  // deadlines are looked at every 5 ms
    if (!any && !timeline_.empty()) step = std::clamp<Duration>(timeline_.next() - clock_.now(), kTurn, step);
    clock_.advance(step);
  }
  for (int i = 0; i < 50; ++i) {  // the last releases
    turn_engines();
    network_.take_commands();
    clock_.advance(std::chrono::milliseconds(20));
    timeline_.run_due();
  }
  check(outcome_);
  outcome_.spoiled_reads = network_.num_spoiled_reads();
  return outcome_;
}

void SimFleet::check_request(uint64_t id, const SimRequest& request, SimOutcome& outcome) {
  EXPECT_TRUE(request.prefill.over()) << "request " << id << " never ended on prefill";
  EXPECT_TRUE(request.decode.over()) << "request " << id << " never ended on decode";
  const auto expected = expected_tokens(request.wire.input_ids, request.wire.sampling->max_new_tokens, kVocab);
  const auto& got = request.decode.tokens;
  ASSERT_LE(got.size(), expected.size()) << "request " << id;
  EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "request " << id << ": wrong tokens";
  outcome.retractions += request.decode.retractions;
  const bool done = request.decode.finish && request.decode.finish->kind == api::FinishKind::kLength;
  if (done) {
    EXPECT_EQ(got, expected) << "request " << id << " ended early";
    outcome.served += 1;
  } else if (request.cancelled) {
    outcome.cancelled += 1;
  } else {
    outcome.failed += 1;
  }
}

void SimFleet::check_process(const Process& process) {
  const engine::EngineSnapshot s = process.engine->snapshot();
  const std::string name = (process.is_prefill ? "prefill " : "decode ") + std::to_string(process.index);
  EXPECT_EQ(s.leased_blocks, 0) << name;
  EXPECT_EQ(s.free_blocks + s.cached_blocks, s.total_blocks) << name;
  EXPECT_EQ(s.running + s.queued + s.inflight, 0) << name;
  EXPECT_EQ(process.model->faults, 0) << name << " computed with foreign or missing rows";
  if (!process.is_prefill) {
    EXPECT_EQ(s.prompt_tokens_computed, 0u) << name;
    outcome_.handover_bytes += s.handover_bytes;
    outcome_.handovers += s.handovers;
  }
}

void SimFleet::check(SimOutcome& outcome) {
  SCOPED_TRACE("seed " + std::to_string(options_.seed));
  for (const auto& [id, request] : requests_) check_request(id, request, outcome);
  for (const auto* side : {&prefills_, &decodes_}) {
    for (const auto& process : *side) {
      ASSERT_TRUE(process != nullptr);
      check_process(*process);
    }
  }
}

}  // namespace tandem::testing
