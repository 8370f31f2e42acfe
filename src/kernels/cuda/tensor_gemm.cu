// Tiles of 128 columns by 64 or 128 rows of y. One warp feeds stages of shared memory through the copy engine, one
// warpgroup for every 64 rows multiplies. K goes in steps of 128 bytes: for FP8 that is one block of scales, after
// which the sum is scaled into f32 registers (DeepSeek-V3, arXiv 2412.19437, section 3.3.2); bf16 sums run through.
#include <algorithm>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_gemm.h"
#include "kernels/cuda/tensor_map.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kColumns = 128, kStepBytes = 128, kBlock = 128;
constexpr int kBandRows = 32;       // tiles of FP8 rows that stay in the L2 cache: 29 MB at 7,168 inputs
constexpr int64_t kFullGrid = 132;  // multiprocessors of an H100 or H200

struct Places {
  int32_t of_group[kMaxGroups];
};

struct Args {
  const float* x_scales;
  int64_t x_scale_stride;
  const std::byte* w_scales;  // of place 0
  int64_t place_bytes;
  int32_t rows, n, k_steps, scale_cols, num_groups;
  int32_t row_tiles, columns, band_rows;  // of the grid
  const int32_t* slot_begin;
  const int32_t* place_of_group;  // null: Places says
  int32_t x_group_cols;           // elements from group to group in a row of x; 0 where rows are grouped
  int64_t y_row_stride, y_group_stride;
  void* y;
  bool y_is_bf16, add;
};

// Where a block's tile lies: its group and rows.
struct Tile {
  int group = -1, first_row = 0, end_row = 0, column = 0;
};

// Blocks go through all columns of some rows of tiles before the next rows: what they read of x stays in the L2 cache,
// and weights come from memory once for these rows.
template <int kRows>
__device__ Tile find_tile(const Args& a) {
  const int band = blockIdx.x / (a.band_rows * a.columns), first = band * a.band_rows;
  const int height = min(a.band_rows, a.row_tiles - first), in_band = blockIdx.x - first * a.columns;
  const int row_tile = first + in_band % height;
  Tile tile;
  tile.column = in_band / height;
  if (a.slot_begin == nullptr) {
    const int tiles = (a.rows + kRows - 1) / kRows;
    tile.group = row_tile / tiles;
    tile.first_row = row_tile % tiles * kRows;
    tile.end_row = a.rows;
    return tile;
  }
  int left = row_tile;
  for (int g = 0; g < a.num_groups; ++g) {
    const int begin = a.slot_begin[g], end = a.slot_begin[g + 1], tiles = (end - begin + kRows - 1) / kRows;
    if (left < tiles) {
      tile.group = g;
      tile.first_row = begin + left * kRows;
      tile.end_row = end;
      return tile;
    }
    left -= tiles;
  }
  return tile;
}

template <bool kFp8>
__device__ void multiply(float (&d)[64], const std::byte* x, const std::byte* w, bool clear) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // 32 bytes of K each
    const uint64_t a = tile_descriptor(x + i * 32), b = tile_descriptor(w + i * 32);
    const int accumulate = i > 0 || !clear;
    if constexpr (kFp8) {
      wgmma_fp8_n128(d, a, b, accumulate);
    } else {
      wgmma_bf16_n128(d, a, b, accumulate);
    }
  }
  wgmma_commit();
}

__device__ void store_pair(const Args& a, int64_t row, int group, int column, float first, float second) {
  const int64_t at = row * a.y_row_stride + group * a.y_group_stride + column;
  if (a.y_is_bf16) {
    *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(a.y) + at) = __floats2bfloat162_rn(first, second);
    return;
  }
  float2* to = reinterpret_cast<float2*>(static_cast<float*>(a.y) + at);
  if (a.add) {
    const float2 before = *to;
    first += before.x;
    second += before.y;
  }
  *to = make_float2(first, second);
}

template <int kRows, int kStages>
struct alignas(1024) Shared {
  std::byte x[kStages][kRows * kStepBytes];
  std::byte w[kStages][kColumns * kStepBytes];
  uint64_t full[kStages], empty[kStages];
};

// What a thread knows of its two rows of the tile.
struct Rows {
  int64_t first = 0;  // the other one is eight further
  bool in[2] = {};
};

// Scales of one step.
struct Scales {
  float x[2] = {}, w = 0;

