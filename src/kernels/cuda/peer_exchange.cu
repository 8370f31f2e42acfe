// Writes go to the peers' memory as they are made; a fence over the system before the counter that announces them, and
// an acquiring read of the counter before what it announces is read.
#include <algorithm>

#include "kernels/cuda/quantise.cuh"
#include "kernels/fp8_rows.h"
#include "kernels/peer_exchange.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ uint64_t load_acquire(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}
__device__ void store_release(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
__device__ uint64_t nanoseconds() {
  uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}

// One thread per rank.
__device__ void wait_for(const PeerGroup& g, const uint64_t* counters, int rank, bool is_answer) {
  const uint64_t wanted = *g.exchanges, begin = nanoseconds();
  while (load_acquire(counters + rank) < wanted) {
    if (nanoseconds() - begin < uint64_t(g.deadline_s) * 1000000000) continue;
    g.fault->rank = g.rank;
    g.fault->missing_rank = rank;
    g.fault->seconds = g.deadline_s;
    g.fault->is_answer = is_answer;
    g.fault->exchange = wanted;
    __threadfence_system();
    __trap();
  }
}

// True in one thread: the last of the last block, when the writes of all blocks are visible everywhere.
__device__ bool is_last_block(const PeerGroup& g) {
  __shared__ bool is_last;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(g.blocks_done, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last || threadIdx.x != 0) return false;
  __threadfence_system();
  *g.blocks_done = 0;
  return true;
}

// A token's slots to all ranks. The ranks that are to have its row, a bit each.
__device__ unsigned send_slots(const PeerGroup& g, const int32_t* slots, int64_t token) {
  unsigned wanted = 0;
  for (int k = 0; k < g.top_k; ++k) {
    const int32_t slot = slots[token * g.top_k + k];
    if (slot >= 0) wanted |= 1u << (slot / g.slots_per_rank);
  }
  const int64_t to = g.rank * g.stride + token;
  for (int i = threadIdx.x; i < g.num_ranks * g.top_k; i += kThreads) {
    const int k = i % g.top_k;
    g.boxes[i / g.top_k].slots[to * g.top_k + k] = slots[token * g.top_k + k];
  }
  return wanted;
}

template <class T>
__device__ void send_bytes(const PeerGroup& g, unsigned wanted, int64_t at, T value) {
  for (int r = 0; r < g.num_ranks; ++r) {
    if ((wanted >> r & 1) != 0) *reinterpret_cast<T*>(g.boxes[r].rows + at) = value;
  }
}

__device__ void send_row(const PeerGroup& g, unsigned wanted, const std::byte* x, int64_t to) {
  const auto* row = reinterpret_cast<const uint4*>(x);
  const int vectors = int(g.row_bytes / 16);
  for (int i = threadIdx.x; i < vectors; i += kThreads) send_bytes(g, wanted, to + i * 16, row[i]);
}

// Quantised on the way: sixteen values a lane, eight lanes a group; whole warps, for the shuffles.
__device__ void send_fp8_row(const PeerGroup& g, unsigned wanted, const __nv_bfloat16* x, int64_t to) {
  const int64_t width = g.fp8_width;
  for (int64_t begin = threadIdx.x / 32 * 512; begin < width; begin += kThreads * 16) {
    const int64_t at = begin + threadIdx.x % 32 * 16;
    float v[16], top = 0;
#pragma unroll
    for (int i = 0; i < 16; i += 8) {
      const uint4 bits = at < width ? *reinterpret_cast<const uint4*>(x + at + i) : uint4{};
      const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        v[i + 2 * p] = __uint_as_float(pairs[p] << 16);
        v[i + 2 * p + 1] = __uint_as_float(pairs[p] & 0xffff0000u);
      }
    }
#pragma unroll
    for (float value : v) top = fmaxf(top, fabsf(value));
    for (int offset = 4; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    const float scale = scale_of(top), inverse = 1.0f / scale;
    const uint4 packed{pack_fp8(v, inverse), pack_fp8(v + 4, inverse), pack_fp8(v + 8, inverse),
                       pack_fp8(v + 12, inverse)};
    if (at < width) send_bytes(g, wanted, to + at, packed);
    if (at < width && at % kGroup == 0) send_bytes(g, wanted, to + width + at / kGroup * int64_t(sizeof(float)), scale);
  }
}

// A block per token, and at least one.
template <bool kFp8>
__global__ void __launch_bounds__(kThreads)
    dispatch_kernel(const __grid_constant__ PeerGroup g, const std::byte* x, const int32_t* slots, int64_t tokens) {
  const int64_t token = blockIdx.x;
  if (token < tokens) {
    const unsigned wanted = send_slots(g, slots, token);
    const int64_t to = (g.rank * g.stride + token) * g.row_bytes;
    if constexpr (kFp8) {
      send_fp8_row(g, wanted, reinterpret_cast<const __nv_bfloat16*>(x) + token * g.fp8_width, to);
    } else {
      send_row(g, wanted, x + token * g.row_bytes, to);
    }
  }
  if (!is_last_block(g)) return;
  const uint64_t number = *g.exchanges + 1;
  *g.exchanges = number;
  for (int r = 0; r < g.num_ranks; ++r) {
    g.boxes[r].num_tokens[g.rank] = tokens;
    store_release(g.boxes[r].dispatched + g.rank, number);
  }
}

__global__ void receive_kernel(const __grid_constant__ PeerGroup g, int32_t* own_slots) {
  const PeerBox& box = g.boxes[g.rank];
  if (threadIdx.x < g.num_ranks) wait_for(g, box.dispatched, int(threadIdx.x), false);
  __syncthreads();
  const int64_t pairs = g.num_ranks * g.stride * g.top_k;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < pairs; i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t token = i / g.top_k, source = token / g.stride;
    const int32_t slot = box.slots[i] - g.rank * g.slots_per_rank;
    const bool is_here = token % g.stride < box.num_tokens[source] && slot >= 0 && slot < g.slots_per_rank;
    own_slots[i] = is_here ? slot : -1;
  }
}

