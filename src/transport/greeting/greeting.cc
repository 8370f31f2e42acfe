#include "transport/greeting/greeting.h"

#include <utility>

namespace tandem::transport {

std::string Greeting::begin() const { return encode_greeting(Knock{own_.epoch, !own_.secret.empty(), nonce_}); }

std::string Greeting::take(std::string_view bytes) {
  if (state_ != State::kGoesOn) return refuse("a greeting behind the greeting");
  const Result<GreetingFrame> frame = decode_greeting(bytes);
  if (!frame) return refuse(frame.error().message);
  return std::visit([this](const auto& one) { return on(one); }, *frame);
}

std::string Greeting::on(const Knock& knock) {
  if (side_ != Side::kListener || challenged_) return refuse("a greeting out of order");
  if (knock.has_secret && own_.secret.empty()) return refuse("it has a deployment secret, and none is set here");
  if (!knock.has_secret && !own_.secret.empty()) return refuse("it has no deployment secret");
  peer_epoch_ = knock.epoch;
  if (own_.secret.empty()) return open(encode_greeting(Welcome{own_.epoch, false, {}}));
  challenged_ = true;
  input_ = {knock.epoch, own_.epoch, knock.nonce, nonce_};
  return encode_greeting(Challenge{own_.epoch, nonce_});
}

std::string Greeting::on(const Challenge& challenge) {
  if (side_ != Side::kCaller || challenged_ || own_.secret.empty()) return refuse("a greeting out of order");
  challenged_ = true;
  input_ = {own_.epoch, challenge.epoch, nonce_, challenge.nonce};
  peer_epoch_ = challenge.epoch;
  return encode_greeting(Answer{proof_of(Side::kCaller)});
}

std::string Greeting::on(const Answer& answer) {
  if (side_ != Side::kListener || !challenged_) return refuse("a greeting out of order");
  if (!same_proof(answer.proof, proof_of(Side::kCaller))) return refuse("its deployment secret differs");
  return open(encode_greeting(Welcome{own_.epoch, true, proof_of(Side::kListener)}));
}

std::string Greeting::on(const Welcome& welcome) {
  if (side_ != Side::kCaller) return refuse("a greeting out of order");
  if (own_.secret.empty()) {
    peer_epoch_ = welcome.epoch;
    return open("");
  }
  const bool is_proved = challenged_ && welcome.has_proof && welcome.epoch == peer_epoch_ &&
                         same_proof(welcome.proof, proof_of(Side::kListener));
  return is_proved ? open("") : refuse("it did not prove the deployment secret");
}

std::string Greeting::on(const Refusal& refusal) {
  state_ = State::kRefused;
  reason_ = "refused by the other side, which says of this one: " + refusal.reason;
  return "";
}

std::string Greeting::refuse(std::string reason) {
  state_ = State::kRefused;
  reason_ = std::move(reason);
  return encode_greeting(Refusal{reason_});
}

std::string Greeting::open(std::string last) {
  state_ = State::kOpen;
  return last;
}

}  // namespace tandem::transport
