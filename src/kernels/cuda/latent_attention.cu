// A block attends for 64 query rows (heads of a few tokens of one sequence) over keys in blocks of 64. Keys and values
// are the same bytes: a key block lies in shared memory once, as chunks of 64 columns, and is read as K^T and as V.
//   producer warp      copies key blocks into two stages
//   two warpgroups     each scores half of the keys (32) for all rows, and sums half of the value columns
// They meet twice a block: for the rows' maxima, and for the probabilities that both need. With 64 rows of 512 sums two
// warpgroups' registers are full, which is why the columns are split and not the rows.
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kRows = 64, kKeys = 64, kStages = 2, kThreads = 384, kHalf = kKeys / 2;
constexpr int kChunkBytes = 64 * 128;  // 64 rows of 64 bf16
constexpr float kLog2e = 1.4426950408889634f;

template <int kLora>
struct alignas(1024) Shared {
  static constexpr int kChunks = kLora / 64 + 1;  // the last holds the rotated part
  std::byte q[kChunks][kChunkBytes];
  std::byte keys[kStages][kChunks][kChunkBytes];
  std::byte p[kChunkBytes];
  float top[2][kRows];  // of each warpgroup's half of the keys
  uint64_t q_full, full[kStages], empty[kStages];
};

struct Args {
  const SequenceSpan* sequences;
  int32_t num_sequences, heads, block_tokens;
  float scale;  // times log2(e): powers of two are what the hardware has
  bool one_token_each;
  __nv_bfloat16* out;
};

// What a block works on.
struct Work {
  int row = 0, end_row = 0;  // of q and out
  int first_limit = 0;       // keys that the sequence's first row of this batch sees
  int sequence_row = 0;      // first (token, head) row of the sequence
  int num_blocks = 0;        // of keys
  const int32_t* block_table = nullptr;
};

__device__ bool find_work(const Args& a, Work& work) {
  int tile = blockIdx.x, index = 0;
  if (a.one_token_each) {
    const int tiles = (a.heads + kRows - 1) / kRows;
    index = tile / tiles;
    tile %= tiles;
  } else {
    for (;; ++index) {
      if (index == a.num_sequences) return false;
      const int tiles = (a.sequences[index].num_rows * a.heads + kRows - 1) / kRows;
      if (tile < tiles) break;
      tile -= tiles;
    }
  }
  const SequenceSpan s = a.sequences[index];
  work.sequence_row = s.first_row * a.heads;
  work.row = work.sequence_row + tile * kRows;
  work.end_row = min(work.row + kRows, (s.first_row + s.num_rows) * a.heads);
  work.first_limit = s.prefix_len + 1;
  const int last_limit = work.first_limit + (work.end_row - 1 - work.sequence_row) / a.heads;
  work.num_blocks = (last_limit + kKeys - 1) / kKeys;
  work.block_table = s.block_table;
  return true;
}

template <int kLora>
__device__ void produce(Shared<kLora>& s, const CUtensorMap* q_map, const CUtensorMap* key_map, const Args& a,
                        const Work& work) {
  using S = Shared<kLora>;
  barrier_expect(&s.q_full, S::kChunks * kChunkBytes);
  for (int c = 0; c < S::kChunks; ++c) tma_load_3d(s.q[c], q_map, &s.q_full, c * 64, work.row, 0);
  const int box = min(a.block_tokens, kKeys);
  const int last_limit = work.first_limit + (work.end_row - 1 - work.sequence_row) / a.heads;
  const int last_block = (last_limit - 1) / a.block_tokens;
  for (int b = 0; b < work.num_blocks; ++b) {
    const int stage = b % kStages, round = b / kStages;
    if (round > 0) barrier_wait(&s.empty[stage], (round - 1) & 1);
    barrier_expect(&s.full[stage], S::kChunks * kChunkBytes);
    for (int at = 0; at < kKeys; at += box) {
      const int key = b * kKeys + at;
      // Keys beyond the table's end are masked later; any row that exists will do.
      const int block = work.block_table[min(key / a.block_tokens, last_block)];
      const int row = block * a.block_tokens + key % a.block_tokens;
      for (int c = 0; c < S::kChunks; ++c) {
        tma_load_3d(s.keys[stage][c] + at * 128, key_map, &s.full[stage], c * 64, row, 0);
      }
    }
  }
}

