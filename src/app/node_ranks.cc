#include "app/node_ranks.h"

#include <fmt/format.h>

#include <atomic>
#include <thread>

#include "app/machine.h"
#include "app/rank_link.h"
#include "app/resolve_gpu.h"
#include "base/log.h"
#include "engine/expert_follower.h"
#include "engine/expert_port.h"
#include "engine/group.h"
#include "engine/plan_board.h"
#include "engine/slab_reads.h"
#include "kernels/sample.h"
#include "kv/transfer_thread.h"
#include "model/model.h"
#include "parallel/attention_group.h"
#include "parallel/communicator.h"
#include "parallel/expert_exchange.h"
#include "parallel/flight.h"
#include "profile/span.h"
#include "profile/trace_writer.h"

namespace tandem::app {
namespace {

// How long a rank may be missing before the others say so and give up.
constexpr Duration kRankDeadline = std::chrono::seconds(60);
constexpr size_t kTransferQueue = 65536;
// About 20 us of looking at an exchange before a thread parks.
constexpr int32_t kExchangeSpins = 2000;
// Each look drives a UCX worker: about 100 us, what an answer from another node takes.
constexpr int32_t kNodeExchangeSpins = 400;

engine::LoadBalance balance_of(const std::string& name) {
  if (name == "shortest_queue") return engine::LoadBalance::kShortestQueue;
  return name == "minimum_tokens" ? engine::LoadBalance::kMinimumTokens : engine::LoadBalance::kRoundRobin;
}

// One rank. Members go in reverse order: the engine before what it borrows, the transfer thread before its port.
struct RankParts {
  RankParts(size_t queue, std::unique_ptr<profile::Recorder> recorder, const Clock& clock)
      : spans(std::move(recorder)), transfer_spans(clock), port(queue) {}
  ~RankParts() {
    thread = {};  // stops and joins
    woken = nullptr;
    transfer.reset();  // joins; its callback reads woken
  }

  const std::unique_ptr<profile::Recorder> spans;  // the model holds on to it
  int32_t gpu = 0;
  profile::SharedRecorder transfer_spans;
  std::unique_ptr<model::Model> model;
  std::unique_ptr<engine::ExpertPort> experts;  // null: no routed experts
  // Of the attention group; the plans only where it has several ranks.
  std::shared_ptr<kv::KvStorage> cache;
  std::shared_ptr<engine::PlanBoard> plans;
  device::ThreadPool sample_pool{1};
  std::optional<device::Workspace> sample_workspace;
  std::unique_ptr<parallel::Communicator> communicator;
  kv::TransferPort port;
  // Null until the engine is there; the transfer thread starts before it.
  std::atomic<engine::Engine*> woken{nullptr};
  std::unique_ptr<kv::TransferThread> transfer;
  std::unique_ptr<engine::Engine> engine;
  std::jthread thread;
};

class NodeRanksImpl final : public NodeRanks {
 public:
  NodeRanksImpl(const ResolvedConfig& config, const MemoryPlan& plan, Parts parts,
                std::function<void(api::EngineEvent)> sink)
      : config_(config),
        plan_(plan),
        parts_(std::move(parts)),
        traces_(*parts_.clock),
        group_(balance_of(config.flags.text("load_balance_method")), std::move(sink)) {
    if (parts_.nodes) link_ = std::make_unique<RankLink>(parts_.nodes, *parts_.clock, group_.rank_sink());
  }
  ~NodeRanksImpl() override;

  Status build();
  engine::EngineDoor& door() override { return group_; }
  engine::ExpertBalancer* experts() override { return balancer_.get(); }
  void start() override {
    if (balancer_) balancer_thread_ = std::jthread([this](std::stop_token stop) { balancer_->run(stop); });
    if (follower_) balancer_thread_ = std::jthread([this](std::stop_token stop) { follower_->run(stop); });
    for (const auto& rank : ranks_) {
      rank->thread = std::jthread([this, &rank = *rank](std::stop_token stop) {
        use_gpu(rank);
        rank.engine->run(stop);
      });
    }
  }
  std::optional<std::string> lost() const override;
  bool wants_stop() const override { return link_ && link_->wants_stop(); }
  void ask_to_stop() override { link_->ask_to_stop(); }

