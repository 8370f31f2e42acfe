// A block attends for 64 query rows (heads of a few tokens of one sequence) over keys in blocks of 64. Keys and values
// are the same bytes: a key block lies in shared memory once, as chunks of 64 columns, and is read as K^T and as V.
//   producer             copies key blocks, the even ones into one place, the odd ones into the other: one thread
//   through
//                        the copy engine, or, of an FP8 cache, a warpgroup that widens them to bf16 on the way
//   warpgroups 0 and 1   score the even and the odd blocks, and sum the first and the second half of the value columns
// over all blocks in their order. With 64 rows of 512 sums two warpgroups' registers are full, which is why the columns
// are split and not the rows. A pair of blocks goes back and forth, so that one multiplies while the other one works
// out probabilities; `p0`, `p1` are the probabilities of the pair's blocks, `m0`, `m1` the rows' maxima after each:
//   0: score even | m0, p0        | p0 x V |            wait for p1 | p1 x V
//   1:            | score odd | wait for p0 | p0 x V, meanwhile m1, p1 | p1 x V
// p lies over the keys' rotated part, which nobody needs once the block is scored. Half a block's columns go back to
// the producer as soon as their last reader is done.
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kRows = 64, kKeys = 64, kStages = 2, kThreads = 384, kProducers = 128;
constexpr int kChunkBytes = 64 * 128;  // 64 rows of 64 bf16
constexpr float kLog2e = 1.4426950408889634f;

template <int kLora>
struct alignas(1024) Shared {
  static constexpr int kChunks = kLora / 64 + 1;  // the last holds the rotated part, then the probabilities
  static constexpr int kFirst = kLora / 128;  // chunks of warpgroup 0's value columns; the others are the second half
  std::byte q[kChunks][kChunkBytes];
  std::byte keys[kStages][kChunks][kChunkBytes];
  float top[kStages][kRows];                             // m0, m1
  uint64_t q_full, full[kStages][2], empty[kStages][2];  // of each half of a block's chunks
};

struct Args {
  const SequenceSpan* sequences;
  int32_t num_sequences, heads, block_tokens;
  float scale;  // times log2(e): powers of two are what the hardware has
  bool one_token_each;
  __nv_bfloat16* out;
  const std::byte* f8_cache;  // of kF8E4M3: its rows of f8_width bytes
  int32_t f8_width;
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
__device__ void load_queries(Shared<kLora>& s, const CUtensorMap* q_map, const Work& work) {
  using S = Shared<kLora>;
  barrier_expect(&s.q_full, S::kChunks * kChunkBytes);
  for (int c = 0; c < S::kChunks; ++c) tma_load_3d(s.q[c], q_map, &s.q_full, c * 64, work.row, 0);
}

// Rows of the cache by key.
struct KeyRows {
  const int32_t* table;
  int block_tokens, last_block;

  __device__ KeyRows(const Args& a, const Work& work) : table(work.block_table), block_tokens(a.block_tokens) {
    const int last_limit = work.first_limit + (work.end_row - 1 - work.sequence_row) / a.heads;
    last_block = (last_limit - 1) / a.block_tokens;
  }
  // Keys beyond the table's end are masked later; any row that exists will do.
  __device__ int operator()(int key) const {
    return table[min(key / block_tokens, last_block)] * block_tokens + key % block_tokens;
  }
};

template <int kLora>
__device__ void produce(Shared<kLora>& s, const CUtensorMap* q_map, const CUtensorMap* key_map, const Args& a,
                        const Work& work) {
  using S = Shared<kLora>;
  load_queries<kLora>(s, q_map, work);
  const KeyRows row_of(a, work);
  const int box = min(a.block_tokens, kKeys);
  for (int b = 0; b < work.num_blocks; ++b) {
    const int stage = b % kStages, round = b / kStages;
    for (int half = 0; half < 2; ++half) {
      const int begin = half == 0 ? 0 : S::kFirst, end = half == 0 ? S::kFirst : S::kChunks;
      if (round > 0) barrier_wait(&s.empty[stage][half], (round - 1) & 1);
      barrier_expect(&s.full[stage][half], (end - begin) * kChunkBytes);
      for (int at = 0; at < kKeys; at += box) {
        const int row = row_of(b * kKeys + at);
        for (int c = begin; c < end; ++c) {
          tma_load_3d(s.keys[stage][c] + at * 128, key_map, &s.full[stage][half], c * 64, row, 0);
        }
      }
    }
  }
}

// Two FP8 values of the low half of `two` as bf16, exactly.
__device__ uint32_t widen_pair(uint32_t two) {
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(two & 0xffff), __NV_E4M3);
  const float2 values = __half22float2(__half2(halves));
  const __nv_bfloat162 out = __floats2bfloat162_rn(values.x, values.y);
  return reinterpret_cast<const uint32_t&>(out);
}
__device__ uint4 widen_eight(uint32_t low, uint32_t high) {
  return make_uint4(widen_pair(low), widen_pair(low >> 16), widen_pair(high), widen_pair(high >> 16));
}

