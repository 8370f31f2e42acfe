// Input: a server's log. However it is cut into pieces, the same is read.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "loadgen/throughput/log_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::loadgen;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  LogReader whole("fuzz", {}), halves("fuzz", {});
  whole.feed(text);
  halves.feed(text.substr(0, size / 2));
  halves.feed(text.substr(size / 2));
  const LogSummary one = whole.finish(), two = halves.finish();
  CHECK(one.lines == two.lines);
  CHECK(one.garbled == two.garbled);
  CHECK(one.ranks.size() == two.ranks.size());
  CHECK(one.first_garbled.find('\n') == std::string::npos);
  for (const ServingPhase phase : {ServingPhase::kDecode, ServingPhase::kPrefill}) {
    PhaseMeasure measure;
    measure.phase = phase;
    add_log(one, {"7.5-TP-0.trace.json.gz"}, kSteadyShare, measure);
    for (const RankThroughput& rank : measure.ranks) {
      CHECK(!rank.tokens_per_s || *rank.tokens_per_s >= 0);
      CHECK(!rank.tokens_per_step || *rank.tokens_per_step >= 0);
    }
    judge(measure, 1, 0.1);
  }
  return 0;
}