  __device__ void load(const Args& a, const Rows& rows, const float* of_w, int k) {
    const float* of_x = a.x_scales + k * a.x_scale_stride + rows.first;
    if (rows.in[0]) x[0] = of_x[0];
    if (rows.in[1]) x[1] = of_x[8];
    w = of_w[k];
  }
  __device__ void add(float (&sum)[64], const float (&part)[64]) const {
    const float scale[2] = {x[0] * w, x[1] * w};
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] += part[i] * scale[i / 2 % 2];
  }
};

// FP8: a step multiplies into one set of registers while the step before is scaled out of the other, so that the tensor
// cores never wait for the scaling. Scales are asked for when their step begins.
template <int kRows, int kStages>
__device__ void multiply_scaled(Shared<kRows, kStages>& s, const Args& a, const Rows& rows, const float* w_scales,
                                int warpgroup, float (&sum)[64]) {
  float even[64], odd[64];
  Scales of_even, of_odd;
  const auto begin = [&](int k, float(&part)[64], Scales& scales) {
    const int stage = k % kStages;
    scales.load(a, rows, w_scales, k);
    barrier_wait(&s.full[stage], k / kStages & 1);
    multiply<true>(part, s.x[stage] + warpgroup * 64 * kStepBytes, s.w[stage], true);
  };
  const auto finish = [&](int k, float(&part)[64], const Scales& scales) {
    pin_registers(part);
    if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty[k % kStages]);
    scales.add(sum, part);
  };
  begin(0, even, of_even);
  int k = 0;
  for (; k + 2 < a.k_steps; k += 2) {
    begin(k + 1, odd, of_odd);
    wgmma_wait<1>();
    finish(k, even, of_even);
    begin(k + 2, even, of_even);
    wgmma_wait<1>();
    finish(k + 1, odd, of_odd);
  }
  if (k + 1 < a.k_steps) {
    begin(k + 1, odd, of_odd);
    wgmma_wait<1>();
    finish(k, even, of_even);
    wgmma_wait<0>();
    finish(k + 1, odd, of_odd);
  } else {
    wgmma_wait<0>();
    finish(k, even, of_even);
  }
}

template <int kRows, int kStages>
__device__ void multiply_plain(Shared<kRows, kStages>& s, const Args& a, int warpgroup, float (&sum)[64]) {
  for (int k = 0; k < a.k_steps; ++k) {
    const int stage = k % kStages;
    barrier_wait(&s.full[stage], k / kStages & 1);
    multiply<false>(sum, s.x[stage] + warpgroup * 64 * kStepBytes, s.w[stage], false);
    // The step before is done: its stage can be filled again.
    wgmma_wait<1>();
    if (k > 0 && threadIdx.x % 32 == 0) barrier_arrive(&s.empty[(k - 1) % kStages]);
  }
  wgmma_wait<0>();
  pin_registers(sum);
}

template <bool kFp8, int kRows, int kStages>
__device__ void consume(Shared<kRows, kStages>& s, const Args& a, const Tile& tile, int place, int warpgroup) {
  const int lane = threadIdx.x % 32;
  Rows rows;
  rows.first = tile.first_row + warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  rows.in[0] = rows.first < tile.end_row;
  rows.in[1] = rows.first + 8 < tile.end_row;
  float sum[64] = {};
  if constexpr (kFp8) {
    const auto* w_scales =
        reinterpret_cast<const float*>(a.w_scales + place * a.place_bytes) + int64_t(tile.column) * a.scale_cols;
    multiply_scaled(s, a, rows, w_scales, warpgroup, sum);
  } else {
    multiply_plain(s, a, warpgroup, sum);
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const int n = tile.column * kColumns + j * 8 + lane % 4 * 2;
    if (n >= a.n) continue;
    if (rows.in[0]) store_pair(a, rows.first, tile.group, n, sum[4 * j], sum[4 * j + 1]);
    if (rows.in[1]) store_pair(a, rows.first + 8, tile.group, n, sum[4 * j + 2], sum[4 * j + 3]);
  }
}

