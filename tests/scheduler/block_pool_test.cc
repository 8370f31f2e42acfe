#include "scheduler/block_pool.h"

#include <gtest/gtest.h>

#include <random>

#include "scheduler/lifecycle.h"

namespace tandem::scheduler {
namespace {

TEST(BlockPool, LeaseBeyondCapacityReturnsExhaustedAndChangesNothing) {
  BlockPool pool(4);
  BlockLease lease = *pool.lease(3);
  const Result<BlockLease> more = pool.lease(2);
  ASSERT_FALSE(more.has_value());
  EXPECT_EQ(more.error().code, ErrorCode::kExhausted);
  EXPECT_EQ(pool.extend(lease, 2).error().code, ErrorCode::kExhausted);
  EXPECT_EQ(pool.counts(), (PoolCounts{1, 3, 0, 4}));
}

TEST(BlockPool, FreshPoolHandsOutAscendingRuns) {
  BlockPool pool(8);
  BlockLease lease = *pool.lease(4);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(lease.blocks()[size_t(i)].value, i);
  lease = {};
  lease = *pool.lease(4);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(lease.blocks()[size_t(i)].value, i);
}

TEST(BlockPool, GenerationOfAReturnedLeaseIsNeverValidAgain) {
  BlockPool pool(1);
  BlockLease lease = *pool.lease(1);
  const BlockId block = lease.blocks()[0];
  const uint64_t old = lease.generation();
  EXPECT_TRUE(pool.is_leased(block, old));
  lease = {};
  EXPECT_FALSE(pool.is_leased(block, old));
  lease = *pool.lease(1);
  EXPECT_FALSE(pool.is_leased(block, old));
  EXPECT_TRUE(pool.is_leased(block, lease.generation()));
  EXPECT_FALSE(pool.is_leased(BlockId{7}, old));
}

TEST(BlockPool, CountsAddUpOverRandomUse) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::mt19937_64 random(seed);
    BlockPool pool(50);
    std::vector<BlockLease> leases;
    std::vector<BlockId> cached;
    for (int i = 0; i < 500; ++i) {
      switch (random() % 5) {
        case 0:
          if (auto lease = pool.lease(int32_t(random() % 9))) leases.push_back(std::move(*lease));
          break;
        case 1:
          if (!leases.empty()) leases.erase(leases.begin() + int64_t(random() % leases.size()));
          break;
        case 2:
          if (!leases.empty()) (void)pool.extend(leases[random() % leases.size()], int32_t(random() % 3));
          break;
        case 3:
          if (!leases.empty()) {
            BlockLease& lease = leases[random() % leases.size()];
            const auto first = int32_t(random() % uint64_t(lease.num_blocks() + 1));
            pool.to_cache(lease, first, int32_t(random() % uint64_t(lease.num_blocks() - first + 1)), cached);
          }
          break;
        default:
          if (!cached.empty()) {
            pool.free_cached(cached.back());
            cached.pop_back();
          }
      }
      const PoolCounts counts = pool.counts();
      ASSERT_EQ(counts, pool.recount());
      ASSERT_EQ(counts.free + counts.leased + counts.cached, counts.total);
      ASSERT_EQ(size_t(counts.cached), cached.size());
    }
    leases.clear();
    for (const BlockId block : cached) pool.free_cached(block);
    EXPECT_EQ(pool.counts().free, 50);
  }
}

TEST(BlockPoolDeathTest, FreeingACachedBlockTwiceEndsTheProcess) {
  BlockPool pool(2);
  BlockLease lease = *pool.lease(1);
  std::vector<BlockId> cached;
  pool.to_cache(lease, 0, 1, cached);
  pool.free_cached(cached[0]);
  EXPECT_DEATH(pool.free_cached(cached[0]), "CHECK");
}

TEST(Lifecycle, OnlyListedEdgesAreLegalAndTerminalMeansTerminal) {
  int legal = 0;
  for (const LifeKind kind : {LifeKind::kCombined, LifeKind::kPrefill, LifeKind::kDecode}) {
    for (size_t from = 0; from < size_t(RequestState::kCount); ++from) {
      for (size_t to = 0; to < size_t(RequestState::kCount); ++to) {
        const bool ok = is_legal(kind, RequestState(from), RequestState(to));
        const bool ends = is_terminal(RequestState(to)), ended = is_terminal(RequestState(from));
        EXPECT_FALSE(ended && ok);
        EXPECT_FALSE(!ended && ends && !ok);
        if (!is_terminal(RequestState(to))) legal += ok;
      }
    }
  }
  EXPECT_EQ(legal, 4 + 5 + 9);
  EXPECT_TRUE(is_legal(LifeKind::kCombined, RequestState::kRunning, RequestState::kWaiting));
  EXPECT_FALSE(is_legal(LifeKind::kDecode, RequestState::kRunning, RequestState::kWaiting));
}

TEST(LifecycleDeathTest, IllegalEdgeEndsTheProcess) {
  Lifecycle life;
  EXPECT_DEATH(advance(life, RequestState::kRunning, TimePoint{}), "is_legal");
}

}  // namespace
}  // namespace tandem::scheduler