 private:
  bool pd() const { return config_.engine.role != engine::Role::kCombined; }
  int32_t first_rank() const { return config_.node_rank * config_.num_ranks; }
  int32_t num_ranks_of_all() const { return config_.num_nodes * config_.num_ranks; }
  // Of an attention group; the others follow it.
  bool is_leader(int32_t rank) const { return rank % config_.attn_tp_size == 0; }
  void note_flights(std::vector<model::RankOptions>& ranks) const;
  void add_rank(std::unique_ptr<model::Model> model, std::unique_ptr<profile::Recorder> recorder);
  std::string log_scope(int32_t rank) const;
  Status load();
  Result<std::vector<std::unique_ptr<parallel::ExpertExchange>>> exchanges(const parallel::ExchangeShape& shape) const;
  // Ranks that outnumber the cores would only keep each other from running.
  bool may_spin() const { return config_.num_ranks <= num_usable_cpus(); }
  kv::KvLayout layout() const;
  Status open_kv_ports();
  Result<std::unique_ptr<kv::KvTransfer>> open_kv_port(int32_t rank);
  std::string announced_host() const;
  Status build_engines();
  Status build_engine(size_t index, std::unique_ptr<parallel::Communicator> communicator);
  Status build_gpu_engines(std::vector<std::unique_ptr<parallel::Communicator>> communicators);
  // On the calling thread, before anything that allocates or runs there. Nothing on the CPU.
  void use_gpu(const RankParts& rank) const {
    if (is_cuda(config_.backend)) device::use_gpu(rank.gpu);
  }
  Status use_gpus(const parallel::ExchangeShape& shape, std::vector<model::RankOptions>& ranks) const;
  bool moves_between_nodes() const;
  Status open_expert_ports();
  Status build_balancer();
  void build_follower();

