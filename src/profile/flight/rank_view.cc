#include "profile/flight/rank_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace tandem::profile {
namespace {

uint64_t round_of(const FlightEntry& entry) { return uint64_t(entry.words[1]) << 32 | entry.words[0]; }

bool is_after(const FlightEntry* entry, const FlightEntry& other) {
  return entry != nullptr && entry->sequence > other.sequence;
}

bool reaches(const FlightEntry* entry, const FlightWait& wait) {
  if (entry == nullptr) return false;
  return std::pair(entry->step, int32_t(entry->layer)) >= std::pair(wait.step, wait.layer);
}

const char* step_name(uint8_t kind) {
  switch (FlightStep(kind)) {
    case FlightStep::kDecode: return "decode";
    case FlightStep::kExtend: return "prefill";
    case FlightStep::kNone:
    case FlightStep::kIdle: break;
  }
  return "nothing to run";
}

std::string batch_text(const FlightEntry& entry) {
  const bool is_empty = entry.detail != uint8_t(FlightStep::kDecode) && entry.detail != uint8_t(FlightStep::kExtend);
  return is_empty ? step_name(entry.detail) : fmt::format("{}, {} tokens", step_name(entry.detail), entry.words[0]);
}

std::string decision_text(const FlightEntry& entry) {
  std::string text = fmt::format("decision for step {}: {}", entry.step, batch_text(entry));
  const uint32_t flags = entry.words[2];
  if (entry.words[3] > 0 && (flags & kFlightSleepReady) == 0) {
    text += fmt::format(", sleep of {:.1f} s first", entry.words[3] / 1e3);
  }
  if (flags & kFlightHolds) text += ", decode is held";
  if (flags & kFlightShutdown) text += ", shutdown";
  return text;
}

std::string handover_text(const FlightEntry& entry) {
  const std::string address = flight_address(entry);
  switch (entry.kind) {
    case FlightKind::kConnect: return fmt::format("connection to {} begun", address);
    case FlightKind::kConnected: return fmt::format("{} connected", address);
    case FlightKind::kPeerLost: return fmt::format("{} lost", address);
    default: break;
  }
  const bool is_sent = entry.kind == FlightKind::kSent;
  const std::string room = entry.step == 0 ? "" : fmt::format(" of room {}", entry.step);
  return fmt::format("'{}'{} {} {}", to_string(FlightMessage(entry.detail)), room, is_sent ? "sent to" : "came from",
                     address);
}

std::string wait_text(const FlightEntry& entry) {
  const std::string where = fmt::format("layer {} of step {}", entry.layer, entry.step);
  switch (FlightKind(entry.detail)) {
    case FlightKind::kVote: return fmt::format("waits for votes for step {}", entry.step);
    case FlightKind::kDispatch: return "waits for rows of " + where;
    case FlightKind::kResults: return "waits for results of " + where;
    default: return "waits in the attention of " + where;
  }
}

}  // namespace

RankView::RankView(const FlightLog& of) : log(&of) {
  for (const FlightEntry& entry : log->entries) {
    newest_of[size_t(entry.kind)] = &entry;
    if (entry.kind != FlightKind::kText) last = &entry;
    if (entry.kind == FlightKind::kDispatch) channels[entry.words[0]].dispatch = &entry;
    if (entry.kind == FlightKind::kResults) channels[entry.words[0]].results = &entry;
  }
}

std::string RankView::role() const {
  constexpr const char* kRoles[] = {"combined", "prefill", "decode"};
  return kRoles[header().role];
}

std::string RankView::name() const {
  const std::string node = header().num_nodes > 1 ? fmt::format(" node {}", header().node) : "";
  const bool is_known = log->process == FlightProcess::kStopped || log->process == FlightProcess::kGone;
  std::string state;
  if (is_known) state = fmt::format(", {}", header().is_closed != 0 ? "ended" : to_string(log->process));
  return fmt::format("rank {} ({}{}, pid {}{})", header().rank, role(), node, header().pid, state);
}

std::string RankView::end_reason() const {
  std::string reason;
  const FlightEntry* const end = newest(FlightKind::kEnd);
  for (const FlightEntry& entry : log->entries) {
    if (entry.kind == FlightKind::kText && end != nullptr && entry.sequence > end->sequence)
      reason += flight_text(entry);
  }
  return reason;
}

double RankView::age_s(int64_t now_ns) const {
  return last == nullptr ? 0 : std::max(0.0, (double(now_ns) - double(last->time_ns)) / 1e9);
}

std::vector<FlightWait> RankView::open_waits() const {
  std::vector<FlightWait> waits;
  const FlightEntry *const vote = newest(FlightKind::kVote), *const decision = newest(FlightKind::kDecision);
  if (vote != nullptr && (decision == nullptr || decision->step < vote->step)) {
    waits.push_back({FlightKind::kVote, vote->step, -1, 0, 0, vote->time_ns, vote});
    return waits;
  }
  // A forward that failed ended in the wait that it gave up.
  const FlightEntry* done = newest(FlightKind::kForwardEnd);
  if (done != nullptr && done->detail != 0) done = nullptr;
  const auto is_over = [&](const FlightEntry& entry) { return is_after(vote, entry) || is_after(done, entry); };
  for (const auto& [number, channel] : channels) {
    const FlightEntry* open = channel.dispatch;
    if (open == nullptr || (channel.results != nullptr && channel.results->sequence > open->sequence)) {
      open = channel.results;
    }
    if (open != nullptr && !is_over(*open)) {
      waits.push_back({open->kind, open->step, open->layer, number, 0, open->time_ns, open});
    }
  }
  const FlightEntry* const round = newest(FlightKind::kAttention);
  // In a round it waits for nothing else.
  if (round != nullptr && !is_over(*round) && !is_after(newest(FlightKind::kDispatch), *round) &&
      !is_after(newest(FlightKind::kResults), *round)) {
    return {{FlightKind::kAttention, round->step, round->layer, 0, round_of(*round), round->time_ns, round}};
  }
  return waits;
}

