// BlockPool: who may use which block of the cache. Every block is free, leased or cached, and the counts add up; the
// bytes are kv::KvStorage's. A lease carries a generation, never reused, which every one of its blocks remembers: an
// answer about a block is only valid together with the generation it was given for. Owner: the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace tandem::scheduler {

class BlockPool;

// The right to use some blocks; gives them back when destroyed. Move-only; must not outlive its pool.
class BlockLease {
 public:
  BlockLease() = default;
  BlockLease(BlockLease&& other) noexcept;
  BlockLease& operator=(BlockLease&& other) noexcept;
  ~BlockLease();

  std::span<const BlockId> blocks() const { return blocks_; }
  int32_t num_blocks() const { return int32_t(blocks_.size()); }
  bool empty() const { return blocks_.empty(); }
  uint64_t generation() const { return generation_; }  // 0: never leased

 private:
  friend class BlockPool;
  void give_back();
  BlockPool* pool_ = nullptr;
  std::vector<BlockId> blocks_;
  uint64_t generation_ = 0;
};

struct PoolCounts {
  int32_t free = 0, leased = 0, cached = 0, total = 0;
  bool operator==(const PoolCounts&) const = default;
};

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);
  ~BlockPool();  // CHECKs that no lease is left
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // kExhausted when fewer are free; then nothing changed. num_blocks may be 0: an empty lease with a generation.
  Result<BlockLease> lease(int32_t num_blocks);
  // Adds blocks to the end of a lease, under its generation.
  Status extend(BlockLease& lease, int32_t num_blocks);
  // Blocks [first, first + count) of the lease leave it and become cached. Appends them to `out`.
  void to_cache(BlockLease& lease, int32_t first, int32_t count, std::vector<BlockId>& out);
  void free_cached(BlockId block);

  bool is_leased(BlockId block, uint64_t generation) const;
  PoolCounts counts() const { return counts_; }
  // The same numbers counted from every block's state: equal to counts() unless something is broken.
  PoolCounts recount() const;

 private:
  friend class BlockLease;
  enum class Use : uint8_t { kFree, kLeased, kCached };
  struct Block {
    Use use = Use::kFree;
    uint64_t generation = 0;
  };
  void take(std::vector<BlockId>& out, int32_t count, uint64_t generation);
  void give_back(std::span<const BlockId> blocks, uint64_t generation);
  Block& at(BlockId id);

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;  // a stack whose top is the next block; fresh pools hand out ascending runs
  PoolCounts counts_;
  uint64_t next_generation_ = 1;
};

}  // namespace tandem::scheduler
