// Rows that travel in FP8: the same wherever tokens and experts are, fewer bytes between nodes, and frames that are not
// what they should be refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/fp8_rows.h"
#include "parallel/ucx/incoming.h"
#include "tests/parallel/node_rig.h"
#include "transport/transport.h"

namespace tandem::parallel {
namespace {

using std::chrono::seconds;

const SystemClock kClock;

ExchangeShape shape_of(int32_t num_ranks, ExchangePayload payload, int64_t hidden = 200) {
  ExchangeShape shape;
  shape.num_ranks = num_ranks;
  shape.slots_per_rank = 12 / num_ranks;
  shape.top_k = 3;
  shape.hidden = hidden;
  shape.dtype = device::DType::kF32;
  shape.payload = payload;
  shape.max_tokens = 300;
  shape.max_low_latency_tokens = 40;
  return shape;
}

ExchangeRound round_of(uint64_t number, int32_t rank, const ExchangeShape& shape) {
  std::mt19937_64 random(number * 10 + uint64_t(rank));
  ExchangeRound round;
  round.mode = number % 2 ? ExchangeMode::kLowLatency : ExchangeMode::kNormal;
  round.tag = {number, 0};
  round.seed = number;
  const int64_t most = number % 2 ? shape.max_low_latency_tokens : shape.max_tokens;
  round.num_tokens = number % 5 == 0 ? 0 : 1 + int64_t(random() % uint64_t(most));
  return round;
}

using Exchanges = std::vector<std::unique_ptr<ExpertExchange>>;
using Results = std::vector<std::vector<float>>;  // [rank][of all rounds]

Results run(Exchanges& exchanges, uint64_t rounds) {
  Results all(exchanges.size());
  std::vector<std::jthread> threads;
  for (size_t r = 0; r < exchanges.size(); ++r) {
    threads.emplace_back([&, r] {
      ExchangeRank rank(*exchanges[r], kClock);
      for (uint64_t number = 1; number <= rounds; ++number) {
        const Result<std::vector<float>> results = rank.run(round_of(number, int32_t(r), exchanges[r]->shape()));
        ASSERT_TRUE(results) << results.error().message;
        all[r].insert(all[r].end(), results->begin(), results->end());
      }
    });
  }
  threads.clear();
  return all;
}

struct Nodes {
  std::vector<std::shared_ptr<NodeGroup>> groups;  // outlive the exchanges
  Exchanges exchanges;
};

Nodes meet(int32_t num_nodes, const ExchangeShape& shape) {
  const auto context = transport::Context::create({});
  const uint16_t port = *(*transport::Worker::create(**context))->listen("127.0.0.1", 0);
  std::vector<MeetingOptions> options;
  for (int32_t n = 0; n < num_nodes; ++n) {
    options.push_back(meeting_options(num_nodes, n, shape.num_ranks / num_nodes, port));
  }
  Nodes nodes;
  for (MeetResult& met : meet_all(options, kClock)) {
    EXPECT_TRUE(met) << met.error().message;
    auto ranks = (*met)->exchanges(shape, seconds(30), 0);
    EXPECT_TRUE(ranks) << ranks.error().message;
    for (auto& rank : *ranks) nodes.exchanges.push_back(std::move(rank));
    nodes.groups.push_back(std::move(*met));
  }
  return nodes;
}

TEST(ExchangePayload, Fp8ResultsAreTheSameInOneProcessAndBetweenNodes) {
  const ExchangeShape shape = shape_of(4, ExchangePayload::kFp8);
  Exchanges together = make_local_exchanges(shape, seconds(30), 0);
  Nodes apart = meet(2, shape);
  const Results wanted = run(together, 20);
  EXPECT_EQ(run(apart.exchanges, 20), wanted);
  ASSERT_FALSE(wanted[0].empty());
}

// A rank alone: what it gets back is the quantised row, also where nothing travels.
TEST(ExchangePayload, ExpertsOfTheOwnRankGetTheQuantisedRow) {
  for (const int32_t ranks : {1, 2}) {
    const ExchangeShape shape = shape_of(ranks, ExchangePayload::kFp8);
    Exchanges exchanges = make_local_exchanges(shape, seconds(30), 0);
    std::vector<float> x(size_t(2 * shape.hidden)), wanted(size_t(shape.hidden));
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 37 % 101) - 50) / 7;
    std::vector<std::byte> row(size_t(payload_row_bytes(shape)));
    std::vector<int32_t> slots = {2, 4, 5, 1, 3, 0}, none;
    for (int32_t r = 0; r < ranks; ++r) {
      const bool first = r == 0;
      exchanges[size_t(r)]->post_dispatch(
          0, {}, ExchangeMode::kNormal, {x.data(), device::DType::kF32, {first ? 2 : 0, shape.hidden}},
          {first ? slots.data() : none.data(), device::DType::kI32, {first ? 2 : 0, shape.top_k}});
    }
    const auto received = exchanges[0]->poll_received(0, kClock.now());
    ASSERT_TRUE(received && *received);
    ASSERT_EQ((*received)->rows.dim(0), 2);
    for (int64_t t = 0; t < 2; ++t) {
      kernels::quantise_row(x.data() + t * shape.hidden, shape.hidden, row.data());
      kernels::dequantise_row(row.data(), shape.hidden, wanted.data());
      const float* got = (*received)->rows.as<float>() + t * shape.hidden;
      EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), got)) << t;
      EXPECT_FALSE(std::equal(wanted.begin(), wanted.end(), x.data() + t * shape.hidden)) << "it was rounded";
    }
  }
}