// Copies chunks [kBegin, kEnd) of a block of keys from an FP8 cache. A thread has 16 values of two rows in each chunk;
// they are on their way while the place for them is still being read.
template <int kLora, int kBegin, int kEnd>
__device__ void widen_chunks(Shared<kLora>& s, const Args& a, const std::byte* const (&rows)[2], int b, int half) {
  constexpr int kChunks = kEnd - kBegin;
  const int thread = threadIdx.x - 256, piece = thread % 4, stage = b % kStages, round = b / kStages;
  uint4 pieces[kChunks][2];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int column = (kBegin + c) * 64 + piece * 16;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      pieces[c][r] = make_uint4(0, 0, 0, 0);  // beyond the row: what is multiplied by zero must be a number
      if (column < a.f8_width) pieces[c][r] = __ldcg(reinterpret_cast<const uint4*>(rows[r] + column));
    }
  }
  if (round > 0) barrier_wait(&s.empty[stage][half], (round - 1) & 1);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = thread / 4 + r * kKeys / 2, swizzle = row % 8 * 16;
      std::byte* to = s.keys[stage][kBegin + c] + row * 128;
      *reinterpret_cast<uint4*>(to + (piece * 32 ^ swizzle)) = widen_eight(pieces[c][r].x, pieces[c][r].y);
      *reinterpret_cast<uint4*>(to + ((piece * 32 + 16) ^ swizzle)) = widen_eight(pieces[c][r].z, pieces[c][r].w);
    }
  }
  fence_async_shared();
  __syncwarp();
  if (thread % 32 == 0) barrier_arrive(&s.full[stage][half]);
}

template <int kLora>
__device__ void produce_widened(Shared<kLora>& s, const CUtensorMap* q_map, const Args& a, const Work& work) {
  using S = Shared<kLora>;
  if (threadIdx.x == 256) load_queries<kLora>(s, q_map, work);
  const KeyRows row_of(a, work);
  for (int b = 0; b < work.num_blocks; ++b) {
    const int key = b * kKeys + (threadIdx.x - 256) / 4;
    const std::byte* const rows[2] = {a.f8_cache + int64_t(row_of(key)) * a.f8_width,
                                      a.f8_cache + int64_t(row_of(key + kKeys / 2)) * a.f8_width};
    widen_chunks<kLora, 0, S::kFirst>(s, a, rows, b, 0);
    widen_chunks<kLora, S::kFirst, S::kChunks>(s, a, rows, b, 1);
  }
}

template <int kLora, int kBegin, int kEnd>
__device__ void score_chunks(Shared<kLora>& s, int stage, float (&d)[32]) {
#pragma unroll
  for (int c = kBegin; c < kEnd; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      wgmma_bf16_n64<false>(d, tile_descriptor(s.q[c] + i * 32), tile_descriptor(s.keys[stage][c] + i * 32), c + i > 0);
    }
  }
}

// Scores of a block's keys, once its halves are there.
template <int kLora>
__device__ void score(Shared<kLora>& s, int stage, int round, float (&d)[32]) {
  using S = Shared<kLora>;
  barrier_wait(&s.full[stage][0], round & 1);
  wgmma_fence();
  score_chunks<kLora, 0, S::kFirst>(s, stage, d);
  barrier_wait(&s.full[stage][1], round & 1);
  wgmma_fence();
  score_chunks<kLora, S::kFirst, S::kChunks>(s, stage, d);
  wgmma_commit();
  wgmma_wait<0>();
  pin_registers(d);
}

