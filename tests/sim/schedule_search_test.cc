// Admission cannot deadlock: every schedule of a small case is tried. A prefill and a decode engine, three requests, a
// cache that holds not even two of them; the clock moves only when nothing else does, and never as far as a deadline,
// so none can save a request. The scheduler of the search chooses who acts next: an engine takes a turn, a transfer
// side carries on, a request or a cancel arrives. All schedules with at most a given number of departures from taking
// turns are run, each from the start; what leads to a state that was seen already is cut off.
#include <gtest/gtest.h>

#include <cstdio>
#include <unordered_map>

#include "base/log.h"
#include "tests/engine/pair_rig.h"

namespace tandem::testing {
namespace {

enum Action : int { kPrefillTurn, kDecodeTurn, kPrefillPump, kDecodePump, kPrefillInput, kDecodeInput, kNumActions };
bool is_of_prefill(int action) { return action % 2 == 0; }
bool is_pump(int action) { return action == kPrefillPump || action == kDecodePump; }

// Engines look at some things again after a while.
constexpr Duration kLook = std::chrono::milliseconds(50), kLongestWait = std::chrono::seconds(2);

struct Case {
  int32_t decode_blocks = 5, prefill_blocks = 6, reserved_tokens = 4;
  int cancelled = -1;  // which request is cancelled on both sides, after its arrival; -1: none
  bool radix_cache = true;
};

constexpr int kRequests = 3;
constexpr int32_t kPrompt[kRequests] = {8, 5, 9}, kOutput[kRequests] = {6, 3, 5};

// One run, and what happened where in it: two runs that look the same to both engines and to the fabric between them
// are in the same state, in whatever order the three saw it.
class Run {
 public:
  explicit Run(const Case& c) : case_(c), pair_(options(c)) {
    for (uint64_t id = 1; id <= kRequests; ++id) {
      const int32_t length = kPrompt[id - 1];
      requests_.push_back(Pair::with_room(greedy_request(id, prompt_of(id, length, Rig::kVocab), kOutput[id - 1]), id));
    }
  }

  // Something may come of it: nothing has changed since it last did nothing.
  bool is_enabled(int action) const {
    if (action == kPrefillInput || action == kDecodeInput) return next_input(action) < num_inputs();
    return !idle_[action];
  }

  void act(int action) {
    bool changed = true;
    switch (action) {
      case kPrefillTurn: changed = pair_.prefill->rig.turn_engines(); break;
      case kDecodeTurn: changed = pair_.decode->rig.turn_engines(); break;
      case kPrefillPump: changed = pair_.prefill->hand->pump(pair_.clock.now()); break;
      case kDecodePump: changed = pair_.decode->hand->pump(pair_.clock.now()); break;
      default: give_input(action);
    }
    idle_[action] = !changed;
    if (!changed) return;
    for (int other = 0; other < kNumActions; ++other) {
      if (other != action) idle_[other] = false;
    }
    waited_ = {};
    note(is_of_prefill(action) ? seen_by_prefill_ : seen_by_decode_, action);
    if (is_pump(action)) note(seen_by_fabric_, action);
  }

  uint64_t state() const {
    uint64_t all = 1;
    for (const uint64_t seen : {seen_by_prefill_, seen_by_decode_, seen_by_fabric_}) note(all, seen);
    for (const bool idle : idle_) note(all, idle ? 2 : 3);
    note(all, uint64_t(pair_.clock.now().time_since_epoch().count()));
    return all;
  }

  // Nothing moves by itself. False: nor will it with time.
  bool wait() {
    if (waited_ >= kLongestWait) return false;
    waited_ += kLook;
    pair_.clock.advance(kLook);
    for (bool& idle : idle_) idle = false;
    return true;
  }

  // At the end, when nothing moves any more.
  void check() {
    for (int i = 0; i < kRequests; ++i) {
      const Answer& answer = pair_.decode->rig.answers[uint64_t(i) + 1];
      ASSERT_TRUE(answer.finish.has_value()) << "request " << i + 1 << " waits forever";
      if (i == case_.cancelled && answer.finish->kind == api::FinishKind::kAbort) continue;
      EXPECT_EQ(answer.tokens, expected_tokens(requests_[size_t(i)].input_ids, kOutput[i], Rig::kVocab));
    }
    pair_.expect_baseline();
  }

 private:
  static PairOptions options(const Case& c) {
    PairOptions options;
    options.decode.max_total_tokens = c.decode_blocks * options.decode.block_tokens;
    options.decode.num_reserved_decode_tokens = c.reserved_tokens;
    options.decode.max_running_requests = 2;
    options.prefill.max_total_tokens = c.prefill_blocks * options.prefill.block_tokens;
    options.prefill.chunked_prefill_size = 4;
    options.prefill.max_prefill_tokens = 8;
    options.prefill.radix_cache = c.radix_cache;
    for (engine::EngineConfig* config : {&options.prefill, &options.decode}) config->context_length = 16;
    return options;
  }
  int num_inputs() const { return kRequests + (case_.cancelled >= 0 ? 1 : 0); }
  int next_input(int action) const { return inputs_[action == kPrefillInput ? 0 : 1]; }