__global__ void __launch_bounds__(kThreads)
    answer_kernel(const __grid_constant__ PeerGroup g, const int32_t* own_slots, const float* const* result_of) {
  const int64_t of_source = g.stride * g.top_k, pairs = g.num_ranks * of_source;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < pairs && own_slots[i] >= 0) g.boxes[i / of_source].result_of[i % of_source] = result_of[i];
  if (!is_last_block(g)) return;
  for (int r = 0; r < g.num_ranks; ++r) store_release(g.boxes[r].answered + g.rank, *g.exchanges);
}

__global__ void collect_kernel(const __grid_constant__ PeerGroup g, const float** rows, int64_t pairs) {
  const PeerBox& box = g.boxes[g.rank];
  if (threadIdx.x < g.num_ranks) wait_for(g, box.answered, int(threadIdx.x), true);
  __syncthreads();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < pairs; i += int64_t(gridDim.x) * blockDim.x) {
    rows[i] = box.result_of[i];
  }
}

// Few, since each of them waits.
unsigned waiting_blocks(int64_t items) { return unsigned(std::clamp<int64_t>(ceil_div(items, kThreads), 1, 32)); }

}  // namespace

void peer_dispatch(const Context& ctx, const PeerGroup& group, TensorView x, TensorView slots) {
  const int64_t tokens = x.dim(0);
  const auto kernel = group.fp8_width > 0 ? dispatch_kernel<true> : dispatch_kernel<false>;
  kernel<<<unsigned(std::max<int64_t>(1, tokens)), kThreads, 0, stream_of(ctx)>>>(group, x.as<std::byte>(),
                                                                                  slots.as<int32_t>(), tokens);
  check_launch(ctx, "peer_dispatch");
}

void peer_receive(const Context& ctx, const PeerGroup& group, TensorView own_slots) {
  receive_kernel<<<waiting_blocks(own_slots.num_elements()), kThreads, 0, stream_of(ctx)>>>(group,
                                                                                            own_slots.as<int32_t>());
  check_launch(ctx, "peer_receive");
}

void peer_answer(const Context& ctx, const PeerGroup& group, TensorView own_slots, const float* const* result_of) {
  answer_kernel<<<unsigned(ceil_div(own_slots.num_elements(), kThreads)), kThreads, 0, stream_of(ctx)>>>(
      group, own_slots.as<int32_t>(), result_of);
  check_launch(ctx, "peer_answer");
}

void peer_collect(const Context& ctx, const PeerGroup& group, std::span<const float*> rows) {
  collect_kernel<<<waiting_blocks(int64_t(rows.size())), kThreads, 0, stream_of(ctx)>>>(group, rows.data(),
                                                                                        int64_t(rows.size()));
  check_launch(ctx, "peer_collect");
}

}  // namespace tandem::kernels::cuda
