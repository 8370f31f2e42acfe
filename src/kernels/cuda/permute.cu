// From experts to slots, and the (token, choice) pairs sorted by slot. Nothing of it is seen by the host.
#include "kernels/cuda/launch.cuh"

namespace tandem::kernels::cuda {
namespace {

constexpr int kThreads = 256, kSortThreads = 1024;

// experts::draw_of: the finalizer of SplitMix64, once per argument.
__device__ uint32_t draw_of(uint64_t seed, uint64_t token, uint64_t choice) {
  uint64_t x = seed;
  for (int i = 0; i < 2; ++i) {
    x += 0x9E3779B97F4A7C15ull * ((i == 0 ? token : choice) + 1);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
  }
  return uint32_t(x >> 48);
}

__global__ void choose_slots_kernel(SlotChoice c, int64_t pairs, int top_k, int32_t* ids, int32_t* counts) {
  const int64_t pair = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair >= pairs) return;
  const int64_t token = c.first_token + pair / top_k;
  const int k = int(pair % top_k);
  if (token >= c.values->num_tokens) {
    ids[pair] = -1;
    return;
  }
  const uint64_t seed = c.values->step * c.num_layers + c.layer;
  int32_t expert = ids[pair];
  if (c.fakes_routing) {
    expert =
        int32_t((draw_of(seed, uint64_t(token), 0) + uint32_t(k * c.num_experts / top_k)) % uint32_t(c.num_experts));
  }
  if (counts != nullptr) atomicAdd(counts + expert, 1);
  const int32_t draw = int32_t(draw_of(seed, uint64_t(token), uint64_t(k)));
  int32_t i = c.begin[expert];
  while (draw >= c.upto[i]) ++i;
  ids[pair] = c.slot[i];
}

// Sum over the block of the values before this thread's; `total` gets the whole sum. parts: 32 ints of shared memory.
__device__ int block_prefix(int value, int* parts, int& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int inclusive = value;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  __syncthreads();
  if (lane == 31) parts[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kSortThreads / 32; ++w) {
    if (w < warp) before += parts[w];
    total += parts[w];
  }
  return before + inclusive - value;
}

// One block per slot: counts what lies before it, then places its own pairs in order.
__global__ void __launch_bounds__(kSortThreads)
    sort_by_slot_kernel(const int32_t* slots, int pairs, int top_k, GpuSlotSort sort) {
  __shared__ int parts[32];
  const int slot = blockIdx.x;
  int below = 0, total = 0;
  for (int i = threadIdx.x; i < pairs; i += kSortThreads) below += slots[i] >= 0 && slots[i] < slot ? 1 : 0;
  block_prefix(below, parts, total);
  int next = total;
  if (threadIdx.x == 0) sort.slot_begin[slot] = next;
  for (int first = 0; first < pairs; first += kSortThreads) {
    const int i = first + int(threadIdx.x);
    const bool mine = i < pairs && slots[i] == slot;
    const int at = next + block_prefix(mine ? 1 : 0, parts, total);
    if (mine) {
      sort.row_token[at] = i / top_k;
      sort.result_of[i] = sort.results + int64_t(at) * sort.width;
    }
    if (slot == 0 && i < pairs && slots[i] < 0) sort.result_of[i] = sort.results;
    next += total;
  }
  if (slot < int(gridDim.x) - 1) return;
  if (threadIdx.x == 0) sort.slot_begin[slot + 1] = next;
  for (int i = next + int(threadIdx.x); i < pairs; i += kSortThreads) sort.row_token[i] = 0;
}

}  // namespace

void choose_slots(const Context& ctx, const SlotChoice& choice, TensorView ids, int32_t* counts) {
  const int64_t pairs = ids.num_elements();
  if (pairs == 0) return;
  choose_slots_kernel<<<unsigned(ceil_div(pairs, kThreads)), kThreads, 0, stream_of(ctx)>>>(
      choice, pairs, int(ids.dim(1)), ids.as<int32_t>(), counts);
  check_launch(ctx, "choose_slots");
}

void sort_by_slot(const Context& ctx, TensorView slots, int32_t num_slots, const GpuSlotSort& sort) {
  sort_by_slot_kernel<<<unsigned(num_slots), kSortThreads, 0, stream_of(ctx)>>>(
      slots.as<int32_t>(), int(slots.num_elements()), int(slots.dim(1)), sort);
  check_launch(ctx, "sort_by_slot");
}

}  // namespace tandem::kernels::cuda