// Scores of this warpgroup's 32 keys.
template <int kLora>
__device__ void score(Shared<kLora>& s, int stage, int group, float (&d)[16]) {
  wgmma_fence();
#pragma unroll
  for (int c = 0; c < Shared<kLora>::kChunks; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      wgmma_bf16_n32(d, tile_descriptor(s.q[c] + i * 32),
                     tile_descriptor(s.keys[stage][c] + group * kHalf * 128 + i * 32), c + i > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin_registers(d);
}

template <int kLora, int kCount>
__device__ void add_values(Shared<kLora>& s, int stage, int group, float (&d)[kCount]) {
  wgmma_fence();
  const std::byte* values = s.keys[stage][group * kLora / 128];
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) {
    const uint64_t a = tile_descriptor(s.p + i * 32), b = chunked_descriptor(values + i * 16 * 128, kChunkBytes);
    if constexpr (kLora == 512) {
      wgmma_bf16_n256_kn(d, a, b, 1);
    } else {
      wgmma_bf16_n64_kn(d, a, b, 1);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin_registers(d);
}

// A pair of probabilities into p, swizzled as the copy engine would have written it.
__device__ void put_pair(std::byte* p, int row, int key, float first, float second) {
  const int at = row * 128 + key * 2;
  *reinterpret_cast<__nv_bfloat162*>(p + (at ^ (row % 8 * 16))) = __floats2bfloat162_rn(first, second);
}

__device__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

template <int kLora>
__device__ void consume(Shared<kLora>& s, const Args& a, const Work& work) {
  constexpr int kCount = kLora / 4;  // sums of a thread: 64 rows by half of the columns over 128 threads
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  const int rows[2] = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8};
  int limit[2];
  for (int r = 0; r < 2; ++r) limit[r] = work.first_limit + (work.row + rows[r] - work.sequence_row) / a.heads;
  float sums[kCount] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  barrier_wait(&s.q_full, 0);
  for (int b = 0; b < work.num_blocks; ++b) {
    const int stage = b % kStages;
    barrier_wait(&s.full[stage], b / kStages & 1);
    float d[16], best[2] = {-INFINITY, -INFINITY};
    score<kLora>(s, stage, group, d);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int r = i / 2 % 2, key = b * kKeys + group * kHalf + i / 4 * 8 + lane % 4 * 2 + i % 2;
      d[i] = key < limit[r] ? d[i] * a.scale : -INFINITY;
      best[r] = fmaxf(best[r], d[i]);
    }
    for (int r = 0; r < 2; ++r) {
      best[r] = quad_max(best[r]);
      if (lane % 4 == 0) s.top[group][rows[r]] = best[r];
    }
    named_barrier(1, 256);  // maxima are there, and p of the block before has been read by both
    float shrink[2];
    for (int r = 0; r < 2; ++r) {
      const float next = fmaxf(top[r], fmaxf(s.top[0][rows[r]], s.top[1][rows[r]]));
      shrink[r] = exp2f(top[r] - next);
      total[r] *= shrink[r];
      top[r] = next;
    }
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      const int r = i / 2 % 2;
      const float first = exp2f(d[i] - top[r]), second = exp2f(d[i + 1] - top[r]);
      total[r] += first + second;
      put_pair(s.p, rows[r], group * kHalf + i / 4 * 8 + lane % 4 * 2, first, second);
    }
    fence_async_shared();
    // Maxima settle after a few blocks; then there is nothing to rescale.
    if (__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] *= shrink[i / 2 % 2];
    }
    named_barrier(2, 256);  // p is whole; maxima may be written again
    add_values<kLora>(s, stage, group, sums);
    if (lane == 0) barrier_arrive(&s.empty[stage]);
  }
  for (int r = 0; r < 2; ++r) {
    total[r] = quad_sum(total[r]);
    if (lane % 4 == 0) s.top[group][rows[r]] = total[r];
  }
  named_barrier(1, 256);
  for (int r = 0; r < 2; ++r) {
    const int row = work.row + rows[r];
    if (row >= work.end_row) continue;
    const float inverse = 1.0f / (s.top[0][rows[r]] + s.top[1][rows[r]]);
    __nv_bfloat16* out = a.out + int64_t(row) * kLora + group * (kLora / 2) + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      *reinterpret_cast<__nv_bfloat162*>(out + j * 8) =
          __floats2bfloat162_rn(sums[4 * j + 2 * r] * inverse, sums[4 * j + 2 * r + 1] * inverse);
    }
  }
}