template <bool kFp8, int kRows, int kStages>
__global__ void __launch_bounds__(kRows * 2 + 128, 1)
    tensor_gemm_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                       const __grid_constant__ Args a, const __grid_constant__ Places places) {
  constexpr int kGroups = kRows / 64, kElements = kFp8 ? 128 : 64;
  extern __shared__ std::byte raw[];
  auto& s = *reinterpret_cast<Shared<kRows, kStages>*>((reinterpret_cast<uintptr_t>(raw) + 1023) / 1024 * 1024);
  const Tile tile = find_tile<kRows>(a);
  if (tile.group < 0) return;
  const int place = a.place_of_group != nullptr ? a.place_of_group[tile.group] : places.of_group[tile.group];
  const int column = tile.column * kColumns;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], kGroups * 4);  // each warp has its own part of the products
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == kGroups) {
    if constexpr (kRows == 128) give_registers<40>();
    if (threadIdx.x % 128 != 0) return;
    for (int k = 0; k < a.k_steps; ++k) {
      const int stage = k % kStages, round = k / kStages;
      if (round > 0) barrier_wait(&s.empty[stage], (round - 1) & 1);
      barrier_expect(&s.full[stage], (kRows + kColumns) * kStepBytes);
      tma_load_3d(s.x[stage], &x_map, &s.full[stage], k * kElements + tile.group * a.x_group_cols, tile.first_row, 0);
      tma_load_3d(s.w[stage], &w_map, &s.full[stage], k * kElements, column, place);
    }
    return;
  }
  if constexpr (kRows == 128) take_registers<232>();  // with 64 rows there are enough
  consume<kFp8, kRows, kStages>(s, a, tile, place, warpgroup);
}

int64_t row_tiles_of(const TensorGemm& g, int rows) {
  return g.slot_begin != nullptr ? ceil_div(g.rows, rows) + g.num_groups : ceil_div(g.rows, rows) * g.num_groups;
}

template <bool kFp8, int kRows, int kStages>
void launch(const Context& ctx, const TensorGemm& g, Args& args, const Places& places) {
  const int64_t bytes = kFp8 ? 1 : 2;
  MatrixMap x{g.x, g.dtype, g.x_row_stride, g.rows, 1, g.x_row_stride * bytes, 0, kRows};
  MatrixMap w{g.w, g.dtype, g.k, g.n, g.num_places, g.k * bytes, g.place_bytes, kColumns};
  const size_t shared = sizeof(Shared<kRows, kStages>) + 1024;
  const auto kernel = tensor_gemm_kernel<kFp8, kRows, kStages>;
  allow_shared<tensor_gemm_kernel<kFp8, kRows, kStages>>(shared);
  args.row_tiles = int32_t(row_tiles_of(g, kRows));
  args.columns = int32_t(ceil_div(g.n, kColumns));
  args.band_rows = std::min(args.row_tiles, kFp8 ? kBandRows : kBandRows / 2);
  kernel<<<unsigned(args.row_tiles * args.columns), kRows * 2 + 128, shared, stream_of(ctx)>>>(
      make_tensor_map(x), make_tensor_map(w), args, places);
  check_launch(ctx, g.name);
}

}  // namespace

bool can_run_tensor_gemm(DType dtype, int64_t n, int64_t k) {
  if (dtype == DType::kF8E4M3) return k % 16 == 0 && n % 2 == 0;
  return dtype == DType::kBF16 && k % 8 == 0 && n % 2 == 0;
}

void run_tensor_gemm(const Context& ctx, const TensorGemm& g) {
  if (g.rows == 0) return;
  CHECK(can_run_tensor_gemm(g.dtype, g.n, g.k) && g.num_groups <= kMaxGroups);
  const bool fp8 = g.dtype == DType::kF8E4M3;
  Places places{};
  for (int i = 0; i < g.num_groups; ++i) places.of_group[i] = g.place_of_group != nullptr ? g.place_of_group[i] : i;
  Args a{};
  a.x_scales = g.x_scales;
  a.x_scale_stride = g.x_scale_stride;
  a.w_scales = g.w + g.scale_offset;
  a.place_bytes = g.num_places > 1 ? g.place_bytes : 0;
  a.rows = int32_t(g.rows);
  a.n = int32_t(g.n);
  a.k_steps = int32_t(ceil_div(g.k, fp8 ? 128 : 64));
  a.scale_cols = int32_t(ceil_div(g.k, kBlock));
  a.num_groups = g.num_groups;
  a.slot_begin = g.slot_begin;
  a.place_of_group = g.gpu_place_of_group;
  a.x_group_cols = int32_t(g.x_group_stride);
  a.y_row_stride = g.y_row_stride;
  a.y_group_stride = g.y_group_stride;
  a.y = g.y;
  a.y_is_bf16 = g.y_is_bf16;
  a.add = g.add;
  // Where 128 rows leave multiprocessors idle, tiles of 64 rows take half the time.
  const bool few = g.rows <= 64 || row_tiles_of(g, 64) * ceil_div(g.n, kColumns) <= kFullGrid;
  if (fp8) {
    few ? launch<true, 64, 8>(ctx, g, a, places) : launch<true, 128, 6>(ctx, g, a, places);
  } else {
    few ? launch<false, 64, 8>(ctx, g, a, places) : launch<false, 128, 6>(ctx, g, a, places);
  }
}

}  // namespace tandem::kernels::cuda
