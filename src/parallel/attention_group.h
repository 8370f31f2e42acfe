// AttentionGroup: one rank's seat among the ranks that share their requests (attention tensor parallelism). All of them
// run the same batches and go through the same rounds; in a round each shows the others one piece of memory:
//
//   post(data) --> poll() until true --> of(member)
//
// Ranks of one process: what is shown is a pointer, and two counters are all the synchronisation.
// Owner: the rank's engine thread; nothing but wait() blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "parallel/expert_exchange.h"

namespace tandem::parallel {

class AttentionGroup {
 public:
  virtual ~AttentionGroup() = default;
  virtual int32_t size() const = 0;
  virtual int32_t index() const = 0;  // of this rank, in [0, size())

  // Shows `data` for the next round. Its bytes stay untouched until a later round's poll() was true: by then every
  // member has read them. CHECKs that the round before was polled to its end. tag: for errors.
  virtual void post(ExchangeTag tag, const void* data) = 0;
  // True: all members have posted this round. kPeerLost: one did not within the deadline, or gave up. Errors are final.
  virtual Result<bool> poll(TimePoint now) = 0;
  // What a member showed in the round that was polled to its end.
  virtual const void* of(int32_t member) const = 0;
  // Parks the thread, after a short spin, until the round may be complete or the timeout passed.
  virtual void wait(Duration timeout) = 0;
  // The ranks that have not come to this round.
  virtual MissingRanks missing() const { return {}; }
  // This rank takes part no further: the others need not wait for the deadline.
  virtual void give_up() = 0;
};

// Where the rows of a batch are worked on that one rank suffices for: member i has [begin, end). In order, without
// gaps.
struct RowShare {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
};
inline RowShare share_of(int64_t rows, int32_t size, int32_t index) {
  return {rows * index / size, rows * (index + 1) / size};
}
// The member whose share holds `row`.
inline int32_t owner_of(int64_t row, int64_t rows, int32_t size) {
  int32_t owner = 0;
  while (row >= share_of(rows, size, owner).end) ++owner;
  return owner;
}
// The most rows that a member gets of a batch of `rows`.
inline int64_t largest_share(int64_t rows, int32_t size) { return (rows + size - 1) / size; }

// Seats of the ranks first_rank ..., `size` to a group, in rank order. num_ranks: a multiple of size.
// spins: looks before a thread parks; 0 where ranks outnumber cores.
std::vector<std::unique_ptr<AttentionGroup>> make_attention_groups(Rank first_rank, int32_t num_ranks, int32_t size,
                                                                   Duration deadline, int32_t spins);

}  // namespace tandem::parallel
