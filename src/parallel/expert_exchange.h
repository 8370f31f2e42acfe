// ExpertExchange: how the tokens of one group's ranks reach their experts and come back. Per expert layer and channel:
//
//   post_dispatch(x, slots) --> poll_received() --> grouped MLP into results --> post_results() --> poll_results()
//
// Between a post and its poll the caller computes something else (the shared experts, the other half of the batch).
// Every rank of the group makes the same calls in the same order, with zero tokens too. Results come back unsummed, so
// that the owner of a token adds its experts in the gate's order whatever the placement: logits do not depend on ranks.
// Each rank holds its own ExpertExchange and calls it from its engine thread; nothing but wait() blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "device/tensor.h"
#include "kernels/moe.h"
#include "parallel/missing_ranks.h"

namespace tandem::parallel {

// How received rows lie. Both give the same results.
enum class ExchangeMode : uint8_t {
  kNormal,      // one after the other: sizes are known once every rank has dispatched; any number of tokens
  kLowLatency,  // each source rank has its fixed part, so its rows are taken when they arrive; few tokens
};

// How rows travel. Ranks agree on it.
enum class ExchangePayload : uint8_t {
  kAsTheyAre,
  // kernels/fp8_rows.h: half the bytes of bf16, a quarter of f32's. Their sender quantises them once, and every expert
  // computes with what that gives, the sender's own ones too, so that results do not depend on ranks or placement.
  kFp8,
};
const char* to_string(ExchangePayload payload);

struct ExchangeShape {
  int32_t num_ranks = 1;
  int32_t slots_per_rank = 0;  // of one layer; slot p belongs to rank p / slots_per_rank
  int32_t top_k = 0;
  int64_t hidden = 0;
  device::DType dtype = device::DType::kBF16;  // of dispatched rows; results are f32
  int64_t max_tokens = 0;                      // of one rank in one dispatch
  int64_t max_low_latency_tokens = 0;          // the same in low-latency mode; at most max_tokens
  int32_t num_channels = 1;                    // exchanges in flight at once
  ExchangePayload payload = ExchangePayload::kAsTheyAre;
};
// Of a row on its way, without its slots.
int64_t payload_row_bytes(const ExchangeShape& shape);
// Memory of one rank's exchange.
int64_t exchange_bytes(const ExchangeShape& shape);

// The rows of all ranks that chose slots of this one. Valid until the channel's next post_dispatch.
struct ReceivedRows {
  // [N, hidden]; a token that chose several slots here is one row. In FP8 from GPU to GPU as they came, kF8E4M3
  // [N, payload_row_bytes]; elsewhere widened again to the shape's dtype.
  device::TensorView rows;
  kernels::SlotSort sort;      // over this rank's slots; row_token indexes rows
  device::TensorView results;  // [pairs, hidden] f32, sorted as sort says: where the experts' outputs go
};

// Which exchange a message belongs to, for errors and for the wire.
struct ExchangeTag {
  uint64_t step = 0;
  int32_t layer = 0;
  bool operator==(const ExchangeTag&) const = default;
};

class ExpertExchange {
 public:
  virtual ~ExpertExchange() = default;
  virtual Rank rank() const = 0;
  virtual const ExchangeShape& shape() const = 0;

  // x [T, hidden] shape().dtype; slots [T, top_k] i32 global slots. Both stay untouched until poll_results() is done.
  virtual void post_dispatch(int32_t channel, ExchangeTag tag, ExchangeMode mode, device::TensorView x,
                             device::TensorView slots) = 0;
  // Nothing while ranks are missing; kPeerLost after the deadline, naming ranks, step and layer. Errors are final.
  virtual Result<std::optional<ReceivedRows>> poll_received(int32_t channel, TimePoint now) = 0;
  virtual void post_results(int32_t channel) = 0;
  // True: rows [T * top_k] holds where the result of each (token, choice) lies, until the channel's next post_dispatch.
  virtual Result<bool> poll_results(int32_t channel, TimePoint now, std::span<const float*> rows) = 0;
  // Parks the thread, after a short spin, until something may have come for the channel or the timeout passed.
  virtual void wait(int32_t channel, Duration timeout) = 0;
  // The ranks that the channel waits for, rows or results. Empty where that is not known.
  virtual MissingRanks missing(int32_t) const { return {}; }
  // Bytes of the messages with rows that went to other nodes so far.
  virtual int64_t row_bytes_sent() const { return 0; }
  // For a rank that waits for something else than this exchange: sends on what is on its way. True: there may be more,
  // so call again soon.
  virtual bool drive(TimePoint) { return false; }
};

// All ranks of one process: rows and results are read where they lie, through pointers.
// spins: looks before a thread parks; 0 where ranks outnumber cores.
std::vector<std::unique_ptr<ExpertExchange>> make_local_exchanges(const ExchangeShape& shape, Duration deadline,
                                                                  int32_t spins);

// One rank alone on a GPU: what would travel stays where it is, and the pairs are sorted there. Views, spans and the
// rows of poll_results() lie in the GPU's memory (kernels/context.h).
std::unique_ptr<ExpertExchange> make_gpu_exchange(const ExchangeShape& shape, kernels::Backend backend,
                                                  std::shared_ptr<const device::Stream> stream);
int64_t gpu_exchange_bytes(const ExchangeShape& shape);

// All ranks of one process, a GPU each, whose kernels write into each other's memory. deadline: after which a GPU that
// waits for a peer ends the process (whole seconds). Errors: more ranks than can see each other, GPUs that cannot.
struct PeerSeat {
  int32_t gpu = 0;
  std::shared_ptr<const device::Stream> stream;
  Duration deadline{};
};
Result<std::vector<std::unique_ptr<ExpertExchange>>> make_peer_exchanges(const ExchangeShape& shape,
                                                                         kernels::Backend backend,
                                                                         std::span<const PeerSeat> seats);
int64_t peer_exchange_bytes(const ExchangeShape& shape);

}  // namespace tandem::parallel
