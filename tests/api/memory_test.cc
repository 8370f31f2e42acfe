// Peak memory of a large body: a program of its own, because the peak of a process never falls.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "api/native.h"

namespace tandem::api {
namespace {

size_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) << 10;
}

// 1,500 prompts of 4,000 ids with few digits: the most ids, and so the most memory, that bytes can ask for.
TEST(LargeBody, PeakMemoryIsBelowThreeTimesTheBody) {
  std::string body;
  body.reserve(48 << 20);
  body += R"({"input_ids":[)";
  for (int i = 0; i < 1500; ++i) {
    body += i ? ",[" : "[";
    for (int k = 0; k < 4000; ++k) {
      if (k) body += ", ";
      body += std::to_string((i + k) % 10000);
    }
    body += "]";
  }
  body += "]}";
  size_t before = peak_bytes();
  auto call = parse_generate(body);
  ASSERT_TRUE(call.has_value());
  EXPECT_EQ(call->items.size(), 1500u);
  size_t grown = peak_bytes() - before;
  EXPECT_LT(grown, 2 * body.size()) << "beside the body itself; body " << body.size();
  EXPECT_GT(grown, body.size() / 4) << "the measure is blind";
}

}  // namespace
}  // namespace tandem::api