template <int kLora>
__global__ void __launch_bounds__(kThreads, 1)
    latent_attention_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap key_map,
                            const __grid_constant__ Args a) {
  extern __shared__ std::byte raw[];
  auto& s = *reinterpret_cast<Shared<kLora>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  Work work;
  if (!find_work(a, work)) return;
  if (threadIdx.x == 0) {
    barrier_init(&s.q_full, 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], 8);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    give_registers<40>();
    if (threadIdx.x == 256) produce<kLora>(s, &q_map, &key_map, a, work);
  } else {
    take_registers<232>();
    consume<kLora>(s, a, work);
  }
}

template <int kLora>
void launch(const Context& ctx, const MlaShape& shape, const PagedCache& cache, std::span<const SequenceSpan> sequences,
            const LatentAttention& in) {
  const int64_t width = shape.row_width(), rows = in.num_tokens * shape.num_heads;
  const auto kernel = latent_attention_kernel<kLora>;
  const size_t shared = sizeof(Shared<kLora>) + 1024;
  allow_shared<latent_attention_kernel<kLora>>(shared);
  const MatrixMap q{in.q, DType::kBF16, width, rows, 1, width * 2, 0, kRows};
  const MatrixMap keys{cache.base, DType::kBF16, width, int64_t(cache.num_blocks) * cache.block_tokens,
                       1,          width * 2,    0,     std::min(cache.block_tokens, kKeys)};
  const Args a{sequences.data(),
               int32_t(sequences.size()),
               shape.num_heads,
               cache.block_tokens,
               shape.softmax_scale * kLog2e,
               in.one_token_each,
               static_cast<__nv_bfloat16*>(in.out)};
  const int64_t tiles = in.one_token_each ? in.num_tokens * ceil_div(shape.num_heads, kRows)
                                          : ceil_div(rows, kRows) + int64_t(sequences.size());
  kernel<<<unsigned(tiles), kThreads, shared, stream_of(ctx)>>>(make_tensor_map(q), make_tensor_map(keys), a);
  check_launch(ctx, "latent_attention");
}

}  // namespace

bool can_run_latent_attention(const MlaShape& shape, const PagedCache& cache) {
  const int32_t block = cache.block_tokens;
  return (shape.kv_lora_rank == 512 || shape.kv_lora_rank == 128) && shape.rope_dim <= 64 && shape.rope_dim % 8 == 0 &&
         cache.dtype == DType::kBF16 && (block % kKeys == 0 || block == 8 || block == 16 || block == 32);
}

void run_latent_attention(const Context& ctx, const MlaShape& shape, const PagedCache& cache,
                          std::span<const SequenceSpan> sequences, const LatentAttention& rows) {
  if (rows.num_tokens == 0) return;
  shape.kv_lora_rank == 512 ? launch<512>(ctx, shape, cache, sequences, rows)
                            : launch<128>(ctx, shape, cache, sequences, rows);
}

}  // namespace tandem::kernels::cuda
