// PrefixTree: which blocks hold the cache of which token prefix. A radix tree at block granularity: an edge is a run of
// whole blocks. Blocks in the tree are `cached` in the pool; a hold keeps a path from being evicted; blocks no hold
// covers are evictable, the least recently used leaf first, from its tail. Owner: the engine thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "scheduler/block_pool.h"

namespace tandem::scheduler {

class PrefixTree;

// Keeps a cached prefix in place; lets go when destroyed. Move-only; must not outlive its tree.
class PrefixHold {
 public:
  PrefixHold() = default;
  PrefixHold(PrefixHold&& other) noexcept;
  PrefixHold& operator=(PrefixHold&& other) noexcept;
  ~PrefixHold();
  std::span<const BlockId> blocks() const { return blocks_; }
  int32_t num_blocks() const { return int32_t(blocks_.size()); }

 private:
  friend class PrefixTree;
  void let_go();
  PrefixTree* tree_ = nullptr;
  void* node_ = nullptr;
  std::vector<BlockId> blocks_;
};

class PrefixTree {
 public:
  PrefixTree(BlockPool& pool, int32_t block_tokens);
  ~PrefixTree();  // gives every block back; CHECKs that no hold is left
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // How many leading whole blocks of `tokens`, at most max_blocks, are cached. Changes nothing.
  int32_t match(std::span<const int32_t> tokens, int32_t max_blocks) const;
  // The same, held and marked as just used.
  PrefixHold hold(std::span<const int32_t> tokens, int32_t max_blocks);
  // Moves the whole blocks of `tokens` that follow the held prefix from `lease` (its first blocks) into the tree and
  // extends the hold over them, so that others can share them while this request goes on. Does nothing when someone
  // else cached a longer prefix meanwhile: the request's own copies may be named by a handover.
  void adopt(std::span<const int32_t> tokens, PrefixHold& hold, BlockLease& lease);
  // The end of a request: its whole blocks stay as cache, what the tree already has and the partial tail go free.
  void absorb(std::span<const int32_t> tokens, PrefixHold hold, BlockLease lease);
  // Frees up to num_blocks evictable blocks; returns how many.
  int32_t evict(int32_t num_blocks);

  int32_t evictable_blocks() const { return evictable_; }
  int32_t cached_blocks() const { return cached_; }

  // Indices of `prompts` in the order of a depth-first walk that visits the children with most prompts below first
  // (--schedule-policy dfs-weight).
  std::vector<size_t> dfs_weight_order(std::span<const std::span<const int32_t>> prompts) const;

 private:
  friend class PrefixHold;
  struct Node;
  using Key = std::vector<int32_t>;
  struct SpanLess {
    using is_transparent = void;
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    }
  };
  using Children = std::map<Key, std::unique_ptr<Node>, SpanLess>;
  struct Position {  // where a walk ended: `blocks` blocks into `node`'s edge
    Node* node;
    int32_t blocks_in_node, blocks;
  };
  Position walk(std::span<const int32_t> tokens, int32_t max_blocks) const;
  std::span<const int32_t> block_of(std::span<const int32_t> tokens, int32_t index) const;
  Node* split(Node* node, int32_t keep_blocks);
  void add_below(Node* parent, std::span<const int32_t> tokens, std::vector<BlockId> blocks);
  void lock(Node* node, int32_t by);
  void touch(Node* node);
  void refresh(Node* node);
  void remove_leaf(Node* node);

  BlockPool& pool_;
  const int32_t block_tokens_;
  std::unique_ptr<Node> root_;
  std::map<std::pair<uint64_t, uint64_t>, Node*> lru_;  // (last use, node id) of unheld leaves
  uint64_t uses_ = 0, next_node_ = 1;
  int32_t evictable_ = 0, cached_ = 0, holds_ = 0;
};

}  // namespace tandem::scheduler