  const ResolvedConfig& config_;
  const MemoryPlan plan_;
  const Parts parts_;
  profile::TraceWriter traces_;                     // writes to its end what the ranks have recorded
  std::vector<api::RankAddress> addresses_;         // prefill
  std::vector<api::RankAddress> expert_addresses_;  // several nodes with spare places
  engine::EngineGroup group_;                       // the ranks' engines call it to their end
  std::unique_ptr<RankLink> link_;                  // null: the only node
  std::vector<std::unique_ptr<RankParts>> ranks_;
  std::vector<std::unique_ptr<kv::KvTransfer>> expert_transfers_;  // until the balancer or follower has them
  std::unique_ptr<engine::ExpertBalancer> balancer_;               // node 0
  std::unique_ptr<engine::ExpertFollower> follower_;               // the other nodes
  std::jthread balancer_thread_;
};

// All ranks, those of other nodes included, are told to stop before one is waited for: each leaves when all want to.
NodeRanksImpl::~NodeRanksImpl() {
  balancer_thread_ = {};  // stops and joins
  if (link_) link_->stop_others();
  for (const auto& rank : ranks_) rank->thread.request_stop();
  for (const auto& rank : ranks_) rank->thread = {};
  if (link_) link_->leave();
}

Status NodeRanksImpl::build() {
  if (link_) link_->start();
  RETURN_IF_ERROR(load());
  if (pd()) RETURN_IF_ERROR(open_kv_ports());
  if (moves_between_nodes()) RETURN_IF_ERROR(open_expert_ports());
  if (link_) {
    const Duration patience = std::chrono::seconds(config_.flags.integer("dist_timeout"));
    api::NodeLoaded own{ranks_[0]->model->fingerprint(), std::move(addresses_), std::move(expert_addresses_)};
    ASSIGN_OR_RETURN(api::NodeGo all, link_->all_loaded(std::move(own), patience));
    addresses_ = std::move(all.kv_ports);
    expert_addresses_ = std::move(all.expert_ports);
  }
  if (addresses_.size() < 2) addresses_.clear();
  RETURN_IF_ERROR(build_engines());
  if (config_.node_rank == 0) RETURN_IF_ERROR(build_balancer());
  if (config_.node_rank != 0) build_follower();
  if (!link_) return Ok{};
  std::vector<engine::EngineDoor*> engines;
  for (const auto& rank : ranks_) engines.push_back(rank->engine.get());
  RETURN_IF_ERROR(link_->open(std::move(engines), std::chrono::seconds(config_.flags.integer("dist_timeout"))));
  int32_t number = config_.num_ranks;
  for (engine::EngineDoor* remote : link_->remote_ranks())
    if (is_leader(number++)) group_.add(*remote);
  return Ok{};
}

std::optional<std::string> NodeRanksImpl::lost() const {
  if (link_ && link_->lost()) return link_->lost();
  for (const auto& rank : ranks_)
    if (rank->engine->snapshot().lost) return "a rank of this server was lost";
  return std::nullopt;
}

kv::KvLayout NodeRanksImpl::layout() const {
  kv::KvLayout layout;
  layout.num_layers = config_.model.num_layers;
  layout.row_width = config_.model.mla().row_width();
  layout.dtype = config_.kv_dtype;
  layout.block_tokens = config_.engine.block_tokens;
  layout.num_blocks = plan_.max_total_tokens / config_.engine.block_tokens;
  return layout;
}

Status NodeRanksImpl::load() {
  log::info("Load weight begin. avail mem={:.2f} GB", double(plan_.available_bytes) / 1e9);
  model::LoadOptions options = load_options(config_, plan_.limits, parts_.num_threads);
  const TimePoint begin = parts_.clock->now();
  options.progress = [this, begin, last = begin](double fraction) mutable {
    if (parts_.clock->now() - last < std::chrono::seconds(2)) return;
    last = parts_.clock->now();
    log::info("Load weight {:.0f} % after {:.1f} s", fraction * 100, seconds(last - begin));
  };
  const int32_t num_ranks = config_.num_ranks;
  const parallel::ExchangeShape shape = model::exchange_shape(config_.model, options);
  std::vector<std::unique_ptr<parallel::ExpertExchange>> exchanges;
  if (shape.top_k > 0 && !is_cuda(config_.backend)) {
    ASSIGN_OR_RETURN(exchanges, this->exchanges(shape));
  }
  std::vector<std::unique_ptr<parallel::AttentionGroup>> seats = parallel::make_attention_groups(
      Rank{first_rank()}, num_ranks, config_.attn_tp_size, kRankDeadline, may_spin() ? kExchangeSpins : 0);
  std::vector<model::RankOptions> rank_options;
  std::vector<std::unique_ptr<profile::Recorder>> recorders;
  for (int32_t i = 0; i < num_ranks; ++i) {
    model::RankOptions& rank = rank_options.emplace_back();
    rank.rank = Rank{first_rank() + i};
    rank.num_threads = threads_per_rank(config_, parts_.num_threads);
    rank.clock = parts_.clock;
    rank.spans = recorders.emplace_back(std::make_unique<profile::Recorder>(*parts_.clock)).get();
    if (config_.attn_tp_size > 1) rank.attention = std::move(seats[size_t(i)]);
    if (!exchanges.empty()) rank.exchange = std::move(exchanges[size_t(i)]);
  }
  if (is_cuda(config_.backend)) RETURN_IF_ERROR(use_gpus(shape, rank_options));
  note_flights(rank_options);
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<model::Model>> models,
                   model::load_ranks(options, std::move(rank_options)));
  log::info("Load weight end. type={}, dtype={}, avail mem={:.2f} GB, mem usage={:.2f} GB.", config_.model.architecture,
            config_.model.fp8_blocks ? "fp8" : "bfloat16", double(available_memory_bytes()) / 1e9,
            double(plan_.weight_bytes + plan_.expert_bytes * num_ranks) / 1e9);
  for (std::unique_ptr<model::Model>& model : models) add_rank(std::move(model), std::move(recorders[ranks_.size()]));
  log::info("KV Cache is allocated. #tokens: {}, KV size: {:.2f} GB", plan_.max_total_tokens,
            double(layout().total_bytes()) / 1e9);
  return Ok{};
}

// A rank alone exchanges with nobody.
void NodeRanksImpl::note_flights(std::vector<model::RankOptions>& ranks) const {
  for (size_t i = 0; i < ranks.size() && num_ranks_of_all() > 1; ++i) {
    profile::FlightRecorder* const flight = parts_.flight->of(i);
    if (flight == nullptr) continue;
    if (ranks[i].exchange) ranks[i].exchange = parallel::note_flight(std::move(ranks[i].exchange), *flight);
    if (ranks[i].attention) ranks[i].attention = parallel::note_flight(std::move(ranks[i].attention), *flight);
  }
}

void NodeRanksImpl::add_rank(std::unique_ptr<model::Model> model, std::unique_ptr<profile::Recorder> recorder) {
  const auto number = int32_t(ranks_.size());
  RankParts& rank =
      *ranks_.emplace_back(std::make_unique<RankParts>(kTransferQueue, std::move(recorder), *parts_.clock));
  rank.model = std::move(model);
  rank.gpu = gpu_of(config_, number);
  use_gpu(rank);
  if (!is_leader(number)) {
    rank.cache = ranks_[size_t(number) - 1]->cache;
    rank.plans = ranks_[size_t(number) - 1]->plans;
  } else {
    rank.cache = std::make_shared<kv::KvStorage>(device_of(config_.backend), layout());
    if (config_.attn_tp_size > 1) rank.plans = std::make_shared<engine::PlanBoard>();
  }
  if (model::ExpertSlots* slots = rank.model->expert_slots()) {
    rank.experts =
        std::make_unique<engine::ExpertPort>(config_.model.num_layers, config_.model.num_routed_experts, *slots);
  }
}

Result<std::vector<std::unique_ptr<parallel::ExpertExchange>>> NodeRanksImpl::exchanges(
    const parallel::ExchangeShape& shape) const {
  if (parts_.nodes) return parts_.nodes->exchanges(shape, kRankDeadline, may_spin() ? kNodeExchangeSpins : 0);
  return parallel::make_local_exchanges(shape, kRankDeadline, may_spin() ? kExchangeSpins : 0);
}

// Decode finds a prefill server at its bootstrap port, which is rank 0's; the handshake there names the other ranks'
// ports.
Status NodeRanksImpl::open_kv_ports() {
  if (config_.engine.fake_transfer) return Ok{};  // nobody is talked to
  const std::string backend = config_.flags.text("disaggregation_transfer_backend");
  log::info("KV transfer backend: UCX{}", backend == "ucx" ? "" : fmt::format(" (for {})", backend));
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (!is_leader(int32_t(i))) continue;
    RankParts& rank = *ranks_[i];
    ASSIGN_OR_RETURN(std::unique_ptr<kv::KvTransfer> transfer, open_kv_port(int32_t(i)));
    rank.transfer = std::make_unique<kv::TransferThread>(
        std::move(transfer), rank.port, *parts_.clock,
        [&rank] {
          if (engine::Engine* engine = rank.woken.load()) engine->wake();
        },
        &rank.transfer_spans);
    if (config_.engine.role != engine::Role::kPrefill) continue;
    const std::string address = rank.transfer->address();
    log::info("KV port: {}", address);
    addresses_.push_back({announced_host(), uint16_t(std::stoi(address.substr(address.rfind(':') + 1)))});
  }
  return Ok{};
}