  // Requests arrive in order on either side, the cancel after them.
  void give_input(int action) {
    Rig& rig = action == kPrefillInput ? pair_.prefill->rig : pair_.decode->rig;
    const int input = inputs_[action == kPrefillInput ? 0 : 1]++;
    if (input < kRequests) return rig.submit(requests_[size_t(input)]);
    rig.cancel(uint64_t(case_.cancelled) + 1);
  }
  static void note(uint64_t& hash, uint64_t what) {
    hash = (hash ^ (what + 1)) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  }

  const Case case_;
  Pair pair_;
  std::vector<api::EngineRequest> requests_;
  int inputs_[2] = {0, 0};
  bool idle_[kNumActions] = {};
  Duration waited_{};
  uint64_t seen_by_prefill_ = 1, seen_by_decode_ = 2, seen_by_fabric_ = 3;
};

struct Departure {
  int step = 0, action = 0;
};

class Search {
 public:
  Search(const Case& c, int max_departures) : case_(c), max_departures_(max_departures) {}

  void run() {
    std::vector<std::vector<Departure>> left = {{}};
    while (!left.empty() && !::testing::Test::HasFailure()) {
      const std::vector<Departure> departures = std::move(left.back());
      left.pop_back();
      follow(departures, left);
    }
  }
  int64_t num_runs = 0, num_ended = 0, longest = 0;

 private:
  // Runs on from the departures by taking turns, and leaves every further departure for later.
  void follow(const std::vector<Departure>& departures, std::vector<std::vector<Departure>>& left) {
    ++num_runs;
    Run run(case_);
    const int budget = max_departures_ - int(departures.size());
    size_t next = 0;
    for (int step = 0, last = kNumActions - 1; step < 5000; ++step) {
      int chosen = -1;
      for (int i = 1; i <= kNumActions && chosen < 0; ++i) {
        if (run.is_enabled((last + i) % kNumActions)) chosen = (last + i) % kNumActions;
      }
      if (chosen < 0 && run.wait()) continue;
      if (chosen < 0) {
        ++num_ended;
        longest = std::max<int64_t>(longest, step);
        SCOPED_TRACE(describe(departures));
        return run.check();
      }
      if (next < departures.size()) {
        if (departures[next].step == step) chosen = departures[next++].action;
      } else {
        if (was_seen(run.state(), budget)) return;
        for (int action = 0; action < kNumActions && budget > 0; ++action) {
          if (action == chosen || !run.is_enabled(action)) continue;
          left.push_back(departures);
          left.back().push_back({step, action});
        }
      }
      run.act(chosen);
      last = chosen;
    }
    ADD_FAILURE() << "never ends: " << describe(departures);
  }
  // With at least as many departures left.
  bool was_seen(uint64_t state, int budget) {
    int& most = seen_.try_emplace(state, -1).first->second;
    if (most >= budget) return true;
    most = budget;
    return false;
  }
  static std::string describe(const std::vector<Departure>& departures) {
    std::string text = "departures";
    for (const Departure& d : departures) text += " " + std::to_string(d.step) + ":" + std::to_string(d.action);
    return text;
  }

  const Case case_;
  const int max_departures_;
  std::unordered_map<uint64_t, int> seen_;
};

// The long suite allows one departure more: tens of thousands of schedules for each case.
const int kMoreDepartures = std::string(TANDEM_LONG_SEARCH) == "yes" ? 1 : 0;

class ScheduleSearch : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { log::configure(log::Level::kError, false); }
  static void search(const Case& c, int max_departures) {
    SCOPED_TRACE("decode blocks " + std::to_string(c.decode_blocks) + ", prefill blocks " +
                 std::to_string(c.prefill_blocks) + ", reserved " + std::to_string(c.reserved_tokens) + ", cancelled " +
                 std::to_string(c.cancelled));
    Search search(c, max_departures + kMoreDepartures);
    search.run();
    std::printf("%ld schedules, %ld to their end, the longest of %ld actions\n", long(search.num_runs),
                long(search.num_ended), long(search.longest));
    EXPECT_GT(search.num_ended, 20);
  }
};

TEST_F(ScheduleSearch, EveryScheduleServesEveryRequest) {
  for (const int32_t blocks : {4, 5, 7}) search({.decode_blocks = blocks}, 1);
}

TEST_F(ScheduleSearch, WhicheverRequestIsCancelledTheOthersAreServed) {
  for (const int cancelled : {0, 1, 2}) search({.decode_blocks = 4, .cancelled = cancelled}, 1);
}

}  // namespace
}  // namespace tandem::testing
