#include "engine/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <variant>

#include "base/check.h"

namespace tandem::engine {

EngineGroup::EngineGroup(LoadBalance balance, std::function<void(api::EngineEvent)> sink)
    : balance_(balance), sink_(std::move(sink)) {}

void EngineGroup::add(EngineDoor& rank) {
  ranks_.push_back(&rank);
  given_.emplace_back();
}

std::function<void(api::EngineEvent)> EngineGroup::rank_sink() {
  return [this](api::EngineEvent event) { on_event(std::move(event)); };
}

PushResult EngineGroup::submit(Command command) {
  if (auto* request = std::get_if<SubmitCommand>(&command)) return submit_request(std::move(*request));
  if (auto* flush = std::get_if<FlushCacheCommand>(&command)) return flush_all(std::move(*flush));
  if (auto* profile = std::get_if<ProfileCommand>(&command)) return profile_all(std::move(*profile));
  if (const auto* cancel = std::get_if<CancelCommand>(&command)) {
    size_t rank = 0;
    {
      std::lock_guard lock(mutex_);
      const auto known = requests_.find(cancel->id);
      if (known == requests_.end()) return PushResult::kPushed;  // it ended meanwhile
      rank = known->second.rank;
    }
    return ranks_[rank]->submit(std::move(command));
  }
  if (const auto* slow_down = std::get_if<SlowDownCommand>(&command)) {
    return to_all([&] { return Command(*slow_down); });
  }
  if (const auto* hold = std::get_if<HoldCommand>(&command)) {
    return to_all([&] { return Command(*hold); });
  }
  return to_all([] { return Command(DrainCommand{}); });
}

// A command that was taken by some ranks is taken: the caller asks again until all have it; what goes to all may be
// repeated.
PushResult EngineGroup::to_all(const std::function<Command()>& make) {
  PushResult worst = PushResult::kPushed;
  for (EngineDoor* rank : ranks_) {
    const PushResult pushed = rank->submit(make());
    if (pushed != PushResult::kPushed) worst = pushed;
  }
  return worst;
}

PushResult EngineGroup::flush_all(FlushCacheCommand command) {
  struct Answers {
    std::atomic<size_t> missing;
    std::atomic<bool> flushed{true};
    std::function<void(bool)> done;
  };
  const auto answers = std::make_shared<Answers>();
  answers->missing = ranks_.size();
  answers->done = std::move(command.done);
  const auto answer = [answers](bool flushed) {
    if (!flushed) answers->flushed = false;
    if (--answers->missing == 0 && answers->done) answers->done(answers->flushed);
  };
  for (EngineDoor* rank : ranks_) {
    if (rank->submit(FlushCacheCommand{answer}) != PushResult::kPushed) answer(false);
  }
  return PushResult::kPushed;
}

// Answered when all ranks have; with the error of the rank that knows best, if there is one. A rank whose queue is full
// is asked again by nobody: the others go without it, and the answer says so.
PushResult EngineGroup::profile_all(ProfileCommand command) {
  struct Answers {
    std::mutex mutex;
    size_t missing;
    std::optional<Error> error;
    std::function<void(Status)> done;
  };
  const auto answers = std::make_shared<Answers>();
  answers->missing = ranks_.size();
  answers->done = std::move(command.done);
  const auto answer = [answers](const Status& status) {
    bool is_last = false;
    {
      std::lock_guard lock(answers->mutex);
      const bool says_more = !answers->error || answers->error->code == ErrorCode::kCancelled;
      if (!status && says_more) answers->error = status.error();
      is_last = --answers->missing == 0;
    }
    if (is_last && answers->done) answers->done(answers->error ? Status(*answers->error) : Status(Ok{}));
  };
  command.done = answer;
  {
    std::lock_guard lock(mutex_);
    command.version = ++profile_orders_;
  }
  for (EngineDoor* rank : ranks_) {
    if (rank->submit(command) != PushResult::kPushed) answer(exhausted("The command queue of a rank is full."));
  }
  return PushResult::kPushed;
}

PushResult EngineGroup::submit_request(SubmitCommand command) {
  const api::EngineRequest& request = command.request;
  if (request.data_parallel_rank &&
      (*request.data_parallel_rank < 0 || size_t(*request.data_parallel_rank) >= ranks_.size())) {
    api::EngineEvent refused;
    refused.id = request.id;
    refused.prompt_tokens = int32_t(request.input_ids.size());
    refused.finish = api::FinishReason{};
    refused.finish->kind = api::FinishKind::kAbort;
    refused.finish->status_code = 400;
    refused.finish->message =
        fmt::format("data_parallel_rank {} is not in [0, {})", *request.data_parallel_rank, ranks_.size());
    sink_(std::move(refused));
    return PushResult::kPushed;
  }
  const RequestId id = request.id;
  const auto tokens = int64_t(request.input_ids.size());
  size_t rank = 0;
  {
    std::lock_guard lock(mutex_);
    rank = choose(request);
    CHECK(requests_.emplace(id, Given{rank, tokens}).second);
    given_[rank].requests += 1;
    given_[rank].tokens += tokens;
  }
  const PushResult pushed = ranks_[rank]->submit(std::move(command));
  if (pushed != PushResult::kPushed) forget(id);
  return pushed;
}

// Under mutex_.
size_t EngineGroup::choose(const api::EngineRequest& request) {
  if (request.data_parallel_rank) return size_t(*request.data_parallel_rank);
  if (request.bootstrap && request.bootstrap->room) return size_t(*request.bootstrap->room % ranks_.size());
  // Ties go round, so that an idle group is filled evenly.
  size_t best = next_++ % ranks_.size();
  if (balance_ == LoadBalance::kRoundRobin) return best;
  const auto load = [&](size_t rank) {
    return balance_ == LoadBalance::kShortestQueue ? given_[rank].requests : given_[rank].tokens;
  };
  for (size_t i = 1; i < ranks_.size(); ++i) {
    const size_t rank = (best + i) % ranks_.size();
    if (load(rank) < load(best)) best = rank;
  }
  return best;
}

void EngineGroup::forget(RequestId id) {
  std::lock_guard lock(mutex_);
  const auto known = requests_.find(id);
  if (known == requests_.end()) return;
  given_[known->second.rank].requests -= 1;
  given_[known->second.rank].tokens -= known->second.tokens;
  requests_.erase(known);
}

void EngineGroup::on_event(api::EngineEvent event) {
  if (event.finish) {
    forget(event.id);
  } else if (balance_ == LoadBalance::kMinimumTokens) {
    std::lock_guard lock(mutex_);
    const auto known = requests_.find(event.id);
    if (known != requests_.end()) {
      known->second.tokens += int64_t(event.tokens.size());
      given_[known->second.rank].tokens += int64_t(event.tokens.size());
    }
  }
  sink_(std::move(event));
}

std::vector<EngineSnapshot> EngineGroup::snapshots() const {
  std::vector<EngineSnapshot> all;
  for (const EngineDoor* rank : ranks_) {
    for (const EngineSnapshot& snapshot : rank->snapshots()) all.push_back(snapshot);
  }
  return all;
}

}  // namespace tandem::engine
