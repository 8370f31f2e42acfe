#include "scheduler/prefix_tree.h"

#include <algorithm>
#include <unordered_map>

#include "base/check.h"

namespace tandem::scheduler {

struct PrefixTree::Node {
  uint64_t id = 0;
  Node* parent = nullptr;
  std::vector<int32_t> tokens;  // blocks.size() * block_tokens
  std::vector<BlockId> blocks;
  Children children;
  int32_t locks = 0;  // holds on this node or below
  uint64_t last_use = 0;
  bool in_lru = false;

  int32_t num_blocks() const { return int32_t(blocks.size()); }
};

PrefixHold::PrefixHold(PrefixHold&& other) noexcept
    : tree_(std::exchange(other.tree_, nullptr)),
      node_(std::exchange(other.node_, nullptr)),
      blocks_(std::move(other.blocks_)) {
  other.blocks_.clear();
}

PrefixHold& PrefixHold::operator=(PrefixHold&& other) noexcept {
  if (this == &other) return *this;
  let_go();
  tree_ = std::exchange(other.tree_, nullptr);
  node_ = std::exchange(other.node_, nullptr);
  blocks_ = std::move(other.blocks_);
  other.blocks_.clear();
  return *this;
}

PrefixHold::~PrefixHold() { let_go(); }

void PrefixHold::let_go() {
  if (tree_ != nullptr) {
    tree_->lock(static_cast<PrefixTree::Node*>(node_), -1);
    tree_->holds_ -= 1;
  }
  tree_ = nullptr;
  node_ = nullptr;
  blocks_.clear();
}

PrefixTree::PrefixTree(BlockPool& pool, int32_t block_tokens)
    : pool_(pool), block_tokens_(block_tokens), root_(std::make_unique<Node>()) {
  CHECK(block_tokens > 0);
}

PrefixTree::~PrefixTree() {
  CHECK(holds_ == 0);
  evict(cached_);
  CHECK(cached_ == 0);
}

std::span<const int32_t> PrefixTree::block_of(std::span<const int32_t> tokens, int32_t index) const {
  return tokens.subspan(size_t(index) * size_t(block_tokens_), size_t(block_tokens_));
}

PrefixTree::Position PrefixTree::walk(std::span<const int32_t> tokens, int32_t max_blocks) const {
  const int32_t whole = std::min(max_blocks, int32_t(tokens.size() / size_t(block_tokens_)));
  Position at{root_.get(), 0, 0};
  while (at.blocks < whole) {
    if (at.blocks_in_node == at.node->num_blocks()) {
      const auto child = at.node->children.find(block_of(tokens, at.blocks));
      if (child == at.node->children.end()) break;
      at.node = child->second.get();
      at.blocks_in_node = 1;
    } else {
      if (!std::ranges::equal(block_of(at.node->tokens, at.blocks_in_node), block_of(tokens, at.blocks))) break;
      at.blocks_in_node += 1;
    }
    at.blocks += 1;
  }
  return at;
}

int32_t PrefixTree::match(std::span<const int32_t> tokens, int32_t max_blocks) const {
  return walk(tokens, max_blocks).blocks;
}

PrefixHold PrefixTree::hold(std::span<const int32_t> tokens, int32_t max_blocks) {
  const Position at = walk(tokens, max_blocks);
  Node* node = at.node;
  if (at.blocks_in_node < node->num_blocks()) node = split(node, at.blocks_in_node);
  PrefixHold hold;
  hold.tree_ = this;
  hold.node_ = node;
  hold.blocks_.resize(size_t(at.blocks));
  size_t end = size_t(at.blocks);
  for (const Node* n = node; n != root_.get(); n = n->parent) {
    end -= n->blocks.size();
    std::ranges::copy(n->blocks, hold.blocks_.begin() + int64_t(end));
  }
  CHECK(end == 0);
  lock(node, +1);
  touch(node);
  holds_ += 1;
  return hold;
}

// Cuts `node` in two: a new upper part with the first keep_blocks, which is returned, and `node` with the rest.
PrefixTree::Node* PrefixTree::split(Node* node, int32_t keep_blocks) {
  CHECK(keep_blocks > 0);
  CHECK(keep_blocks < node->num_blocks());
  const auto keep_tokens = int64_t(keep_blocks) * block_tokens_;
  auto upper = std::make_unique<Node>();
  upper->id = next_node_++;
  upper->parent = node->parent;
  upper->locks = node->locks;
  upper->last_use = node->last_use;
  upper->tokens.assign(node->tokens.begin(), node->tokens.begin() + keep_tokens);
  upper->blocks.assign(node->blocks.begin(), node->blocks.begin() + keep_blocks);
  const auto slot = node->parent->children.find(block_of(node->tokens, 0));
  CHECK(slot != node->parent->children.end());
  std::unique_ptr<Node> lower = std::move(slot->second);
  node->tokens.erase(node->tokens.begin(), node->tokens.begin() + keep_tokens);
  node->blocks.erase(node->blocks.begin(), node->blocks.begin() + keep_blocks);
  Node* const result = upper.get();
  node->parent = result;
  const std::span<const int32_t> first = block_of(node->tokens, 0);
  upper->children.emplace(Key(first.begin(), first.end()), std::move(lower));
  slot->second = std::move(upper);
  return result;
}

void PrefixTree::add_below(Node* parent, std::span<const int32_t> tokens, std::vector<BlockId> blocks) {
  auto node = std::make_unique<Node>();
  node->id = next_node_++;
  node->parent = parent;
  node->tokens.assign(tokens.begin(), tokens.end());
  node->blocks = std::move(blocks);
  node->last_use = ++uses_;
  cached_ += node->num_blocks();
  evictable_ += node->num_blocks();
  const std::span<const int32_t> first = block_of(node->tokens, 0);
  Node* const added = node.get();
  const bool fresh = parent->children.emplace(Key(first.begin(), first.end()), std::move(node)).second;
  CHECK(fresh);
  refresh(parent);
  refresh(added);
}

void PrefixTree::adopt(std::span<const int32_t> tokens, PrefixHold& held, BlockLease& lease) {
  const auto whole = int32_t(tokens.size() / size_t(block_tokens_));
  const int32_t had = held.num_blocks();
  if (whole <= had || match(tokens, whole) != had) return;
  CHECK(whole - had <= lease.num_blocks());
  std::vector<BlockId> blocks;
  pool_.to_cache(lease, 0, whole - had, blocks);
  const Position at = walk(tokens, had);
  Node* parent = at.node;
  if (at.blocks_in_node < parent->num_blocks()) parent = split(parent, at.blocks_in_node);
  const auto first = size_t(had) * size_t(block_tokens_);
  add_below(parent, tokens.subspan(first, size_t(whole) * size_t(block_tokens_) - first), std::move(blocks));
  held = hold(tokens, whole);
  CHECK(held.num_blocks() == whole);
}

void PrefixTree::absorb(std::span<const int32_t> tokens, PrefixHold held, BlockLease lease) {
  const auto whole = int32_t(tokens.size() / size_t(block_tokens_));
  const int32_t had = held.num_blocks();
  const Position at = walk(tokens, whole);
  CHECK(at.blocks >= std::min(had, whole));
  if (whole <= at.blocks) return;
  CHECK(whole - had <= lease.num_blocks());
  std::vector<BlockId> blocks;
  pool_.to_cache(lease, at.blocks - had, whole - at.blocks, blocks);
  Node* parent = at.node;
  if (at.blocks_in_node < parent->num_blocks()) parent = split(parent, at.blocks_in_node);
  const auto first = size_t(at.blocks) * size_t(block_tokens_);
  add_below(parent, tokens.subspan(first, size_t(whole) * size_t(block_tokens_) - first), std::move(blocks));
}

void PrefixTree::lock(Node* node, int32_t by) {
  for (Node* n = node; n != nullptr; n = n->parent) {
    const bool was_free = n->locks == 0;
    n->locks += by;
    CHECK(n->locks >= 0);
    const bool is_free = n->locks == 0;
    if (was_free && !is_free) evictable_ -= n->num_blocks();
    if (!was_free && is_free) evictable_ += n->num_blocks();
    refresh(n);
  }
}

void PrefixTree::touch(Node* node) {
  const uint64_t use = ++uses_;
  for (Node* n = node; n != nullptr; n = n->parent) {
    if (n->in_lru) lru_.erase({n->last_use, n->id});
    n->in_lru = false;
    n->last_use = use;
    refresh(n);
  }
}

// Brings the node's membership in the list of evictable leaves up to date.
void PrefixTree::refresh(Node* node) {
  const bool belongs = node != root_.get() && node->children.empty() && node->locks == 0;
  if (belongs == node->in_lru) return;
  if (belongs) {
    lru_.emplace(std::pair(node->last_use, node->id), node);
  } else {
    lru_.erase({node->last_use, node->id});
  }
  node->in_lru = belongs;
}

void PrefixTree::remove_leaf(Node* node) {
  lru_.erase({node->last_use, node->id});
  Node* const parent = node->parent;
  const auto slot = parent->children.find(block_of(node->tokens, 0));
  CHECK(slot != parent->children.end());
  parent->children.erase(slot);
  refresh(parent);
}

int32_t PrefixTree::evict(int32_t num_blocks) {
  int32_t freed = 0;
  while (freed < num_blocks && !lru_.empty()) {
    Node* const node = lru_.begin()->second;
    const int32_t count = std::min(num_blocks - freed, node->num_blocks());
    for (int32_t i = 0; i < count; ++i) {
      pool_.free_cached(node->blocks.back());
      node->blocks.pop_back();
    }
    cached_ -= count;
    evictable_ -= count;
    freed += count;
    if (node->blocks.empty()) {
      remove_leaf(node);
    } else {
      node->tokens.resize(node->blocks.size() * size_t(block_tokens_));
    }
  }
  return freed;
}

std::vector<size_t> PrefixTree::dfs_weight_order(std::span<const std::span<const int32_t>> prompts) const {
  std::unordered_map<const Node*, std::vector<size_t>> ends;
  std::unordered_map<const Node*, int64_t> weight;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Node* const node = walk(prompts[i], INT32_MAX).node;
    ends[node].push_back(i);
    for (const Node* n = node; n != nullptr; n = n->parent) weight[n] += 1;
  }
  std::vector<size_t> order;
  std::vector<const Node*> stack = {root_.get()};
  while (!stack.empty()) {
    const Node* const node = stack.back();
    stack.pop_back();
    std::vector<const Node*> children;
    for (const auto& [key, child] : node->children) {
      if (weight.contains(child.get())) children.push_back(child.get());
    }
    // Lightest first: the stack then visits the heaviest first. Ties: the older node.
    std::ranges::sort(children, [&](const Node* a, const Node* b) {
      return std::pair(weight[a], b->id) < std::pair(weight[b], a->id);
    });
    if (const auto here = ends.find(node); here != ends.end()) {
      order.insert(order.end(), here->second.begin(), here->second.end());
    }
    stack.insert(stack.end(), children.begin(), children.end());
  }
  return order;
}

}  // namespace tandem::scheduler
