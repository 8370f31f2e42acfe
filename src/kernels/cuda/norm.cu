// Embedding, RMSNorm, SwiGLU and the gathering of rows: one block per row, bound by memory.
#include "kernels/cuda/launch.cuh"

namespace tandem::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(const int32_t* ids, Elements table, int64_t hidden, float* y) {
  const int64_t from = int64_t(ids[blockIdx.x]) * hidden, to = int64_t(blockIdx.x) * hidden;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) y[to + i] = table.load(from + i);
}

__global__ void gather_rows_kernel(const float* x, const int32_t* rows, int64_t width, float* y) {
  const int64_t from = int64_t(rows[blockIdx.x]) * width, to = int64_t(blockIdx.x) * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) y[to + i] = x[from + i];
}

__global__ void rms_norm_kernel(const float* x, int64_t stride, const float* weight, float epsilon, int64_t hidden,
                                Elements y, float* y_f32) {
  __shared__ float parts[32];
  const float* row = x + int64_t(blockIdx.x) * stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) sum += row[i] * row[i];
  const float factor = 1.0f / sqrtf(block_sum(sum, parts) / float(hidden) + epsilon);
  const int64_t to = int64_t(blockIdx.x) * hidden;
  for (int64_t i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float value = row[i] * factor * weight[i];
    y.store(to + i, value);
    if (y_f32 != nullptr) y_f32[to + i] = value;
  }
}

// The same with the row held in registers, four values at a time.
constexpr int kMaxVectors = 8;  // of a thread: rows up to 8,192 wide
__global__ void __launch_bounds__(kThreads)
    rms_norm_vector_kernel(const float* x, int64_t stride, const float* weight, float epsilon, int hidden, Elements y,
                           float* y_f32) {
  __shared__ float parts[32];
  const float4* row = reinterpret_cast<const float4*>(x + int64_t(blockIdx.x) * stride);
  const int vectors = hidden / 4;
  float4 v[kMaxVectors];
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kMaxVectors; ++j) {
    const int i = j * kThreads + threadIdx.x;
    v[j] = i < vectors ? row[i] : make_float4(0, 0, 0, 0);
    sum += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
  }
  const float factor = 1.0f / sqrtf(block_sum(sum, parts) / float(hidden) + epsilon);
  const int64_t to = int64_t(blockIdx.x) * hidden;
#pragma unroll
  for (int j = 0; j < kMaxVectors; ++j) {
    const int i = j * kThreads + threadIdx.x;
    if (i >= vectors) continue;
    const float4 w = reinterpret_cast<const float4*>(weight)[i];
    const float4 out =
        make_float4(v[j].x * factor * w.x, v[j].y * factor * w.y, v[j].z * factor * w.z, v[j].w * factor * w.w);
    y.store4(to + i * 4, out);
    if (y_f32 != nullptr) *reinterpret_cast<float4*>(y_f32 + to + i * 4) = out;
  }
}

__global__ void swiglu_kernel(const float* gate_up, int64_t width, Elements y) {
  const int64_t i = int64_t(blockIdx.y) * blockDim.x + threadIdx.x, row = blockIdx.x;
  if (i >= width) return;
  const float gate = gate_up[row * 2 * width + i], up = gate_up[row * 2 * width + width + i];
  y.store(row * width + i, gate / (1.0f + expf(-gate)) * up);
}

}  // namespace

void embed(const Context& ctx, std::span<const int32_t> ids, TensorView table, TensorView y) {
  if (ids.empty()) return;
  embed_kernel<<<unsigned(ids.size()), kThreads, 0, stream_of(ctx)>>>(ids.data(), Elements(table), table.dim(1),
                                                                      y.as<float>());
  check_launch(ctx, "embed");
}

void gather_rows(const Context& ctx, TensorView x, std::span<const int32_t> rows, TensorView y) {
  if (rows.empty()) return;
  gather_rows_kernel<<<unsigned(rows.size()), kThreads, 0, stream_of(ctx)>>>(x.as<float>(), rows.data(), x.dim(1),
                                                                             y.as<float>());
  check_launch(ctx, "gather_rows");
}

void rms_norm(const Context& ctx, TensorView x, int64_t x_row_stride, TensorView weight, float epsilon, TensorView y,
              TensorView y_f32) {
  if (y.dim(0) == 0) return;
  const bool in_fours = y.dim(1) % 4 == 0 && x_row_stride % 4 == 0 && reinterpret_cast<uintptr_t>(x.data()) % 16 == 0;
  if (in_fours && y.dim(1) <= kThreads * 4 * kMaxVectors) {
    rms_norm_vector_kernel<<<unsigned(y.dim(0)), kThreads, 0, stream_of(ctx)>>>(
        x.as<float>(), x_row_stride, weight.as<float>(), epsilon, int(y.dim(1)), Elements(y), y_f32.as<float>());
    return check_launch(ctx, "rms_norm");
  }
  rms_norm_kernel<<<unsigned(y.dim(0)), kThreads, 0, stream_of(ctx)>>>(
      x.as<float>(), x_row_stride, weight.as<float>(), epsilon, y.dim(1), Elements(y), y_f32.as<float>());
  check_launch(ctx, "rms_norm");
}

void swiglu(const Context& ctx, TensorView gate_up, TensorView y) {
  if (y.dim(0) == 0) return;
  const dim3 grid(unsigned(y.dim(0)), unsigned(ceil_div(y.dim(1), kThreads)));
  swiglu_kernel<<<grid, kThreads, 0, stream_of(ctx)>>>(gate_up.as<float>(), y.dim(1), Elements(y));
  check_launch(ctx, "swiglu");
}

}  // namespace tandem::kernels::cuda