// Where decode finds a rank of this node: on node 0 where it has found rank 0, elsewhere at --host, or without one at
// the address that this node has towards node 0.
std::string NodeRanksImpl::announced_host() const {
  if (config_.node_rank == 0) return "";
  const std::string host = config_.flags.text("host");
  const bool is_any = host == "0.0.0.0" || host == "::" || host == "[::]";
  return config_.flags.given("host") && !is_any ? host : parts_.nodes->own_host();
}

Result<std::unique_ptr<kv::KvTransfer>> NodeRanksImpl::open_kv_port(int32_t rank) {
  const kv::KvStorage& cache = *ranks_[size_t(rank)]->cache;
  kv::TransferOptions options;
  const bool is_elsewhere = config_.node_rank > 0 && !config_.flags.given("host");
  options.host = is_elsewhere ? parts_.nodes->own_host() : config_.flags.text("host");
  options.listen = config_.engine.role == engine::Role::kPrefill;
  if (is_cuda(config_.backend)) options.gpu = ranks_[size_t(rank)]->gpu;
  const bool is_bootstrap = options.listen && first_rank() + rank == 0;
  options.port = is_bootstrap ? config_.engine.default_bootstrap_port : uint16_t(0);
  options.epoch = config_.engine.epoch;
  options.heartbeat_interval = from_seconds(config_.environment.heartbeat_interval_s);
  options.heartbeat_max_failures = int32_t(config_.environment.heartbeat_max_failures);
  options.secret = config_.environment.deployment_secret;
  options.devices = config_.network_devices;
#ifdef TANDEM_FAULTS
  const FlagValues& flags = config_.flags;
  if (flags.has("kv_read_fault")) {
    ASSIGN_OR_RETURN(options.read_faults, kv::parse_read_faults(flags.text("kv_read_fault")));
  }
#endif
  return kv::make_ucx_transfer(options, {static_cast<std::byte*>(cache.base()), size_t(cache.layout().total_bytes())});
}