// Begins sums += p x V over a group's columns; done with wgmma_wait and pin_registers.
template <int kLora, int kCount>
__device__ void begin_values(Shared<kLora>& s, int stage, int group, float (&d)[kCount]) {
  using S = Shared<kLora>;
  const std::byte* p = s.keys[stage][S::kChunks - 1];
  const std::byte* values = s.keys[stage][group * S::kFirst];
  pin_registers(d);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) {
    const uint64_t a = tile_descriptor(p + i * 32), b = chunked_descriptor(values + i * 16 * 128, kChunkBytes);
    if constexpr (kLora == 512) {
      wgmma_bf16_n256_kn(d, a, b, 1);
    } else {
      wgmma_bf16_n64<true>(d, a, b, 1);
    }
  }
  wgmma_commit();
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

// The same in all threads of a warp, which the compiler is told so.
__device__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// What a thread keeps of its two rows.
template <int kCount>
struct Rows {
  int at[2];     // in the tile
  int limit[2];  // keys that each sees
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  float sums[kCount] = {};

  // The maxima are now `next`: what was summed with the ones before shrinks, `sums` by the caller.
  __device__ void move_top(const float (&next)[2], float (&shrink)[2]) {
    for (int r = 0; r < 2; ++r) {
      shrink[r] = exp2f(top[r] - next[r]);
      total[r] *= shrink[r];
      top[r] = next[r];
    }
  }
  // Maxima settle after a few blocks; then there is nothing to rescale.
  __device__ void shrink_sums(const float (&shrink)[2]) {
    if (!__any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] *= shrink[i / 2 % 2];
  }
};

// Scales and masks the scores of keys first_key ..; returns each row's largest.
template <int kCount>
__device__ void mask(const Rows<kCount>& rows, float scale, int first_key, float (&d)[32], float (&best)[2]) {
  best[0] = best[1] = -INFINITY;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int r = i / 2 % 2, key = first_key + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
    d[i] = key < rows.limit[r] ? d[i] * scale : -INFINITY;
    best[r] = fmaxf(best[r], d[i]);
  }
  for (int r = 0; r < 2; ++r) best[r] = quad_max(best[r]);
}

// Scores become probabilities in p, as seen by wgmma of any warp that meets this one later.
template <int kCount>
__device__ void put_probabilities(Rows<kCount>& rows, std::byte* p, const float (&d)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    const int r = i / 2 % 2;
    const float first = exp2f(d[i] - rows.top[r]), second = exp2f(d[i + 1] - rows.top[r]);
    rows.total[r] += first + second;
    put_pair(p, rows.at[r], i / 4 * 8 + threadIdx.x % 4 * 2, first, second);
  }
  fence_async_shared();
}

template <int kCount>
__device__ void put_tops(const Rows<kCount>& rows, float* top) {
  if (threadIdx.x % 4 != 0) return;
  for (int r = 0; r < 2; ++r) top[rows.at[r]] = rows.top[r];
}

// Named barriers: a pair's p0 and m0 are there, its p1 and m1, and one for each warpgroup's own threads.
constexpr int kFirstDone = 1, kSecondDone = 2, kOwn = 3;

// Adds p x V of a stage and gives back what this group was the last to read.
template <int kLora, int kCount>
__device__ void end_values(Shared<kLora>& s, int stage, int group, Rows<kCount>& rows) {
  wgmma_wait<0>();
  pin_registers(rows.sums);
  if (threadIdx.x % 32 != 0) return;
  if (group == 0) barrier_arrive(&s.empty[stage][0]);
  barrier_arrive(&s.empty[stage][1]);
}

