#include "net/sse.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tandem::net {
namespace {

using Events = std::vector<std::string>;

Events parse(std::string_view bytes, size_t piece) {
  SseParser parser;
  Events events;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    EXPECT_TRUE(parser.feed(bytes.substr(at, piece), [&](std::string_view data) { events.emplace_back(data); }));
  }
  return events;
}

// Cases of the WHATWG specification (9.2.6) and what SGLang's and OpenAI's servers send.
TEST(SseParser, GivesTheSameEventsForEveryCutOfTheBytes) {
  const std::string bytes =
      ": a comment\n\ndata: {\"text\": \"a\"}\n\ndata: YHOO\ndata: +2\ndata: 10\n\ndata\n\ndata\ndata\n\ndata:\n\n"
      "event: x\nid: 7\nretry: 5\ndata:no space\r\n\r\ndata:  two spaces\n\ndatabase: no\n\ndata: [DONE]\n\ndata: cut";
  const Events expected = {"{\"text\": \"a\"}", "YHOO\n+2\n10", "", "\n", "", "no space", " two spaces", "[DONE]"};
  for (size_t piece = 1; piece <= bytes.size(); ++piece) EXPECT_EQ(parse(bytes, piece), expected) << piece;
}

TEST(SseParser, ReadsWhatSseEventWrites) {
  EXPECT_EQ(sse_event("{\"a\":1}"), "data: {\"a\":1}\n\n");
  EXPECT_EQ(parse(sse_event("a") + sse_event("") + sse_event("b"), 3), (Events{"a", "", "b"}));
}

TEST(SseParser, RefusesAnEventBeyondItsLimitAndStaysRefusing) {
  SseParser parser(100);
  int events = 0;
  auto count = [&](std::string_view) { ++events; };
  EXPECT_TRUE(parser.feed("data: " + std::string(90, 'x') + "\n\n", count));
  EXPECT_TRUE(parser.feed("data: " + std::string(50, 'x'), count));
  EXPECT_FALSE(parser.feed(std::string(50, 'x'), count));
  EXPECT_FALSE(parser.feed("\n\ndata: y\n\n", count));
  EXPECT_EQ(events, 1);
}

TEST(SseParser, CountsManyLinesOfOneEventTowardsItsLimit) {
  SseParser parser(100);
  bool fine = true;
  for (int i = 0; i < 20 && fine; ++i) fine = parser.feed("data: 0123456789\n", [](std::string_view) {});
  EXPECT_FALSE(fine);
}

}  // namespace
}  // namespace tandem::net
