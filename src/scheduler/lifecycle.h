// The life of one request as explicit states, one table of legal edges per kind of server, and one writer. Times of
// entry are kept: queue, transfer and decode times fall out of them. Owner: the engine thread.
//
//   combined   kWaiting -> kPrefilling -> kRunning -> end          kRunning -> kWaiting: retracted, computed again
//   prefill    kBootstrapping -> kWaiting -> kPrefilling -> kInflight -> end
//   decode     kPreparing -> kReserved -> kReceiving -> kArrived -> kRunning -> end   kRunning, kArrived <-> kRetracted
//   end        kFinished, kFailed or kAborted, from every state before it; nothing leaves them
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "base/clock.h"

namespace tandem::scheduler {

enum class RequestState : uint8_t {
  kNew,
  kBootstrapping,  // prefill: decode has not asked yet
  kPreparing,      // decode: waiting for the handshake and for blocks
  kReserved,       // decode: blocks leased for the whole prompt, prefill asked
  kReceiving,      // decode: prefill named its source blocks
  kArrived,        // decode: every layer is here and confirmed; no running slot yet
  kWaiting,        // combined, prefill: waits for a prefill step
  kPrefilling,     // has computed a chunk or is about to
  kInflight,       // prefill: computed; the source is kept for decode
  kRunning,        // one token per decode step
  kRetracted,      // decode: its cache is parked in host memory
  kFinished,
  kFailed,
  kAborted,
  kCount
};
const char* to_string(RequestState state);

struct Edge {
  RequestState from, to;
};
enum class LifeKind : uint8_t { kCombined, kPrefill, kDecode };

namespace edges {
using S = RequestState;
inline constexpr Edge kCombined[] = {
    {S::kNew, S::kWaiting}, {S::kWaiting, S::kPrefilling}, {S::kPrefilling, S::kRunning}, {S::kRunning, S::kWaiting}};
inline constexpr Edge kPrefill[] = {{S::kNew, S::kBootstrapping},
                                    {S::kNew, S::kWaiting},  // fake transfer: nobody has to ask
                                    {S::kBootstrapping, S::kWaiting},
                                    {S::kWaiting, S::kPrefilling},
                                    {S::kPrefilling, S::kInflight}};
inline constexpr Edge kDecode[] = {{S::kNew, S::kPreparing},      {S::kPreparing, S::kReserved},
                                   {S::kPreparing, S::kArrived},  // fake transfer: nothing to receive
                                   {S::kReserved, S::kReceiving}, {S::kReceiving, S::kArrived},
                                   {S::kArrived, S::kRunning},    {S::kArrived, S::kRetracted},
                                   {S::kRunning, S::kRetracted},  {S::kRetracted, S::kRunning}};
}  // namespace edges

constexpr bool is_terminal(RequestState state) {
  return state == RequestState::kFinished || state == RequestState::kFailed || state == RequestState::kAborted;
}

constexpr bool is_legal(LifeKind kind, RequestState from, RequestState to) {
  if (is_terminal(from) || from == RequestState::kCount) return false;
  if (is_terminal(to)) return true;
  std::span<const Edge> table = edges::kCombined;
  if (kind == LifeKind::kPrefill) table = edges::kPrefill;
  if (kind == LifeKind::kDecode) table = edges::kDecode;
  for (const Edge& edge : table) {
    if (edge.from == from && edge.to == to) return true;
  }
  return false;
}
static_assert(!is_legal(LifeKind::kDecode, RequestState::kFinished, RequestState::kRunning), "terminal means terminal");
static_assert(!is_legal(LifeKind::kDecode, RequestState::kPreparing, RequestState::kRunning), "no run before blocks");
static_assert(!is_legal(LifeKind::kPrefill, RequestState::kBootstrapping, RequestState::kPrefilling),
              "nothing is computed before decode has asked");

struct Lifecycle {
  LifeKind kind = LifeKind::kCombined;
  RequestState state = RequestState::kNew;
  std::array<TimePoint, size_t(RequestState::kCount)> entered_at{};  // the last entry; zero: never

  TimePoint when(RequestState s) const { return entered_at[size_t(s)]; }
  bool has_been(RequestState s) const { return when(s) != TimePoint{}; }
};

// The only writer of a state. CHECKs the edge.
inline void advance(Lifecycle& life, RequestState to, TimePoint now) {
  CHECK(is_legal(life.kind, life.state, to));
  life.entered_at[size_t(to)] = now;
  life.state = to;
}

}  // namespace tandem::scheduler