TEST(ExchangePayload, AQuarterOfTheBytesGoesToOtherNodes) {
  constexpr int64_t kHidden = 1024;
  int64_t sent[2] = {};
  for (const ExchangePayload payload : {ExchangePayload::kAsTheyAre, ExchangePayload::kFp8}) {
    Nodes nodes = meet(2, shape_of(2, payload, kHidden));
    run(nodes.exchanges, 6);
    sent[size_t(payload)] = nodes.exchanges[0]->row_bytes_sent();
  }
  EXPECT_GT(sent[0], 100 * kHidden * 4) << "rows were sent";
  EXPECT_LT(double(sent[1]), 0.27 * double(sent[0]));
  Exchanges local = make_local_exchanges(shape_of(2, ExchangePayload::kFp8), seconds(30), 0);
  run(local, 2);
  EXPECT_EQ(local[0]->row_bytes_sent(), 0);
}

// One frame with two rows for rank 1, as its sender writes it.
struct Frame {
  explicit Frame(const ExchangeShape& shape) : shape(shape) {
    header.total = header.count = 2;
    header.round = 1;
    std::vector<float> x(size_t(shape.hidden), 1.5f);
    std::vector<std::byte> row(size_t(payload_row_bytes(shape)));
    kernels::quantise_row(x.data(), shape.hidden, row.data());
    const int32_t slots[] = {shape.slots_per_rank, -1, -1};
    for (int i = 0; i < 2; ++i) {
      body.append(reinterpret_cast<const char*>(slots), sizeof(slots));
      body.append(reinterpret_cast<const char*>(row.data()), row.size());
    }
  }
  std::string refusal() const {
    Incoming incoming(shape, Rank{1});
    const Status taken = incoming.take_rows(header, body, 0);
    EXPECT_EQ(incoming.has_rows(1), taken.has_value());
    return taken ? "" : taken.error().message;
  }
  ExchangeShape shape;
  RowsHeader header;
  std::string body;
};

TEST(ExchangePayload, AFrameOfAnotherSizeIsRefused) {
  const Frame good(shape_of(2, ExchangePayload::kFp8));
  EXPECT_EQ(good.refusal(), "");
  Frame other = good;
  other.body.pop_back();
  EXPECT_EQ(other.refusal(), "439 bytes for 2 rows of 208 and 3 slots (payload fp8)");
  other = good;
  other.body.resize(2 * (3 * 4 + 200 * 4));  // what a sender without the payload sends
  EXPECT_NE(other.refusal().find("1624 bytes for 2 rows"), std::string::npos) << other.refusal();
}

TEST(ExchangePayload, AScaleThatIsNoNumberIsRefusedByItsRowAndColumns) {
  const Frame good(shape_of(2, ExchangePayload::kFp8));
  const size_t row_bytes = good.body.size() / 2;
  for (const float bad : {NAN, INFINITY, 0.0f, -1.0f}) {
    for (const size_t row : {0u, 1u}) {
      for (const size_t group : {0u, 1u}) {
        Frame frame = good;
        const size_t at = row * row_bytes + 3 * sizeof(int32_t) + size_t(kernels::fp8_scales_at(200)) + 4 * group;
        std::memcpy(frame.body.data() + at, &bad, sizeof(bad));
        EXPECT_EQ(frame.refusal(), "the scale of columns [" + std::string(group == 0 ? "0, 128" : "128, 200") +
                                       ") of row " + std::to_string(row) + " is not a finite positive number");
      }
    }
  }
}

}  // namespace
}  // namespace tandem::parallel