Status NodeRanksImpl::build_engines() {
  std::vector<std::unique_ptr<parallel::Communicator>> communicators =
      parts_.nodes ? parts_.nodes->communicators(kRankDeadline)
                   : parallel::make_local_communicators(config_.num_ranks, kRankDeadline);
  if (is_cuda(config_.backend)) {
    RETURN_IF_ERROR(build_gpu_engines(std::move(communicators)));
  } else {
    for (size_t i = 0; i < ranks_.size(); ++i) RETURN_IF_ERROR(build_engine(i, std::move(communicators[i])));
  }
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (is_leader(int32_t(i))) group_.add(*ranks_[i]->engine);
  }
  return Ok{};
}

// All at the same time: steps are recorded after a run, in which ranks meet each other.
Status NodeRanksImpl::build_gpu_engines(std::vector<std::unique_ptr<parallel::Communicator>> communicators) {
  std::vector<Status> built(ranks_.size(), Ok{});
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    threads.emplace_back([&, i] {
      use_gpu(*ranks_[i]);
      built[i] = build_engine(i, std::move(communicators[i]));
    });
  }
  threads.clear();
  for (const Status& status : built) RETURN_IF_ERROR(status);
  return Ok{};
}

// A stream for each rank, and the exchange between them.
Status NodeRanksImpl::use_gpus(const parallel::ExchangeShape& shape, std::vector<model::RankOptions>& ranks) const {
  std::vector<parallel::PeerSeat> seats;
  for (size_t i = 0; i < ranks.size(); ++i) {
    ranks[i].gpu = gpu_of(config_, int32_t(i));
    device::use_gpu(ranks[i].gpu);
    ASSIGN_OR_RETURN(device::Stream stream, device::Stream::create(true));  // ahead of moving experts
    ranks[i].stream = std::make_shared<const device::Stream>(std::move(stream));
    seats.push_back({ranks[i].gpu, ranks[i].stream, kRankDeadline});
  }
  if (shape.top_k == 0) return Ok{};
  if (ranks.size() == 1) {
    ranks[0].exchange = parallel::make_gpu_exchange(shape, config_.backend, ranks[0].stream);
    return Ok{};
  }
  ASSIGN_OR_RETURN(auto exchanges, parallel::make_peer_exchanges(shape, config_.backend, seats));
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i].exchange = std::move(exchanges[i]);
  return Ok{};
}

// As SGLang's: DP only where there are several, nothing for a rank alone.
std::string NodeRanksImpl::log_scope(int32_t rank) const {
  if (num_ranks_of_all() == 1) return "";
  const std::string scope = fmt::format("TP{} EP{}", rank, rank);
  return config_.dp_size == 1 ? scope : fmt::format("DP{} {}", rank / config_.attn_tp_size, scope);
}

Status NodeRanksImpl::build_engine(size_t index, std::unique_ptr<parallel::Communicator> communicator) {
  RankParts& rank = *ranks_[index];
  profile::FlightRecorder* const flight = parts_.flight->of(index);
  rank.communicator = flight ? parallel::note_flight(std::move(communicator), *flight) : std::move(communicator);
  engine::EngineParts parts;
  parts.clock = parts_.clock;
  parts.model = rank.model.get();
  parts.kernels.backend = config_.backend;
  parts.kernels.stream = rank.model->stream();
  parts.kernels.isa = config_.isa;
  parts.kernels.pool = &rank.sample_pool;
  parts.kernels.spans = rank.spans.get();
  parts.spans = rank.spans.get();
  parts.transfer_spans = rank.transfer ? &rank.transfer_spans : nullptr;
  parts.traces = &traces_;
  rank.sample_workspace.emplace(device_of(config_.backend),
                                kernels::sample_workspace_bytes(parts.kernels, config_.model.vocab_size));
  parts.kernels.workspace = &*rank.sample_workspace;
  parts.cache = &*rank.cache;
  parts.transfer = pd() ? &rank.port : nullptr;
  parts.communicator = rank.communicator.get();
  parts.metrics = parts_.metrics;
  parts.experts = rank.experts.get();
  parts.plans = rank.plans.get();
  parts.flight = flight;
  engine::EngineConfig config = config_.engine;
  const int32_t number = first_rank() + int32_t(index);
  config.dp_rank = number / config_.attn_tp_size;
  config.tp_rank = number;
  config.attn_tp_rank = number % config_.attn_tp_size;
  config.seed += uint64_t(config.dp_rank);
  config.rank_addresses = addresses_;
  config.log_scope = log_scope(number);
  config.recorded_decode = decode_recording(config_, config.max_running_requests);
  const auto sink = config_.node_rank == 0 ? group_.rank_sink() : link_->sink(uint32_t(number));
  ASSIGN_OR_RETURN(rank.engine, engine::Engine::create(config, parts, sink));
  rank.woken = rank.engine.get();
  return Ok{};
}

