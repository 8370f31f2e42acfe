#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "text/stream_decoder.h"
#include "text/utf8.h"

namespace tandem::text {
namespace {

using Strings = std::vector<std::string>;

StopMatcher make(Strings stop, Strings regex = {}, bool trim = true) {
  auto matcher = StopMatcher::create(std::move(stop), std::move(regex), trim);
  EXPECT_TRUE(matcher.has_value()) << matcher.error().message;
  return std::move(matcher).value();
}

struct Outcome {
  std::string sent;
  std::optional<std::string> matched;
  bool operator==(const Outcome&) const = default;
};

Outcome feed(StopMatcher matcher, const Strings& pieces) {
  std::string sent;
  for (const std::string& piece : pieces) sent += matcher.append(piece);
  sent += matcher.finish();
  return {sent, matcher.matched()};
}

TEST(StopMatcher, FindsAStopStringAcrossPieceBorders) {
  StopMatcher matcher = make({"END"});
  EXPECT_EQ(matcher.append("say E"), "say ");
  EXPECT_EQ(matcher.append("N"), "");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.append("D and more"), "");
  EXPECT_EQ(matcher.matched(), "END");
  EXPECT_EQ(matcher.append("later"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, SendsWhatWasHeldOnceItCannotBecomeAStop) {
  StopMatcher matcher = make({"END"});
  EXPECT_EQ(matcher.append("EN"), "");
  EXPECT_EQ(matcher.append("ough EN"), "ENough ");
  EXPECT_EQ(matcher.finish(), "EN");
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, KeepsTheStopWhenNotTrimmingAndDropsWhatFollows) {
  StopMatcher matcher = make({"END"}, {}, false);
  EXPECT_EQ(matcher.append("the END of it"), "the END");
  EXPECT_EQ(matcher.matched(), "END");
}

TEST(StopMatcher, PassesEverythingWithoutStops) {
  StopMatcher matcher = make({});
  EXPECT_EQ(matcher.append("abc"), "abc");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, RefusesPatternsThatCannotWorkByName) {
  auto message = [](Strings stop, Strings regex) {
    auto matcher = StopMatcher::create(std::move(stop), std::move(regex), true);
    return matcher ? "" : matcher.error().message;
  };
  EXPECT_NE(message({""}, {}).find("empty"), std::string::npos);
  EXPECT_NE(message({"\xFF"}, {}).find("UTF-8"), std::string::npos);
  EXPECT_NE(message({std::string(5000, 'x')}, {}).find("5000 bytes"), std::string::npos);
  EXPECT_NE(message({}, {""}).find("empty"), std::string::npos);
  EXPECT_NE(message({}, {"a(b"}).find("'a(b'"), std::string::npos);
  EXPECT_NE(message({}, {"x*"}).find("'x*'"), std::string::npos);
  EXPECT_NE(message({}, {std::string(5000, 'x')}).find("5000 bytes"), std::string::npos);
  EXPECT_NE(message({}, {R"(\C)"}).find("stop_regex"), std::string::npos);
}

// The definition, written down plainly: the first end of any stop, then the longest of those.
Outcome expected_for_strings(const std::string& text, const Strings& stops, bool trim) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* best = nullptr;
    for (const std::string& stop : stops) {
      bool ends = std::string_view(text).substr(0, end).ends_with(stop);
      if (ends && (!best || stop.size() > best->size())) best = &stop;
    }
    if (best) return {text.substr(0, trim ? end - best->size() : end), *best};
  }
  return {text, std::nullopt};
}

TEST(StopMatcher, StringsFollowTheirDefinitionInEveryCut) {
  std::mt19937 random(7);
  auto word = [&](size_t max) {
    std::string text;
    // Three letters, one of them of two bytes: many near misses.
    for (size_t n = 1 + random() % max; n > 0; --n) text += (const char*[]){"a", "b", "é"}[random() % 3];
    return text;
  };
  for (int round = 0; round < 4000; ++round) {
    Strings stops;
    for (size_t n = 1 + random() % 3; n > 0; --n) stops.push_back(word(5));
    std::string text;
    Strings pieces;
    for (size_t n = random() % 8; n > 0; --n) text += pieces.emplace_back(word(4));
    bool trim = random() % 2;
    EXPECT_EQ(feed(make(stops, {}, trim), pieces), expected_for_strings(text, stops, trim)) << "round " << round;
  }
}

TEST(StopMatcher, FindsAnExpressionAcrossPieceBorders) {
  StopMatcher matcher = make({}, {R"(\d{3}-\d{2})"});
  EXPECT_EQ(matcher.append("call 12"), "call ");
  EXPECT_EQ(matcher.append("3"), "");
  EXPECT_EQ(matcher.append("4-"), "1");  // the match can only begin at "234-" now
  EXPECT_EQ(matcher.append("56 now"), "");
  EXPECT_EQ(matcher.matched(), R"(\d{3}-\d{2})");
}

TEST(StopMatcher, ExpressionsLookBackAtWhatWasSent) {
  StopMatcher matcher = make({}, {R"((?<=one )two)"});
  EXPECT_EQ(matcher.append("two one "), "two one ");
  EXPECT_EQ(matcher.append("two"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(feed(make({}, {"^two"}), {"one ", "two"}), (Outcome{"one two", std::nullopt}));
}

TEST(StopMatcher, AnOpenEndedExpressionStopsAtOnce) {
  StopMatcher matcher = make({}, {R"(###.*)"});
  EXPECT_EQ(matcher.append("a ###"), "a ");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcher, WhatBeginsFirstCounts) {
  EXPECT_EQ(feed(make({"bc"}, {"abc"}), {"xabc"}), (Outcome{"x", "abc"}));
  EXPECT_EQ(feed(make({"abc"}, {"bc"}), {"xabc"}), (Outcome{"x", "abc"}));
}

// After every append the text sent is a prefix of the text before a match; the match is the one that a plain search in
// the text so far would report first.
TEST(StopMatcher, ExpressionsNeverSendWhatIsTrimmedLater) {
  std::mt19937 random(11);
  const Strings patterns = {"ab+c", "a(?=b)", "(a|bb)c", "b[ac]{2}b", R"(\bé+\b)", "c(?!a)"};
  for (int round = 0; round < 3000; ++round) {
    const std::string& pattern = patterns[random() % patterns.size()];
    StopMatcher streamed = make({}, {pattern});
    std::string text, sent;
    for (size_t n = 1 + random() % 8; n > 0 && !streamed.matched(); --n) {
      std::string piece = (const char*[]){"a", "b", "c", "é", "ab", "bb", "ca", " "}[random() % 8];
      text += piece;
      sent += streamed.append(piece);
      StopMatcher fresh = make({}, {pattern});
      std::string whole = fresh.append(text);
      ASSERT_EQ(streamed.matched(), fresh.matched()) << pattern << " in '" << text << "', round " << round;
      ASSERT_EQ(sent, whole) << pattern << " in '" << text << "', round " << round;
    }
  }
}

TEST(StopMatcher, HostileExpressionsEnd) {
  const Strings hostile = {"(a+)+$x", "(a|aa)+y", "(a*)*b\\d", "(.*)*z", "((a{1,9}){1,9}){1,9}q", "(?=(a+)+c)a"};
  for (const std::string& pattern : hostile) {
    auto matcher = StopMatcher::create({}, {pattern}, true);
    if (!matcher) continue;  // refused is as good
    auto begin = std::chrono::steady_clock::now();
    size_t sent = 0;
    for (int i = 0; i < 2000; ++i) sent += matcher->append("aaaa").size();
    sent += matcher->finish().size();
    EXPECT_EQ(sent, 8000u) << pattern;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20)) << pattern;
  }
}

TEST(StopMatcher, HoldsABoundedLengthForAnExpressionThatStaysOpen) {
  StopMatcher matcher = make({}, {R"(\{[^}]*\})"});
  std::string sent = matcher.append("{");
  for (int i = 0; i < 1000; ++i) sent += matcher.append("0123456789");
  EXPECT_GE(sent.size(), 10001 - StopMatcher::kMaxHeldBytes);
  EXPECT_EQ((sent += matcher.append("}")).size() + matcher.finish().size(), 10002u);
  EXPECT_FALSE(matcher.matched());
}

TEST(StopMatcher, ALongGenerationIsLinear) {
  StopMatcher matcher = make({"stop here", std::string(1000, 'a') + "b"}, {R"(\n\n\n+)"});
  size_t sent = 0;
  for (int i = 0; i < 200000; ++i) sent += matcher.append("aaaaa").size();
  EXPECT_EQ(sent + matcher.finish().size(), 1000000u);
}

}  // namespace
}  // namespace tandem::text
