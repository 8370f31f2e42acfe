// Rows to experts and results back between the GPUs of one node, by kernels that write into each other's memory. Every
// rank launches the same four ops in the same order on its stream, with zero tokens too:
//
//   peer_dispatch --> peer_receive --> grouped MLP on this rank's pairs --> peer_answer --> peer_collect
//
// A dispatch overwrites what the one before brought: every rank has answered that before anyone collects it, and has
// collected before it dispatches again. So counters that only rise are all the synchronisation. A kernel that waits
// longer than the deadline notes whom it missed (device::wait_fault) and ends with a fault.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tandem::kernels {

constexpr int32_t kMaxPeers = 8;

// Memory of one rank's GPU that the others write. Addresses hold on every GPU.
struct PeerBox {
  std::byte* rows = nullptr;          // [num_ranks, stride, row_bytes] by source: its tokens that chose a slot here
  int32_t* slots = nullptr;           // [num_ranks, stride, top_k] of all tokens of each source
  int64_t* num_tokens = nullptr;      // [num_ranks] of the newest dispatch
  uint64_t* dispatched = nullptr;     // [num_ranks] dispatches of each source so far
  uint64_t* answered = nullptr;       // [num_ranks] answers of each rank so far
  const float** result_of = nullptr;  // [stride * top_k] of this rank's own pairs: where their results lie
};

struct PeerGroup {
  PeerBox boxes[kMaxPeers];  // by rank
  int32_t rank = 0, num_ranks = 1, slots_per_rank = 0, top_k = 0;
  int64_t row_bytes = 0;            // on the way; a multiple of 16
  int64_t fp8_width = 0;            // 0: rows go as they are. Else their elements, and they go as fp8_rows.h has them
  int64_t stride = 0;               // most tokens of one rank, the same on all
  uint64_t* exchanges = nullptr;    // on the own GPU: how many have begun
  uint32_t* blocks_done = nullptr;  // on the own GPU, 0 between kernels
  device::WaitFault* fault = nullptr;
  int32_t deadline_s = 60;
};

// x [T, hidden] act_dtype (bf16 where it goes in FP8), slots [T, top_k] i32 global slots, -1: takes none. T at most
// group.stride.
void peer_dispatch(const Context& ctx, const PeerGroup& group, device::TensorView x, device::TensorView slots);
// Waits for all ranks. own_slots [num_ranks * stride, top_k] i32, out: this rank's, counted from its first; -1: not
// here.
void peer_receive(const Context& ctx, const PeerGroup& group, device::TensorView own_slots);
// result_of [num_ranks * stride * top_k]: where the results of this rank's pairs lie.
void peer_answer(const Context& ctx, const PeerGroup& group, device::TensorView own_slots,
                 const float* const* result_of);
// Waits for all ranks. rows, out: where the result of each of this rank's pairs lies; whatever, where it took no slot.
void peer_collect(const Context& ctx, const PeerGroup& group, std::span<const float*> rows);

}  // namespace tandem::kernels
