#include "scheduler/block_pool.h"

#include <string>
#include <utility>

#include "base/check.h"

namespace tandem::scheduler {

BlockLease::BlockLease(BlockLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      blocks_(std::move(other.blocks_)),
      generation_(std::exchange(other.generation_, 0)) {
  other.blocks_.clear();
}

BlockLease& BlockLease::operator=(BlockLease&& other) noexcept {
  if (this == &other) return *this;
  give_back();
  pool_ = std::exchange(other.pool_, nullptr);
  blocks_ = std::move(other.blocks_);
  other.blocks_.clear();
  generation_ = std::exchange(other.generation_, 0);
  return *this;
}

BlockLease::~BlockLease() { give_back(); }

void BlockLease::give_back() {
  if (pool_ != nullptr) pool_->give_back(blocks_, generation_);
  blocks_.clear();
  pool_ = nullptr;
}

BlockPool::BlockPool(int32_t num_blocks) {
  CHECK(num_blocks >= 0);
  blocks_.resize(size_t(num_blocks));
  free_.reserve(size_t(num_blocks));
  for (int32_t i = num_blocks - 1; i >= 0; --i) free_.push_back(BlockId{i});
  counts_ = {.free = num_blocks, .leased = 0, .cached = 0, .total = num_blocks};
}

BlockPool::~BlockPool() { CHECK(counts_.leased == 0); }

BlockPool::Block& BlockPool::at(BlockId id) {
  CHECK(id.value >= 0);
  CHECK(size_t(id.value) < blocks_.size());
  return blocks_[size_t(id.value)];
}

void BlockPool::take(std::vector<BlockId>& out, int32_t count, uint64_t generation) {
  out.reserve(out.size() + size_t(count));
  for (int32_t i = 0; i < count; ++i) {
    const BlockId id = free_.back();
    free_.pop_back();
    Block& block = at(id);
    CHECK(block.use == Use::kFree);
    block = {Use::kLeased, generation};
    out.push_back(id);
  }
  counts_.free -= count;
  counts_.leased += count;
}

Result<BlockLease> BlockPool::lease(int32_t num_blocks) {
  CHECK(num_blocks >= 0);
  if (num_blocks > counts_.free) {
    return exhausted("wanted " + std::to_string(num_blocks) + " blocks, " + std::to_string(counts_.free) + " of " +
                     std::to_string(counts_.total) + " are free");
  }
  BlockLease lease;
  lease.pool_ = this;
  lease.generation_ = next_generation_++;
  take(lease.blocks_, num_blocks, lease.generation_);
  return lease;
}

Status BlockPool::extend(BlockLease& lease, int32_t num_blocks) {
  CHECK(lease.pool_ == this);
  CHECK(num_blocks >= 0);
  if (num_blocks > counts_.free) {
    return exhausted("wanted " + std::to_string(num_blocks) + " more blocks, " + std::to_string(counts_.free) +
                     " are free");
  }
  take(lease.blocks_, num_blocks, lease.generation_);
  return Ok{};
}

void BlockPool::to_cache(BlockLease& lease, int32_t first, int32_t count, std::vector<BlockId>& out) {
  if (count == 0) return;
  CHECK(lease.pool_ == this);
  CHECK(first >= 0);
  CHECK(count > 0);
  CHECK(first + count <= lease.num_blocks());
  const auto begin = lease.blocks_.begin() + first;
  for (auto it = begin; it != begin + count; ++it) {
    Block& block = at(*it);
    CHECK(block.use == Use::kLeased);
    CHECK(block.generation == lease.generation_);
    block.use = Use::kCached;
    out.push_back(*it);
  }
  lease.blocks_.erase(begin, begin + count);
  counts_.leased -= count;
  counts_.cached += count;
}

void BlockPool::free_cached(BlockId id) {
  Block& block = at(id);
  CHECK(block.use == Use::kCached);
  block.use = Use::kFree;
  free_.push_back(id);
  counts_.cached -= 1;
  counts_.free += 1;
}

void BlockPool::give_back(std::span<const BlockId> blocks, uint64_t generation) {
  for (size_t i = blocks.size(); i-- > 0;) {  // reversed: leased again in the same, mostly ascending, order
    Block& block = at(blocks[i]);
    CHECK(block.use == Use::kLeased);
    CHECK(block.generation == generation);
    block.use = Use::kFree;
    free_.push_back(blocks[i]);
  }
  counts_.leased -= int32_t(blocks.size());
  counts_.free += int32_t(blocks.size());
}

bool BlockPool::is_leased(BlockId id, uint64_t generation) const {
  if (id.value < 0 || size_t(id.value) >= blocks_.size()) return false;
  const Block& block = blocks_[size_t(id.value)];
  return block.use == Use::kLeased && block.generation == generation;
}

PoolCounts BlockPool::recount() const {
  PoolCounts counts;
  counts.total = int32_t(blocks_.size());
  for (const Block& block : blocks_) {
    if (block.use == Use::kFree) ++counts.free;
    if (block.use == Use::kLeased) ++counts.leased;
    if (block.use == Use::kCached) ++counts.cached;
  }
  CHECK(counts.free == int32_t(free_.size()));
  return counts;
}

}  // namespace tandem::scheduler
