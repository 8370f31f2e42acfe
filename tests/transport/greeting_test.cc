// The first words of a connection: who may come in, and what is said to those who may not.
#include "transport/greeting/greeting.h"

#include <gtest/gtest.h>

#include <random>

namespace tandem::transport {
namespace {

constexpr Nonce kCallerNonce{1, 2, 3}, kListenerNonce{4, 5, 6};
const Credentials kOpen{.epoch = 7}, kSecret{"a secret of the deployment", 8}, kOther{"another secret of its own", 9};

// Carries frames both ways until nobody answers.
struct Pair {
  Pair(const Credentials& one, const Credentials& other)
      : caller(Side::kCaller, one, kCallerNonce), listener(Side::kListener, other, kListenerNonce) {
    std::string frame = caller.begin();
    for (Greeting* to = &listener; !frame.empty(); to = to == &listener ? &caller : &listener) {
      sent.push_back(frame);
      frame = to->take(frame);
    }
  }
  Greeting caller, listener;
  std::vector<std::string> sent;
};

TEST(Greeting, WithoutASecretTwoFramesOpenTheConnection) {
  const Pair pair(kOpen, kOpen);
  EXPECT_EQ(pair.caller.state(), Greeting::State::kOpen);
  EXPECT_EQ(pair.listener.state(), Greeting::State::kOpen);
  EXPECT_EQ(pair.listener.peer_epoch(), 7u);
  EXPECT_EQ(pair.sent.size(), 2u);
}

TEST(Greeting, TheSameSecretOpensAndEachLearnsTheOthersEpoch) {
  const Credentials later{kSecret.secret, 80};
  const Pair pair(kSecret, later);
  EXPECT_EQ(pair.caller.state(), Greeting::State::kOpen);
  EXPECT_EQ(pair.listener.state(), Greeting::State::kOpen);
  EXPECT_EQ(pair.caller.peer_epoch(), 80u);
  EXPECT_EQ(pair.listener.peer_epoch(), 8u);
  for (const std::string& frame : pair.sent) EXPECT_EQ(frame.find(kSecret.secret), std::string::npos);
}

TEST(Greeting, WhoeverHasAnotherOrNoSecretIsToldSoOnBothSides) {
  struct Case {
    Credentials caller, listener;
    std::string word;
  };
  for (const Case& c : {Case{kOther, kSecret, "its deployment secret differs"},
                        {kOpen, kSecret, "it has no deployment secret"},
                        {kSecret, kOpen, "it has a deployment secret, and none is set here"}}) {
    const Pair pair(c.caller, c.listener);
    EXPECT_EQ(pair.caller.state(), Greeting::State::kRefused);
    EXPECT_EQ(pair.listener.state(), Greeting::State::kRefused);
    EXPECT_EQ(pair.listener.reason(), c.word);
    EXPECT_EQ(pair.caller.reason(), "refused by the other side, which says of this one: " + c.word);
  }
}

TEST(Greeting, AListenerThatDoesNotProveTheSecretIsLeft) {
  Greeting tricked(Side::kCaller, kSecret, kCallerNonce);
  tricked.take(encode_greeting(Welcome{1, false, {}}));
  EXPECT_EQ(tricked.reason(), "it did not prove the deployment secret");
  Greeting guessed(Side::kCaller, kSecret, kCallerNonce);
  guessed.take(encode_greeting(Challenge{1, kListenerNonce}));
  guessed.take(encode_greeting(Welcome{1, true, Proof{1}}));
  EXPECT_EQ(guessed.state(), Greeting::State::kRefused);
}

TEST(Greeting, AProofIsGoodForOneSideOneConnectionAndOneLife) {
  const ProofInput input{1, 2, kCallerNonce, kListenerNonce};
  const Proof proof = prove("secret", Side::kCaller, input);
  EXPECT_TRUE(same_proof(proof, prove("secret", Side::kCaller, input)));
  EXPECT_FALSE(same_proof(proof, prove("secret2", Side::kCaller, input)));
  EXPECT_FALSE(same_proof(proof, prove("secret", Side::kListener, input))) << "it cannot be sent back";
  for (const auto& change : std::initializer_list<void (*)(ProofInput&)>{
           [](ProofInput& i) { i.caller_epoch = 9; }, [](ProofInput& i) { i.listener_epoch = 9; },
           [](ProofInput& i) { i.caller_nonce[31] ^= 1; }, [](ProofInput& i) { i.listener_nonce[31] ^= 1; }}) {
    ProofInput other = input;
    change(other);
    EXPECT_FALSE(same_proof(proof, prove("secret", Side::kCaller, other)));
  }
}

TEST(Greeting, NoncesAreDrawnAfresh) { EXPECT_NE(*draw_nonce(), *draw_nonce()); }

TEST(Greeting, FramesOutOfOrderOrOfTheWrongSideAreRefused) {
  const std::vector<GreetingFrame> frames = {Challenge{}, Answer{}, Welcome{}};
  for (const GreetingFrame& frame : frames) {
    Greeting listener(Side::kListener, kSecret, kListenerNonce);
    listener.take(encode_greeting(frame));
    EXPECT_EQ(listener.state(), Greeting::State::kRefused);
  }
  for (const GreetingFrame& frame : {GreetingFrame(Knock{}), GreetingFrame(Answer{})}) {
    Greeting caller(Side::kCaller, kSecret, kCallerNonce);
    caller.take(encode_greeting(frame));
    EXPECT_EQ(caller.state(), Greeting::State::kRefused);
  }
  Greeting twice(Side::kListener, kSecret, kListenerNonce);
  const std::string knock = Greeting(Side::kCaller, kSecret, kCallerNonce).begin();
  twice.take(knock);
  twice.take(knock);
  EXPECT_EQ(twice.state(), Greeting::State::kRefused) << "a second challenge would be a second guess";
}

TEST(Greeting, AnotherVersionIsNamed) {
  std::string knock = Greeting(Side::kCaller, kOpen, kCallerNonce).begin();
  knock[4] = 9;
  Greeting listener(Side::kListener, kOpen, kListenerNonce);
  listener.take(knock);
  EXPECT_EQ(listener.reason(), "greeting version 1 wanted, 9 came");
}

TEST(Greeting, DamagedFramesOpenNothing) {
  std::mt19937_64 random(5);
  const Pair good(kSecret, kSecret);
  for (int i = 0; i < 20000; ++i) {
    Greeting listener(Side::kListener, kSecret, kListenerNonce);
    std::string knock = good.sent[0], answer = good.sent[2];
    std::string& damaged = i % 2 == 0 ? knock : answer;
    damaged[random() % damaged.size()] ^= char(1 << random() % 8);
    listener.take(knock);
    if (listener.state() == Greeting::State::kGoesOn) listener.take(answer);
    EXPECT_NE(listener.state(), Greeting::State::kOpen);
  }
}

}  // namespace
}  // namespace tandem::transport
