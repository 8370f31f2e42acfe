#include "app/rank_link.h"

#include <fmt/format.h>

#include "app/signals.h"
#include "base/log.h"

namespace tandem::app {
namespace {

constexpr Duration kLook = std::chrono::milliseconds(50);

}  // namespace

RankLink::RankLink(std::shared_ptr<parallel::NodeGroup> nodes, const Clock& clock,
                   std::function<void(api::EngineEvent)> sink)
    : nodes_(std::move(nodes)), clock_(clock), has_figures_(size_t(nodes_->num_nodes())) {
  if (!is_first()) return;
  for (int32_t rank = ranks_per_node(); rank < nodes_->num_ranks(); ++rank) {
    remotes_.push_back(
        std::make_unique<engine::RemoteRank>(uint32_t(rank), clock_, send_to(rank / ranks_per_node()), sink));
  }
}

void RankLink::start() {
  parallel::LinkHandlers handlers;
  handlers.on_message = [this](int32_t node, const std::string& bytes) { on_message(node, bytes); };
  handlers.on_lost = [this](int32_t, const std::string& reason) { fail_remotes(reason); };
  handlers.on_tick = [this] { on_tick(); };
  nodes_->start(std::move(handlers));
}

engine::SendNodeMessage RankLink::send_to(int32_t node) const {
  return [nodes = nodes_.get(), node](const api::NodeMessage& message) {
    return nodes->send(node, api::encode_node_message(message));
  };
}

engine::SendNodeMessage RankLink::send_to_first() const {
  return [nodes = nodes_.get()](const api::NodeMessage& message) {
    const PushResult pushed = nodes->send(0, api::encode_node_message(message));
    if (pushed == PushResult::kFull) nodes->fail(exhausted("node 0 does not take the events of this node any more"));
    return pushed;
  };
}

std::function<void(api::EngineEvent)> RankLink::sink(uint32_t rank) const {
  return engine::RankHost::sink(rank, send_to_first());
}

std::vector<engine::EngineDoor*> RankLink::remote_ranks() {
  std::vector<engine::EngineDoor*> ranks;
  for (const auto& remote : remotes_) ranks.push_back(remote.get());
  return ranks;
}

std::optional<std::string> RankLink::lost() const {
  const Error* failure = nodes_->failure();
  return failure == nullptr ? std::nullopt : std::optional<std::string>(failure->message);
}

// The next message of the start, or why there is none: lost, late or stopped.
Result<RankLink::Arrival> RankLink::next(TimePoint deadline, const std::function<std::string()>& missing) {
  for (;;) {
    if (std::optional<Arrival> arrival = arrivals_.pop(kLook)) return std::move(*arrival);
    if (const Error* failure = nodes_->failure()) return *failure;
    if (wants_stop() && !is_first()) return cancelled("node 0 ended before all nodes were ready");
    if (signals_seen() > 0) return cancelled("stopped before all nodes were ready");
    if (clock_.now() >= deadline) return timed_out(missing());
  }
}

Result<api::NodeGo> RankLink::all_loaded(api::NodeLoaded own, Duration patience) {
  const TimePoint deadline = clock_.now() + patience;
  if (is_first()) return gather(std::move(own), deadline);
  if (send_to_first()(own) != PushResult::kPushed) return peer_lost(lost().value_or("node 0 was lost"));
  ASSIGN_OR_RETURN(Arrival arrival, next(deadline, [&] {
                     return fmt::format("{} did not say within {:.0f} s that all nodes have loaded the model",
                                        nodes_->node_name(0), seconds(patience));
                   }));
  auto* go = std::get_if<api::NodeGo>(&arrival.message);
  const bool is_whole =
      go != nullptr &&
      (own.expert_ports.empty() ? go->expert_ports.empty() : go->expert_ports.size() == size_t(nodes_->num_ranks()));
  if (!is_whole) return corrupt("node 0 sent something else than the start");
  return std::move(*go);
}

Result<api::NodeGo> RankLink::gather(api::NodeLoaded own, TimePoint deadline) {
  const auto num_nodes = size_t(nodes_->num_nodes());
  std::vector<std::optional<api::NodeLoaded>> loaded(num_nodes);
  loaded[0] = std::move(own);
  const auto missing = [&] {
    std::string names;
    for (size_t node = 0; node < num_nodes; ++node) {
      if (!loaded[node]) names += (names.empty() ? "" : ", ") + nodes_->node_name(int32_t(node));
    }
    return fmt::format("the model is loaded here, but not in time on {}", names);
  };
  for (size_t i = 1; i < num_nodes; ++i) {
    ASSIGN_OR_RETURN(Arrival arrival, next(deadline, missing));
    auto* came = std::get_if<api::NodeLoaded>(&arrival.message);
    if (came == nullptr || came->kv_ports.size() != loaded[0]->kv_ports.size() ||
        came->expert_ports.size() != loaded[0]->expert_ports.size()) {
      return corrupt(fmt::format("{} sent something else than its ports", nodes_->node_name(arrival.node)));
    }
    if (came->model_fingerprint != loaded[0]->model_fingerprint) {
      const Error differs = invalid_input(
          fmt::format("the model's weights differ: node 0 has fingerprint {:016x}, {} has {:016x}",
                      loaded[0]->model_fingerprint, nodes_->node_name(arrival.node), came->model_fingerprint));
      nodes_->fail(differs);
      return differs;
    }
    loaded[size_t(arrival.node)] = std::move(*came);
  }
  api::NodeGo go;
  for (const auto& node : loaded) {
    if (!node) return corrupt("a node said twice that it is loaded");
    go.kv_ports.insert(go.kv_ports.end(), node->kv_ports.begin(), node->kv_ports.end());
    go.expert_ports.insert(go.expert_ports.end(), node->expert_ports.begin(), node->expert_ports.end());
  }
  for (size_t node = 1; node < num_nodes; ++node) static_cast<void>(send_to(int32_t(node))(go));
  return go;
}

void RankLink::on_experts(std::function<Status(int32_t, const std::string&)> take,
                          std::function<void(const std::string&)> lost) {
  take_experts_ = std::move(take);
  experts_lost_ = std::move(lost);
  has_experts_ = true;
}

PushResult RankLink::send_experts(int32_t node, const std::string& bytes) {
  return nodes_->send(node, api::encode_node_message(api::NodeExperts{bytes}));
}

Status RankLink::open(std::vector<engine::EngineDoor*> engines, Duration patience) {
  if (!is_first()) {
    host_ = std::make_unique<engine::RankHost>(uint32_t(nodes_->first_rank().value), std::move(engines), clock_,
                                               send_to_first());
    open_host_ = host_.get();
    return Ok{};
  }
  const TimePoint deadline = clock_.now() + patience;
  for (int32_t node = 1; node < nodes_->num_nodes(); ++node) {
    while (!has_figures_[size_t(node)].load()) {
      const Result<Arrival> none = next(clock_.now(), [&] { return std::string(); });
      if (none || none.error().code == ErrorCode::kTimeout) {
        if (clock_.now() < deadline) continue;
        return timed_out(fmt::format("{} has loaded the model but its ranks did not start", nodes_->node_name(node)));
      }
      return none.error();
    }
  }
  return Ok{};
}

void RankLink::on_message(int32_t node, const std::string& bytes) {
  Result<api::NodeMessage> message = api::decode_node_message(bytes);
  Status taken = message ? take(node, std::move(*message)) : Status(message.error());
  if (taken) return;
  nodes_->fail(peer_lost(fmt::format("{} was lost: {}", nodes_->node_name(node), taken.error().message)));
}

Status RankLink::take(int32_t node, api::NodeMessage message) {
  if (std::holds_alternative<api::NodeLoaded>(message) || std::holds_alternative<api::NodeGo>(message)) {
    if (arrivals_.push({node, std::move(message)}) != PushResult::kPushed) return corrupt("too much said at the start");
    return Ok{};
  }
  if (std::holds_alternative<api::NodeStop>(message) || std::holds_alternative<api::NodeWantsStop>(message)) {
    wants_stop_ = true;
    return Ok{};
  }
  if (const auto* experts = std::get_if<api::NodeExperts>(&message)) {
    if (!has_experts_.load()) return corrupt("a message about experts before there are any");
    return take_experts_(node, experts->bytes);
  }
  if (is_first()) return take_from_rank_node(node, message);
  engine::RankHost* host = open_host_.load();
  if (host == nullptr) return corrupt("a command before the ranks are there");
  return host->take(std::move(message));
}

Status RankLink::take_from_rank_node(int32_t node, api::NodeMessage& message) {
  const auto rank_of = [&](uint32_t rank) -> engine::RemoteRank* {
    const bool is_its_own = rank / uint32_t(ranks_per_node()) == uint32_t(node);
    return is_its_own ? remotes_[rank - uint32_t(ranks_per_node())].get() : nullptr;
  };
  if (auto* event = std::get_if<api::NodeEvent>(&message)) {
    engine::RemoteRank* rank = rank_of(event->rank);
    if (rank == nullptr) return corrupt(fmt::format("an event of rank {}", event->rank));
    rank->on_event(std::move(event->event));
    return Ok{};
  }
  if (const auto* flushed = std::get_if<api::NodeFlushed>(&message)) {
    engine::RemoteRank* rank = rank_of(flushed->rank);
    if (rank == nullptr) return corrupt(fmt::format("an answer of rank {}", flushed->rank));
    rank->on_flushed(flushed->flush_id, flushed->flushed);
    return Ok{};
  }
  if (const auto* profiled = std::get_if<api::NodeProfiled>(&message)) {
    engine::RemoteRank* rank = rank_of(profiled->rank);
    if (rank == nullptr) return corrupt(fmt::format("an answer of rank {}", profiled->rank));
    rank->on_profiled(*profiled);
    return Ok{};
  }
  const auto* figures = std::get_if<api::NodeFigures>(&message);
  if (figures == nullptr || figures->ranks.size() != size_t(ranks_per_node())) {
    return corrupt(fmt::format("a message of type {} out of order", message.index() + 1));
  }
  for (size_t i = 0; i < figures->ranks.size(); ++i) {
    rank_of(uint32_t(node * ranks_per_node()) + uint32_t(i))->on_figures(figures->ranks[i]);
  }
  has_figures_[size_t(node)] = true;
  return Ok{};
}

void RankLink::on_tick() {
  if (const Error* failure = nodes_->failure()) fail_remotes(failure->message);
  engine::RankHost* host = open_host_.load();
  if (host == nullptr) return;
  host->retry();
  // What does not fit now is old in a moment anyway.
  static_cast<void>(nodes_->send(0, api::encode_node_message(host->figures())));
}

void RankLink::fail_remotes(const std::string& reason) {
  for (const auto& remote : remotes_) remote->fail(reason);
  if (has_experts_.load() && experts_lost_) experts_lost_(reason);
}

void RankLink::ask_to_stop() { static_cast<void>(send_to_first()(api::NodeWantsStop{})); }

void RankLink::stop_others() {
  if (!is_first()) return;
  for (int32_t node = 1; node < nodes_->num_nodes(); ++node) static_cast<void>(send_to(node)(api::NodeStop{}));
}

void RankLink::leave() { nodes_->leave(); }

}  // namespace tandem::app