// The even block of a pair in the group that scores it.
template <int kLora, int kCount>
__device__ void take_even(Shared<kLora>& s, const Args& a, int pair, Rows<kCount>& rows) {
  float d[32], next[2], shrink[2];
  score<kLora>(s, 0, pair, d);
  mask(rows, a.scale, pair * 2 * kKeys, d, next);
  for (int r = 0; r < 2; ++r) next[r] = fmaxf(rows.top[r], next[r]);
  rows.move_top(next, shrink);
  rows.shrink_sums(shrink);
  put_tops(rows, s.top[0]);
  put_probabilities(rows, s.keys[0][Shared<kLora>::kChunks - 1], d);
  named_arrive(kFirstDone, 256);
  named_barrier(kOwn, 128);
  begin_values<kLora>(s, 0, 0, rows.sums);
  end_values<kLora>(s, 0, 0, rows);
}

// What the other group did with a block: its maxima are this group's, and begins to add p x V.
template <int kLora, int kCount>
__device__ void follow(Shared<kLora>& s, int stage, int pair, int group, Rows<kCount>& rows) {
  named_barrier(stage == 0 ? kFirstDone : kSecondDone, 256);
  const float next[2] = {s.top[stage][rows.at[0]], s.top[stage][rows.at[1]]};
  float shrink[2];
  rows.move_top(next, shrink);
  rows.shrink_sums(shrink);
  barrier_wait(&s.full[stage][group], pair & 1);  // long over; so that this group, too, has seen the copies end
  begin_values<kLora>(s, stage, group, rows.sums);
}

template <int kLora, int kCount>
__device__ void consume_even(Shared<kLora>& s, const Args& a, int num_blocks, Rows<kCount>& rows) {
  for (int pair = 0; pair < num_blocks / 2; ++pair) {
    take_even<kLora>(s, a, pair, rows);
    follow<kLora>(s, 1, pair, 0, rows);
    end_values<kLora>(s, 1, 0, rows);
  }
  if (num_blocks % 2 != 0) take_even<kLora>(s, a, num_blocks / 2, rows);
}

template <int kLora, int kCount>
__device__ void consume_odd(Shared<kLora>& s, const Args& a, int num_blocks, Rows<kCount>& rows) {
  for (int pair = 0; pair < num_blocks / 2; ++pair) {
    float d[32], next[2], shrink[2];
    score<kLora>(s, 1, pair, d);
    mask(rows, a.scale, (pair * 2 + 1) * kKeys, d, next);
    follow<kLora>(s, 0, pair, 1, rows);
    for (int r = 0; r < 2; ++r) next[r] = fmaxf(rows.top[r], next[r]);
    rows.move_top(next, shrink);
    put_tops(rows, s.top[1]);
    put_probabilities(rows, s.keys[1][Shared<kLora>::kChunks - 1], d);
    named_arrive(kSecondDone, 256);
    named_barrier(kOwn + 1, 128);
    end_values<kLora>(s, 0, 1, rows);
    rows.shrink_sums(shrink);  // not before: they were being added to
    begin_values<kLora>(s, 1, 1, rows.sums);
    end_values<kLora>(s, 1, 1, rows);
  }
  if (num_blocks % 2 == 0) return;
  follow<kLora>(s, 0, num_blocks / 2, 1, rows);
  end_values<kLora>(s, 0, 1, rows);
}

template <int kLora>
__device__ void consume(Shared<kLora>& s, const Args& a, const Work& work) {
  constexpr int kCount = kLora / 4;  // sums of a thread: 64 rows by half of the columns over 128 threads
  const int group = uniform(threadIdx.x / 128), lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  Rows<kCount> rows{.at = {warp * 16 + lane / 4, warp * 16 + lane / 4 + 8}};
  for (int r = 0; r < 2; ++r) {
    rows.limit[r] = work.first_limit + (work.row + rows.at[r] - work.sequence_row) / a.heads;
  }
  barrier_wait(&s.q_full, 0);
  if (group == 0) {
    consume_even<kLora>(s, a, uniform(work.num_blocks), rows);
  } else {
    consume_odd<kLora>(s, a, uniform(work.num_blocks), rows);
  }
  for (int r = 0; r < 2; ++r) rows.total[r] = quad_sum(rows.total[r]);
  named_barrier(kFirstDone, 256);  // the maxima have been read
  if (lane % 4 == 0) {
    for (int r = 0; r < 2; ++r) s.top[group][rows.at[r]] = rows.total[r];
  }
  named_barrier(kSecondDone, 256);
  for (int r = 0; r < 2; ++r) {
    const int row = work.row + rows.at[r];
    if (row >= work.end_row) continue;
    const float inverse = 1.0f / (s.top[0][rows.at[r]] + s.top[1][rows.at[r]]);
    __nv_bfloat16* out = a.out + int64_t(row) * kLora + group * (kLora / 2) + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      *reinterpret_cast<__nv_bfloat162*>(out + j * 8) =
          __floats2bfloat162_rn(rows.sums[4 * j + 2 * r] * inverse, rows.sums[4 * j + 2 * r + 1] * inverse);
    }
  }
}

