// The router in f32: products of all tokens and experts, cut along the inputs so that the GPU is full and added up in
// order; then one warp per token chooses as ref::choose_experts does: best groups, best experts in them, ties to the
// lower index.
#include "kernels/cuda/gate.h"

#include <algorithm>
#include <bit>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/plain_gemm.h"

namespace tandem::kernels::cuda {
namespace {

constexpr int kWarps = 4;  // of a block, a token each
constexpr int64_t kMaxCuts = 16, kCutRows = 4096, kMaxExperts = 1024;

// Products in f32: tiles of 128 tokens by 64 experts on 256 threads, 8x4 of them each, one cut of the inputs.
constexpr int kTokens = 128, kExperts = 64, kStep = 32, kThreads = 256;
__global__ void __launch_bounds__(kThreads)
    scores_kernel(const float* x, const float* weight, int rows, int experts, int hidden, int inputs, float* parts) {
  __shared__ __align__(16) float xs[kStep][kTokens], ws[kStep][kExperts];
  const int first_row = blockIdx.x * kTokens, first_expert = blockIdx.y * kExperts, begin = blockIdx.z * inputs;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float4 next_x[4], next_w[2];
  const auto load = [&](int k0) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = j * kThreads + threadIdx.x, row = first_row + i % kTokens, k = k0 + i / kTokens * 4;
      next_x[j] =
          row < rows ? *reinterpret_cast<const float4*>(x + int64_t(row) * hidden + k) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int i = j * kThreads + threadIdx.x, e = first_expert + i % kExperts, k = k0 + i / kExperts * 4;
      next_w[j] =
          e < experts ? *reinterpret_cast<const float4*>(weight + int64_t(e) * hidden + k) : make_float4(0, 0, 0, 0);
    }
  };
  float sum[8][4] = {};
  load(begin);
  for (int k0 = begin; k0 < begin + inputs; k0 += kStep) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = j * kThreads + threadIdx.x, r = i % kTokens, k = i / kTokens * 4;
      xs[k][r] = next_x[j].x;
      xs[k + 1][r] = next_x[j].y;
      xs[k + 2][r] = next_x[j].z;
      xs[k + 3][r] = next_x[j].w;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int i = j * kThreads + threadIdx.x, e = i % kExperts, k = i / kExperts * 4;
      ws[k][e] = next_w[j].x;
      ws[k + 1][e] = next_w[j].y;
      ws[k + 2][e] = next_w[j].z;
      ws[k + 3][e] = next_w[j].w;
    }
    __syncthreads();
    if (k0 + kStep < begin + inputs) load(k0 + kStep);
#pragma unroll 8
    for (int k = 0; k < kStep; ++k) {
      const float4 a0 = *reinterpret_cast<const float4*>(&xs[k][ty * 8]);
      const float4 a1 = *reinterpret_cast<const float4*>(&xs[k][ty * 8 + 4]);
      const float4 b = *reinterpret_cast<const float4*>(&ws[k][tx * 4]);
      const float a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w}, w[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * w[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = first_row + ty * 8 + i, e = first_expert + tx * 4;
    if (row >= rows || e >= experts) continue;  // experts is a multiple of four
    float4* to = reinterpret_cast<float4*>(parts + (int64_t(blockIdx.z) * rows + row) * experts + e);
    *to = make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
  }
}

// Index of the largest of values[0, count), the lowest of equals; the same in all lanes.
__device__ int warp_best(const float* values, int count) {
  const int lane = threadIdx.x % 32;
  int best = lane < count ? lane : 0;
  for (int i = lane + 32; i < count; i += 32) {
    if (values[i] > values[best]) best = i;
  }
  float value = values[best];
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other_value = __shfl_xor_sync(0xffffffffu, value, offset);
    const int other = __shfl_xor_sync(0xffffffffu, best, offset);
    if (other_value > value || (other_value == value && other < best)) {
      value = other_value;
      best = other;
    }
  }
  return best;
}

