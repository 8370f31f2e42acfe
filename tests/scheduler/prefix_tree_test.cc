// The radix tree against a naive model: a map from every cached token prefix to its block.
#include "scheduler/prefix_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace tandem::scheduler {
namespace {

using Tokens = std::vector<int32_t>;

TEST(PrefixTree, MatchesWholeBlocksOnly) {
  BlockPool pool(10);
  PrefixTree tree(pool, 4);
  const Tokens tokens = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  tree.absorb(tokens, {}, *pool.lease(3));
  EXPECT_EQ(tree.cached_blocks(), 2);
  EXPECT_EQ(pool.counts(), (PoolCounts{8, 0, 2, 10})) << "the partial tail went free";
  EXPECT_EQ(tree.match(tokens, 9), 2);
  EXPECT_EQ(tree.match(tokens, 1), 1);
  EXPECT_EQ(tree.match(Tokens{1, 2, 3, 4, 5, 6, 7}, 9), 1);
  EXPECT_EQ(tree.match(Tokens{1, 2, 3, 9}, 9), 0);
}

TEST(PrefixTree, HeldBlocksAreNotEvictedAndLeastRecentlyUsedGoFirst) {
  BlockPool pool(10);
  PrefixTree tree(pool, 1);
  tree.absorb(Tokens{1, 2, 3}, {}, *pool.lease(3));
  tree.absorb(Tokens{7, 8}, {}, *pool.lease(2));
  tree.absorb(Tokens{4, 5}, {}, *pool.lease(2));
  PrefixHold used = tree.hold(Tokens{7, 8}, 9);
  used = {};  // touched: now the youngest but not held
  const PrefixHold held = tree.hold(Tokens{1, 2}, 9);
  EXPECT_EQ(held.num_blocks(), 2);
  EXPECT_EQ(tree.evictable_blocks(), 5);
  EXPECT_EQ(tree.evict(3), 3);  // 3 (below the held path), then 5 and 4
  EXPECT_EQ(tree.match(Tokens{4, 5}, 9), 0);
  EXPECT_EQ(tree.match(Tokens{1, 2, 3}, 9), 2);
  EXPECT_EQ(tree.match(Tokens{7, 8}, 9), 2);
  EXPECT_EQ(tree.evict(100), 2);
  EXPECT_EQ(tree.match(Tokens{1, 2}, 9), 2);
  EXPECT_EQ(tree.evictable_blocks(), 0);
}

TEST(PrefixTree, AdoptSharesBlocksThatAreStillInUse) {
  BlockPool pool(10);
  PrefixTree tree(pool, 2);
  const Tokens tokens = {1, 2, 3, 4, 5};
  BlockLease lease = *pool.lease(3);
  const Tokens ids = {lease.blocks()[0].value, lease.blocks()[1].value};
  PrefixHold hold;
  tree.adopt(tokens, hold, lease);
  EXPECT_EQ(hold.num_blocks(), 2);
  EXPECT_EQ(lease.num_blocks(), 1);
  EXPECT_EQ(tree.evictable_blocks(), 0);
  const PrefixHold other = tree.hold(tokens, 9);
  ASSERT_EQ(other.num_blocks(), 2);
  EXPECT_EQ(other.blocks()[0].value, ids[0]);
  EXPECT_EQ(other.blocks()[1].value, ids[1]);
}

TEST(PrefixTree, AdoptLeavesDuplicatesWithTheirOwner) {
  BlockPool pool(10);
  PrefixTree tree(pool, 1);
  BlockLease first = *pool.lease(3), second = *pool.lease(3);
  PrefixHold first_hold, second_hold;
  tree.adopt(Tokens{1, 2, 3}, first_hold, first);
  tree.adopt(Tokens{1, 2, 3}, second_hold, second);
  EXPECT_EQ(second.num_blocks(), 3) << "a handover may name them";
  EXPECT_EQ(second_hold.num_blocks(), 0);
  tree.absorb(Tokens{1, 2, 3}, std::move(second_hold), std::move(second));
  EXPECT_EQ(pool.counts().free, 7);
}

TEST(PrefixTree, DfsWeightOrderVisitsTheBusiestBranchFirst) {
  BlockPool pool(20);
  PrefixTree tree(pool, 1);
  tree.absorb(Tokens{1, 2}, {}, *pool.lease(2));
  tree.absorb(Tokens{5, 6}, {}, *pool.lease(2));
  const std::vector<Tokens> prompts = {{1, 2, 9}, {5, 6, 1}, {5, 7}, {8}, {5, 6, 2}};
  std::vector<std::span<const int32_t>> spans(prompts.begin(), prompts.end());
  std::vector<size_t> order = tree.dfs_weight_order(spans);
  EXPECT_EQ(order, (std::vector<size_t>{3, 1, 2, 4, 0}));
}

// Random use of the tree; the model maps each cached prefix to its block and knows who holds what.
class AgainstModel {
 public:
  AgainstModel(uint64_t seed, int32_t block_tokens) : random_(seed), block_(block_tokens), tree_(pool_, block_tokens) {}