bool RankView::has_come_to(const FlightWait& wait) const {
  const FlightEntry* const vote = newest(FlightKind::kVote);
  if (wait.kind == FlightKind::kVote) return vote != nullptr && vote->step >= wait.step;
  if (vote != nullptr && vote->step > wait.step) return true;
  if (wait.kind == FlightKind::kAttention) {
    const FlightEntry* const round = newest(FlightKind::kAttention);
    return round != nullptr && round_of(*round) >= wait.round;
  }
  const auto channel = channels.find(wait.channel);
  if (channel == channels.end()) return false;
  if (wait.kind == FlightKind::kDispatch) return reaches(channel->second.dispatch, wait);
  FlightWait beyond = wait;
  beyond.layer += 1;
  return reaches(channel->second.results, wait) || reaches(channel->second.dispatch, beyond);
}

const FlightEntry* RankView::note_of(const FlightWait& wait) const {
  const FlightEntry* const note = newest(FlightKind::kWait);
  const bool is_same = note != nullptr && FlightKind(note->detail) == wait.kind && note->step == wait.step &&
                       note->layer == wait.layer && note->sequence > wait.posted->sequence;
  if (!is_same) return nullptr;
  const bool is_channel = wait.kind == FlightKind::kDispatch || wait.kind == FlightKind::kResults;
  return !is_channel || note->words[0] == wait.channel ? note : nullptr;
}

bool RankView::still_waits(const FlightWait& wait) const {
  for (const FlightEntry& entry : log->entries) {
    const bool is_later = entry.sequence > wait.posted->sequence && flight_lane(entry.kind) < 2;
    if (is_later && entry.kind != FlightKind::kWait) return false;
  }
  return true;
}

std::pair<int32_t, int32_t> RankView::ranks_of(const FlightWait& wait) const {
  if (wait.kind != FlightKind::kAttention) return {0, header().num_ranks};
  const int32_t size = header().attention_size, first = header().rank / size * size;
  return {first, std::min(first + size, header().num_ranks)};
}

std::string describe(const FlightEntry& entry) {
  const std::string where = fmt::format("layer {} in step {}", entry.layer, entry.step);
  switch (entry.kind) {
    case FlightKind::kVote: return fmt::format("vote for step {}: {}", entry.step, batch_text(entry));
    case FlightKind::kDecision: return decision_text(entry);
    case FlightKind::kForwardBegin: return fmt::format("forward of step {} begun: {}", entry.step, batch_text(entry));
    case FlightKind::kForwardEnd:
      return fmt::format("forward of step {} {}", entry.step, entry.detail == 0 ? "done" : "failed");
    case FlightKind::kEnd: return fmt::format("gave up at step {}", entry.step);
    case FlightKind::kDispatch: return "dispatch of " + where;
    case FlightKind::kResults: return "results of " + where;
    case FlightKind::kAttention: return "attention of " + where;
    case FlightKind::kWait: return wait_text(entry);
    case FlightKind::kConnect:
    case FlightKind::kConnected:
    case FlightKind::kPeerLost:
    case FlightKind::kSent:
    case FlightKind::kReceived: return handover_text(entry);
    case FlightKind::kNone:
    case FlightKind::kText:
    case FlightKind::kCount: break;
  }
  return "nothing";
}

std::string describe_missing(const FlightWait& wait) {
  const std::string where = fmt::format("layer {} of step {}", wait.layer, wait.step);
  switch (wait.kind) {
    case FlightKind::kVote: return fmt::format("voted for step {}", wait.step);
    case FlightKind::kDispatch: return "dispatched " + where;
    case FlightKind::kResults: return "given results for " + where;
    default: return "come to the attention of " + where;
  }
}

const char* operation_of(FlightKind kind) {
  switch (kind) {
    case FlightKind::kVote: return "vote";
    case FlightKind::kDispatch: return "dispatch";
    case FlightKind::kResults: return "combine";
    case FlightKind::kAttention: return "attention";
    default: return "";
  }
}

const char* to_string(FlightMessage message) {
  switch (message) {
    case FlightMessage::kHello: return "hello";
    case FlightMessage::kHelloReply: return "hello reply";
    case FlightMessage::kWant: return "want";
    case FlightMessage::kSource: return "source";
    case FlightMessage::kAnnounce: return "announce";
    case FlightMessage::kConfirm: return "confirm";
    case FlightMessage::kConfirmed: return "confirmed";
    case FlightMessage::kAck: return "ack";
    case FlightMessage::kAbort: return "abort";
    case FlightMessage::kQueued: return "queued";
  }
  return "unknown message";
}

const char* to_string(FlightProcess process) {
  switch (process) {
    case FlightProcess::kRunning: return "running";
    case FlightProcess::kStopped: return "stopped";
    case FlightProcess::kGone: return "gone";
    case FlightProcess::kUnknown: break;
  }
  return "unknown";
}

}  // namespace tandem::profile