// Sets the choice of every expert outside the best groups to -infinity. One warp; group_scores [num_groups] is scratch.
__device__ void keep_best_groups(const GateConfig& c, float* choice, float* group_scores) {
  const int lane = threadIdx.x % 32, size = c.num_experts / c.num_groups;
  for (int g = lane; g < c.num_groups; g += 32) {
    float first = -INFINITY, second = -INFINITY;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      if (choice[e] > first) {
        second = first;
        first = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    group_scores[g] = c.method == GateMethod::kNoAuxTc && size > 1 ? first + second : first;
  }
  __syncwarp();
  uint64_t kept[4] = {};  // up to 256 groups
  for (int i = 0; i < c.top_k_groups; ++i) {
    const int best = warp_best(group_scores, c.num_groups);
    kept[best / 64] |= uint64_t(1) << (best % 64);
    __syncwarp();
    if (lane == 0) group_scores[best] = -INFINITY;
    __syncwarp();
  }
  for (int e = lane; e < c.num_experts; e += 32) {
    const int g = e / size;
    if ((kept[g / 64] >> (g % 64) & 1) == 0) choice[e] = -INFINITY;
  }
  __syncwarp();
}

// parts [cuts][T, E]: summands of the products.
__global__ void __launch_bounds__(kWarps * 32) choose_kernel(GateConfig c, const float* parts, int cuts, int rows,
                                                             const float* bias, int32_t* ids, float* weights) {
  extern __shared__ float shared[];  // of each warp: scores [E], choice [E], group scores
  const int lane = threadIdx.x % 32, token = blockIdx.x * kWarps + threadIdx.x / 32;
  if (token >= rows) return;
  float* scores = shared + threadIdx.x / 32 * (2 * c.num_experts + c.num_groups);
  float* choice = scores + c.num_experts;
  float* group_scores = choice + c.num_experts;
  for (int e = lane; e < c.num_experts; e += 32) {
    float sum = 0;
    for (int i = 0; i < cuts; ++i) sum += parts[(int64_t(i) * rows + token) * c.num_experts + e];
    scores[e] = c.scoring == GateScoring::kSigmoid ? 1.0f / (1.0f + expf(-sum)) : sum;
  }
  __syncwarp();
  if (c.scoring == GateScoring::kSoftmax) {
    const float top = scores[warp_best(scores, c.num_experts)];
    float sum = 0;
    for (int e = lane; e < c.num_experts; e += 32) sum += scores[e] = expf(scores[e] - top);
    sum = warp_sum(sum);
    for (int e = lane; e < c.num_experts; e += 32) scores[e] /= sum;
  }
  for (int e = lane; e < c.num_experts; e += 32) choice[e] = scores[e] + (bias != nullptr ? bias[e] : 0.0f);
  __syncwarp();
  if (c.method != GateMethod::kGreedy && c.top_k_groups < c.num_groups) keep_best_groups(c, choice, group_scores);
  float sum = 0;
  for (int k = 0; k < c.top_k; ++k) {
    const int best = warp_best(choice, c.num_experts);
    sum += scores[best];
    __syncwarp();
    if (lane == 0) {
      ids[int64_t(token) * c.top_k + k] = best;
      choice[best] = -INFINITY;
    }
    __syncwarp();
  }
  const bool normalize = c.normalize && c.top_k > 1;
  for (int k = lane; k < c.top_k; k += 32) {
    const int64_t at = int64_t(token) * c.top_k + k;
    const float score = scores[ids[at]];
    weights[at] = (normalize ? score / (sum + 1e-20f) : score) * c.scaling_factor;
  }
}

// Shapes that do not suit the kernel above.
void plain_scores(const Context& ctx, TensorView x, TensorView weight, int64_t cuts, float* parts) {
  const int64_t rows = x.dim(0), hidden = x.dim(1), experts = weight.dim(0);
  PlainGemm gemm;
  gemm.x = x.data();
  gemm.x_row_stride = gemm.w_row_stride = hidden;
  gemm.x_batch_stride = hidden / cuts;
  gemm.w = weight.as<const std::byte>();
  gemm.w_batch_stride = hidden / cuts * int64_t(sizeof(float));
  gemm.y = parts;
  gemm.y_row_stride = experts;
  gemm.y_batch_stride = rows * experts;
  gemm.max_rows = rows;
  gemm.n = experts;
  gemm.k = hidden / cuts;
  gemm.batch = cuts;
  run_plain_gemm(ctx, gemm);
}

int64_t cuts_of(int64_t rows) {
  return std::clamp<int64_t>(int64_t(std::bit_floor(uint64_t(kCutRows / rows))), 1, kMaxCuts);
}

}  // namespace

size_t gate_workspace_bytes(int64_t max_rows) {
  return size_t(std::max(max_rows, kCutRows) * kMaxExperts) * sizeof(float) + 64;
}

void gate(const Context& ctx, const GateConfig& config, TensorView x, TensorView weight, TensorView bias,
          TensorView ids, TensorView weights) {
  const int64_t rows = x.dim(0), hidden = x.dim(1), experts = config.num_experts;
  if (rows == 0) return;
  CHECK(config.num_groups <= 256 && experts <= kMaxExperts);
  const device::WorkspaceScope scope(*ctx.workspace);
  // Every cut has the same number of inputs, so hidden sizes that do not divide run in one.
  int64_t cuts = cuts_of(rows);
  while (hidden % cuts != 0) cuts /= 2;
  float* parts = ctx.workspace->take_array<float>(size_t(cuts * rows * experts));
  if (hidden % (cuts * kStep) == 0 && experts % 4 == 0) {
    const dim3 grid(unsigned(ceil_div(rows, kTokens)), unsigned(ceil_div(experts, kExperts)), unsigned(cuts));
    scores_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(x.as<float>(), weight.as<float>(), int(rows), int(experts),
                                                         int(hidden), int(hidden / cuts), parts);
    check_launch(ctx, "gate scores");
  } else {
    plain_scores(ctx, x, weight, cuts, parts);
  }
  const size_t shared = size_t(kWarps) * size_t(2 * experts + config.num_groups) * sizeof(float);
  CHECK(shared <= 48 * 1024);
  choose_kernel<<<unsigned(ceil_div(rows, kWarps)), kWarps * 32, shared, stream_of(ctx)>>>(
      config, parts, int(cuts), int(rows), bias.as<float>(), ids.as<int32_t>(), weights.as<float>());
  check_launch(ctx, "gate");
}

}  // namespace tandem::kernels::cuda
