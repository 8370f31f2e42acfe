// Greeting: one connection's beginning, as a state machine without sockets. The caller knocks; a listener without a
// secret welcomes it at once, one with a secret wants a proof first and gives its own. See docs/protocol.md.
//
//   caller:   begin() -> knock --challenge--> answer --welcome--> kOpen
//   listener: knock --no secret--> welcome, kOpen;  knock --secret--> challenge --answer--> welcome, kOpen
//   Anything else, on either side: kRefused, with a reason.
// Thread: its worker's.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "transport/greeting/proof.h"
#include "transport/transport.h"

namespace tandem::transport {

class Greeting {
 public:
  enum class State : uint8_t { kGoesOn, kOpen, kRefused };

  Greeting(Side side, const Credentials& own, const Nonce& nonce) : side_(side), own_(own), nonce_(nonce) {}

  // The caller's knock.
  std::string begin() const;
  // Takes a frame of the other side. Returns what to send back; empty: nothing.
  std::string take(std::string_view bytes);

  State state() const { return state_; }
  const std::string& reason() const { return reason_; }  // of kRefused
  uint64_t peer_epoch() const { return peer_epoch_; }    // of kOpen; proved, where there is a secret

 private:
  std::string on(const Knock& knock);
  std::string on(const Challenge& challenge);
  std::string on(const Answer& answer);
  std::string on(const Welcome& welcome);
  std::string on(const Refusal& refusal);
  std::string refuse(std::string reason);
  std::string open(std::string last);
  Proof proof_of(Side by) const { return prove(own_.secret, by, input_); }

  const Side side_;
  const Credentials& own_;  // the context's
  const Nonce nonce_;
  State state_ = State::kGoesOn;
  bool challenged_ = false;  // the challenge was sent (listener) or came (caller)
  ProofInput input_;
  uint64_t peer_epoch_ = 0;
  std::string reason_;
};

}  // namespace tandem::transport