bool NodeRanksImpl::moves_between_nodes() const {
  return link_ != nullptr && ranks_[0]->experts && ranks_[0]->experts->slots().shape().num_spares > 0;
}

// Where the ranks of other nodes read this node's experts.
Status NodeRanksImpl::open_expert_ports() {
  for (const auto& rank : ranks_) {
    kv::TransferOptions options;
    options.host = parts_.nodes->own_host();
    options.listen = true;
    options.epoch = config_.engine.epoch;
    options.secret = config_.environment.deployment_secret;
    options.devices = config_.network_devices;
    ASSIGN_OR_RETURN(auto transfer, kv::make_ucx_transfer(options, rank->experts->slots().slab()));
    const std::string address = transfer->address();
    const auto port = uint16_t(std::stoi(address.substr(address.rfind(':') + 1)));
    expert_addresses_.push_back({options.host, port});
    expert_transfers_.push_back(std::move(transfer));
  }
  return Ok{};
}

Status NodeRanksImpl::build_balancer() {
  if (!ranks_[0]->experts) return Ok{};
  engine::BalancerParts parts;
  parts.clock = parts_.clock;
  parts.metrics = parts_.metrics;
  for (const auto& rank : ranks_) parts.ports.push_back(rank->experts.get());
  parts.placement = config_.experts.placement;
  if (link_) {
    parts.nodes.num_nodes = config_.num_nodes;
    parts.nodes.send = [this](int32_t node, const std::string& bytes) { return link_->send_experts(node, bytes); };
    parts.nodes.name = [this](int32_t node) { return link_->node_name(node); };
    parts.reads = std::make_shared<engine::SlabReads>(
        engine::SlabReads::Parts{std::move(expert_transfers_), first_rank(), expert_addresses_});
  }
  if (is_cuda(config_.backend) && ranks_[0]->experts->slots().shape().num_spares > 0) {
    std::vector<int32_t> gpus;
    for (const auto& rank : ranks_) gpus.push_back(rank->gpu);
    ASSIGN_OR_RETURN(parts.copies, engine::make_gpu_copies(gpus));
  }
  balancer_ = std::make_unique<engine::ExpertBalancer>(*config_.balancer, std::move(parts));
  if (!link_) return Ok{};
  link_->on_experts([this](int32_t node, const std::string& bytes) { return balancer_->on_message(node, bytes); },
                    [this](const std::string& reason) { balancer_->on_lost(reason); });
  return Ok{};
}

void NodeRanksImpl::build_follower() {
  if (!ranks_[0]->experts) return;
  engine::ExpertFollower::Parts parts;
  parts.clock = parts_.clock;
  for (const auto& rank : ranks_) parts.ports.push_back(rank->experts.get());
  parts.first_rank = first_rank();
  parts.placement = config_.experts.placement;
  parts.send = [this](const std::string& bytes) { return link_->send_experts(0, bytes); };
  parts.reads = std::make_unique<engine::SlabReads>(
      engine::SlabReads::Parts{std::move(expert_transfers_), first_rank(), expert_addresses_});
  follower_ = std::make_unique<engine::ExpertFollower>(*config_.balancer, std::move(parts));
  link_->on_experts([this](int32_t, const std::string& bytes) { return follower_->on_message(bytes); }, {});
}

}  // namespace

Result<std::unique_ptr<NodeRanks>> NodeRanks::create(const ResolvedConfig& config, const MemoryPlan& plan, Parts parts,
                                                     std::function<void(api::EngineEvent)> sink) {
  auto ranks = std::make_unique<NodeRanksImpl>(config, plan, std::move(parts), std::move(sink));
  RETURN_IF_ERROR(ranks->build());
  return std::unique_ptr<NodeRanks>(std::move(ranks));
}

}  // namespace tandem::app
