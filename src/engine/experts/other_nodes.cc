#include "engine/experts/other_nodes.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/log.h"

namespace tandem::engine {
namespace {

constexpr size_t kMaxArrivals = 4096;
constexpr size_t kMaxAsks = 256;
// Of one expert's tokens in one answer and in one step of it, so that no sum of what peers say overflows.
constexpr int64_t kMaxCount = int64_t(1) << 40, kMaxStepCount = int64_t(1) << 24;
constexpr size_t kMaxTakenBytes = size_t(1) << 30;  // of one node's recording: a peer may always say that more follows

}  // namespace

struct OtherNodes::Taking {
  std::vector<ExpertRecording> recordings;  // from node 1
  std::function<void(Result<std::vector<ExpertRecording>>)> done;
};

OtherNodes::OtherNodes(NodeLinks links, size_t cells, std::function<void(const std::vector<int64_t>&)> on_counts)
    : links_(std::move(links)),
      cells_(cells),
      on_counts_(std::move(on_counts)),
      arrivals_(kMaxArrivals),
      nodes_(size_t(links_.num_nodes - 1)) {}

Status OtherNodes::on_message(int32_t node, std::string_view bytes) {
  ASSIGN_OR_RETURN(api::NodeExpertMessage message, api::decode_expert_message(bytes));
  const bool is_ours = std::holds_alternative<api::NodeExpertAnswer>(message) ||
                       std::holds_alternative<api::NodeExpertProgress>(message) ||
                       std::holds_alternative<api::NodeExpertFailed>(message);
  if (!is_ours || node < 1 || node >= links_.num_nodes) {
    return corrupt(fmt::format("a message about experts of type {} out of order", message.index() + 1));
  }
  // Serving does not end because of balancing: what finds no room is missed, and its deadline says so.
  if (arrivals_.push({node, std::move(message)}) != PushResult::kPushed) {
    log::warning("a message about experts of {} found no room", links_.name(node));
  }
  return Ok{};
}

void OtherNodes::on_lost(const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (lost_.empty()) lost_ = reason;
}

void OtherNodes::send_all(const api::NodeExpertMessage& message) {
  const std::string bytes = api::encode_expert_message(message);
  for (int32_t node = 1; node < links_.num_nodes; ++node) {
    if (links_.send(node, bytes) == PushResult::kFull) {
      log::warning("{} does not take messages about experts", links_.name(node));
    }
  }
}

void OtherNodes::ask(api::NodeExpertAsk::What what, int64_t amount, TimePoint now, OnAnswers done) {
  if (asks_.size() >= kMaxAsks) return done(exhausted("too many questions to other nodes wait"));
  const uint64_t number = next_ask_++;
  Ask& ask = asks_[number];
  ask.answers.resize(nodes_.size());
  ask.deadline = now + links_.answer_deadline;
  ask.done = std::move(done);
  send_all(api::NodeExpertAsk{number, what, amount});
}

void OtherNodes::take_recordings(TimePoint now, std::function<void(Result<std::vector<ExpertRecording>>)> done) {
  auto taking = std::make_shared<Taking>();
  taking->recordings.resize(nodes_.size());
  taking->done = std::move(done);
  take_part(taking, api::NodeExpertAsk::What::kTakeRecording, now);
}

void OtherNodes::take_part(const std::shared_ptr<Taking>& taking, api::NodeExpertAsk::What what, TimePoint now) {
  ask(what, 0, now, [this, taking](Result<Answers> answers) {
    if (!answers) return taking->done(answers.error());
    bool more = false;
    for (size_t i = 0; i < answers->size(); ++i) {
      const api::NodeExpertAnswer& answer = (*answers)[i];
      ExpertRecording& to = taking->recordings[i];
      to.steps.insert(to.steps.end(), answer.steps.begin(), answer.steps.end());
      to.counts.insert(to.counts.end(), answer.counts.begin(), answer.counts.end());
      if (to.counts.size() * sizeof(int32_t) > kMaxTakenBytes) {
        return taking->done(exhausted(fmt::format("{}: its recording is too large", links_.name(int32_t(i) + 1))));
      }
      more = more || answer.steps_left > 0;
    }
    if (more) return take_part(taking, api::NodeExpertAsk::What::kMoreRecording, now_);
    taking->done(std::move(taking->recordings));
  });
}

bool OtherNodes::poll(TimePoint now) {
  now_ = now;
  bool any = false;
  while (std::optional<Arrival> arrival = arrivals_.try_pop()) {
    any = true;
    std::visit([&](auto& message) { take(arrival->node, message); }, arrival->message);
  }
  std::string lost;
  {
    std::lock_guard lock(mutex_);
    lost = lost_;
  }
  std::vector<std::pair<uint64_t, Error>> over;
  for (const auto& [number, ask] : asks_) {
    if (!lost.empty()) {
      over.push_back({number, peer_lost(lost)});
    } else if (now >= ask.deadline) {
      over.push_back({number, timed_out(fmt::format("{} did not answer about experts within {:.0f} s", missing(ask),
                                                    seconds(links_.answer_deadline)))});
    }
  }
  for (auto& [number, error] : over) end(number, std::move(error));
  return any || !over.empty();
}

std::string OtherNodes::missing(const Ask& ask) const {
  std::string names;
  for (size_t i = 0; i < ask.answers.size(); ++i) {
    if (!ask.answers[i]) names += (names.empty() ? "" : ", ") + links_.name(int32_t(i) + 1);
  }
  return names;
}

// The callback may ask again.
void OtherNodes::end(uint64_t number, Result<Answers> result) {
  const auto known = asks_.find(number);
  if (known == asks_.end()) return;
  const OnAnswers done = std::move(known->second.done);
  asks_.erase(known);
  done(std::move(result));
}

Status OtherNodes::check(const api::NodeExpertAnswer& answer) const {
  if (!answer.error.empty()) return corrupt(answer.error);
  if (!answer.tokens.empty() && answer.tokens.size() != cells_) return corrupt("counts of another model came");
  if (answer.counts.size() != answer.steps.size() * cells_) return corrupt("a recording of another model came");
  if (answer.steps_left > 0 && answer.steps.empty()) return corrupt("a part of a recording without a step came");
  const auto all_up_to = [](const auto& counts, int64_t most) {
    return std::all_of(counts.begin(), counts.end(), [&](int64_t count) { return count >= 0 && count <= most; });
  };
  if (!all_up_to(answer.tokens, kMaxCount) || !all_up_to(answer.counts, kMaxStepCount)) {
    return corrupt("impossible counts came");
  }
  return Ok{};
}

void OtherNodes::take(int32_t node, api::NodeExpertAnswer& answer) {
  const Status checked = check(answer);
  if (checked && !answer.tokens.empty()) on_counts_(answer.tokens);
  const auto known = asks_.find(answer.ask);
  if (known == asks_.end()) return;  // late
  if (!checked) {
    const Error& error = checked.error();
    return end(answer.ask, Error{error.code, fmt::format("{}: {}", links_.name(node), error.message)});
  }
  Ask& ask = known->second;
  const uint64_t number = answer.ask;
  ask.answers[size_t(node) - 1] = std::move(answer);
  Answers all;
  for (const auto& one : ask.answers) {
    if (!one) return;
  }
  for (auto& one : ask.answers) all.push_back(std::move(*one));
  end(number, std::move(all));
}

void OtherNodes::take(int32_t node, api::NodeExpertProgress& progress) {
  Node& of = nodes_[size_t(node) - 1];
  const bool moved = progress.bytes != of.progress.bytes || progress.version != of.progress.version;
  if (moved || progress.copied != of.progress.copied) of.progress_at = now_;
  of.progress = progress;
}

void OtherNodes::take(int32_t node, api::NodeExpertFailed& failed) {
  if (failed.plan != plan_) return;
  Node& of = nodes_[size_t(node) - 1];
  if (of.failed.empty()) of.failed = fmt::format("{}: {}", links_.name(node), failed.reason);
}

void OtherNodes::begin_plan(const api::NodeExpertPlan& plan, TimePoint now) {
  plan_ = plan.plan;
  for (Node& node : nodes_) {
    node.failed.clear();
    node.progress_at = now;
  }
  send_all(plan);
}

void OtherNodes::stage(uint32_t version) {
  for (Node& node : nodes_) node.progress_at = now_;
  send_all(api::NodeExpertStage{plan_, version});
}

void OtherNodes::abort(const std::string& reason) { send_all(api::NodeExpertAbort{plan_, reason}); }

Result<bool> OtherNodes::has_copied(uint32_t version, uint64_t digest, TimePoint now, Duration patience) const {
  {
    std::lock_guard lock(mutex_);
    if (!lost_.empty()) return peer_lost(lost_);
  }
  bool all = true;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    const std::string name = links_.name(int32_t(i) + 1);
    if (!node.failed.empty()) return peer_lost(node.failed);
    const bool copied = node.progress.plan == plan_ && node.progress.version == version && node.progress.copied;
    if (copied && digest != 0 && node.progress.digest != digest) {
      return corrupt(fmt::format("{} would switch to another placement in version {}: digest {:016x}, here {:016x}",
                                 name, version, node.progress.digest, digest));
    }
    if (!copied && now - node.progress_at >= patience) {
      return timed_out(
          fmt::format("{} copied nothing of version {} within {:.1f} s", name, version, seconds(patience)));
    }
    all = all && copied;
  }
  return all;
}

int64_t OtherNodes::moves_done() const {
  int64_t sum = 0;
  for (const Node& node : nodes_) sum += node.progress.moves;
  return sum;
}

int64_t OtherNodes::bytes_moved() const {
  int64_t sum = 0;
  for (const Node& node : nodes_) sum += node.progress.bytes;
  return sum;
}

}  // namespace tandem::engine