  void step() {
    const Tokens tokens = random_tokens();
    switch (random_() % 4) {
      case 0: start(tokens); break;
      case 1: finish(random_() % 2 == 0); break;
      case 2: evict(); break;
      default: ASSERT_EQ(tree_.match(tokens, 100), model_match(tokens));
    }
    check();
  }
  void end() {
    users_.clear();
    tree_.evict(1000);
    EXPECT_EQ(pool_.counts().free, pool_.counts().total);
  }

 private:
  struct User {
    Tokens tokens;
    PrefixHold hold;
    BlockLease lease;
  };

  Tokens random_tokens() {
    Tokens tokens(random_() % 14 + 1);
    for (int32_t& token : tokens) token = int32_t(random_() % 2);
    return tokens;
  }
  Tokens prefix(const Tokens& tokens, int32_t blocks) const {
    return {tokens.begin(), tokens.begin() + int64_t(blocks) * block_};
  }
  int32_t model_match(const Tokens& tokens) const {
    int32_t n = 0;
    while (size_t(n + 1) * size_t(block_) <= tokens.size() && model_.contains(prefix(tokens, n + 1))) ++n;
    return n;
  }
  void learn(const Tokens& tokens, const std::vector<BlockId>& table) {
    for (int32_t n = 1; size_t(n) * size_t(block_) <= tokens.size(); ++n) {
      model_.emplace(prefix(tokens, n), table[size_t(n) - 1]);
    }
  }

  void start(const Tokens& tokens) {
    User user{tokens, tree_.hold(tokens, 100), {}};
    ASSERT_EQ(user.hold.num_blocks(), model_match(tokens));
    for (int32_t n = 0; n < user.hold.num_blocks(); ++n) {
      ASSERT_EQ(user.hold.blocks()[size_t(n)], model_.at(prefix(tokens, n + 1)));
    }
    const int32_t total = int32_t(tokens.size() + size_t(block_) - 1) / block_;
    auto lease = pool_.lease(total - user.hold.num_blocks());
    if (!lease) return;
    user.lease = std::move(*lease);
    users_.push_back(std::move(user));
  }

  void finish(bool only_adopt) {
    if (users_.empty()) return;
    const size_t index = random_() % users_.size();
    User& user = users_[index];
    std::vector<BlockId> table(user.hold.blocks().begin(), user.hold.blocks().end());
    table.insert(table.end(), user.lease.blocks().begin(), user.lease.blocks().end());
    if (only_adopt) {
      if (model_match(user.tokens) == user.hold.num_blocks()) learn(user.tokens, table);
      tree_.adopt(user.tokens, user.hold, user.lease);
      return;
    }
    learn(user.tokens, table);
    tree_.absorb(user.tokens, std::move(user.hold), std::move(user.lease));
    users_.erase(users_.begin() + int64_t(index));
  }

  void evict() {
    const auto wanted = int32_t(random_() % 5);
    const int32_t evictable = tree_.evictable_blocks();
    ASSERT_EQ(tree_.evict(wanted), std::min(wanted, evictable));
    std::erase_if(model_, [&](const auto& entry) {
      return tree_.match(entry.first, 100) < int32_t(entry.first.size()) / block_;
    });
  }

  void check() {
    ASSERT_EQ(tree_.cached_blocks(), int32_t(model_.size()));
    ASSERT_EQ(pool_.counts().cached, int32_t(model_.size()));
    ASSERT_EQ(pool_.counts(), pool_.recount());
    std::map<Tokens, bool> held;
    for (const User& user : users_) {
      for (int32_t n = 1; n <= user.hold.num_blocks(); ++n) held[prefix(user.tokens, n)] = true;
    }
    for (const auto& [tokens, yes] : held) ASSERT_TRUE(model_.contains(tokens)) << "a held block was evicted";
    ASSERT_EQ(tree_.evictable_blocks(), int32_t(model_.size() - held.size()));
  }

  std::mt19937_64 random_;
  const int32_t block_;
  BlockPool pool_{60};
  PrefixTree tree_;
  std::map<Tokens, BlockId> model_;
  std::vector<User> users_;
};

TEST(PrefixTree, BehavesAsTheNaiveModelOverRandomUse) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    for (const int32_t block : {1, 3}) {
      AgainstModel run(seed, block);
      for (int i = 0; i < 300; ++i) {
        run.step();
        if (::testing::Test::HasFatalFailure()) FAIL() << "seed " << seed << " block " << block << " step " << i;
      }
      run.end();
    }
  }
}

}  // namespace
}  // namespace tandem::scheduler