template <int kLora, bool kFp8>
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
      for (int half = 0; half < 2; ++half) {
        barrier_init(&s.full[i][half], kFp8 ? kProducers / 32 : 1);
        barrier_init(&s.empty[i][half], half == 0 ? 4 : 8);  // warps that read it last
      }
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    if constexpr (kFp8) {
      give_registers<88>();
      produce_widened<kLora>(s, &q_map, a, work);
    } else {
      give_registers<40>();
      if (threadIdx.x == 256) produce<kLora>(s, &q_map, &key_map, a, work);
    }
  } else {
    take_registers<kFp8 ? 208 : 232>();
    consume<kLora>(s, a, work);
  }
}

template <int kLora, bool kFp8>
void launch(const Context& ctx, const MlaShape& shape, const PagedCache& cache, std::span<const SequenceSpan> sequences,
            const LatentAttention& in) {
  const int64_t width = shape.row_width(), rows = in.num_tokens * shape.num_heads;
  const auto kernel = latent_attention_kernel<kLora, kFp8>;
  const size_t shared = sizeof(Shared<kLora>) + 1024;
  allow_shared<latent_attention_kernel<kLora, kFp8>>(shared);
  const CUtensorMap q = make_tensor_map({in.q, DType::kBF16, width, rows, 1, width * 2, 0, kRows});
  const MatrixMap keys{cache.base, DType::kBF16, width, int64_t(cache.num_blocks) * cache.block_tokens,
                       1,          width * 2,    0,     std::min(cache.block_tokens, kKeys)};
  const Args a{sequences.data(),
               int32_t(sequences.size()),
               shape.num_heads,
               cache.block_tokens,
               shape.softmax_scale * kLog2e,
               in.one_token_each,
               static_cast<__nv_bfloat16*>(in.out),
               static_cast<const std::byte*>(cache.base),
               int32_t(width)};
  const int64_t tiles = in.one_token_each ? in.num_tokens * ceil_div(shape.num_heads, kRows)
                                          : ceil_div(rows, kRows) + int64_t(sequences.size());
  kernel<<<unsigned(tiles), kThreads, shared, stream_of(ctx)>>>(q, kFp8 ? q : make_tensor_map(keys), a);
  check_launch(ctx, "latent_attention");
}

}  // namespace

bool can_run_latent_attention(const MlaShape& shape, const PagedCache& cache) {
  const int32_t block = cache.block_tokens;
  return (shape.kv_lora_rank == 512 || shape.kv_lora_rank == 128) && shape.rope_dim <= 64 && shape.rope_dim % 8 == 0 &&
         (cache.dtype == DType::kBF16 || (cache.dtype == DType::kF8E4M3 && shape.row_width() % 16 == 0)) &&
         (block % kKeys == 0 || block == 8 || block == 16 || block == 32);
}

void run_latent_attention(const Context& ctx, const MlaShape& shape, const PagedCache& cache,
                          std::span<const SequenceSpan> sequences, const LatentAttention& rows) {
  if (rows.num_tokens == 0) return;
  if (cache.dtype == DType::kF8E4M3) {
    return shape.kv_lora_rank == 512 ? launch<512, true>(ctx, shape, cache, sequences, rows)
                                     : launch<128, true>(ctx, shape, cache, sequences, rows);
  }
  shape.kv_lora_rank == 512 ? launch<512, false>(ctx, shape, cache, sequences, rows)
                            : launch<128, false>(ctx, shape, cache, sequences, rows);
}

}  // namespace tandem::kernels::cuda
