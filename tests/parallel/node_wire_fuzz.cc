// What another node sends, at the place where it is first looked at: the link's stream and records, greetings, votes,
// rows and results. A value or an error, never a crash or a write out of bounds.
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "parallel/ucx/incoming.h"
#include "parallel/ucx/wire.h"

namespace tandem::parallel {
namespace {

void stream(std::string_view bytes) {
  RecordStream records;
  for (size_t at = 0; at < bytes.size(); at += 7) {
    records.feed(bytes.substr(at, 7));
    for (;;) {
      const Result<std::optional<std::string>> record = records.next();
      if (!record) return;
      if (!record->has_value()) break;
      static_cast<void>(decode_record(**record));
    }
  }
}

void rank_message(std::string_view bytes, ExchangePayload payload) {
  ExchangeShape shape;
  shape.num_ranks = 2;
  shape.slots_per_rank = 3;
  shape.top_k = 2;
  shape.hidden = 4;
  shape.dtype = payload == ExchangePayload::kFp8 ? device::DType::kF32 : device::DType::kBF16;
  shape.payload = payload;
  shape.max_tokens = 5;
  shape.max_low_latency_tokens = 2;
  Incoming incoming(shape, Rank{1});
  std::vector<float> results(size_t(6 * shape.hidden));
  incoming.expect_results(1, results.data(), 6);
  std::string_view body;
  if (const auto rows = decode_rows(bytes, body)) {
    const Status taken = incoming.take_rows(*rows, body, 0);
    CHECK(!taken || int64_t(rows->total) <= shape.max_tokens);
  }
  if (const auto header = decode_results(bytes, body)) static_cast<void>(incoming.take_results(*header, body));
  static_cast<void>(decode_rank_hello(bytes));
  static_cast<void>(decode_votes(bytes, 2));
}

}  // namespace
}  // namespace tandem::parallel

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  tandem::parallel::stream(bytes);
  if (bytes.empty()) return 0;
  tandem::parallel::rank_message(bytes, tandem::parallel::ExchangePayload::kAsTheyAre);
  tandem::parallel::rank_message(bytes, tandem::parallel::ExchangePayload::kFp8);
  return 0;
}
