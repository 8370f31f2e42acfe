// Packing, and which kernel a projection takes.
#include "kernels/gemm.h"

#include <cstring>

#include "base/check.h"
#include "kernels/cuda/plain_gemm.h"
#include "kernels/cuda/tensor_gemm.h"

namespace tandem::kernels::cuda {
namespace {

using device::DType;
using device::TensorView;

constexpr int64_t kScaleBlock = 128;

void put_value(const RawWeight& w, int64_t n, int64_t k, DType type, std::byte* to) {
  if (w.dtype == type) {
    std::memcpy(to, raw_at(w, n, k), size_of(type));
    return;
  }
  const float value = raw_value(w, n, k);
  if (type == DType::kF32) {
    std::memcpy(to, &value, sizeof value);
  } else {
    const uint16_t bits = device::bf16_from_f32(value);
    std::memcpy(to, &bits, sizeof bits);
  }
}

}  // namespace

void pack_into(PackedWeight::Impl& impl, const std::vector<RawWeight>& stacked) {
  const size_t width = size_of(impl.dtype);
  impl.values = device::Buffer(device::Device::kCpu, size_t(impl.n * impl.k) * width);
  auto* to = static_cast<std::byte*>(impl.values.data());
  for (const RawWeight& w : stacked) {
    for (int64_t n = 0; n < raw_outputs(w); ++n) {
      if (w.dtype == impl.dtype && !w.transposed) {
        std::memcpy(to, raw_at(w, n, 0), size_t(impl.k) * width);
        to += size_t(impl.k) * width;
      } else {
        for (int64_t k = 0; k < impl.k; ++k, to += width) put_value(w, n, k, impl.dtype, to);
      }
    }
  }
  if (impl.dtype != DType::kF8E4M3) return;
  const int64_t cols = (impl.k + kScaleBlock - 1) / kScaleBlock, rows = (impl.n + kScaleBlock - 1) / kScaleBlock;
  impl.scales = device::Buffer(device::Device::kCpu, size_t(rows * cols) * sizeof(float));
  auto* scale = static_cast<float*>(impl.scales.data());
  for (const RawWeight& w : stacked) {  // each begins at a border of blocks
    for (int64_t n = 0; n < raw_outputs(w); n += kScaleBlock) {
      for (int64_t k = 0; k < impl.k; k += kScaleBlock) *scale++ = raw_scale(w, n, k);
    }
  }
}

namespace {

bool runs_on_tensor_cores(const Context& ctx, const PackedWeight::Impl& w) {
  return ctx.backend == Backend::kCuda && can_run_tensor_gemm(w.dtype, w.n, w.k);
}

// Projections by the size of their weights, which tells the layers' apart.
const char* linear_name(const PackedWeight::Impl& w) {
  if (w.dtype == DType::kBF16) return "linear bf16";
  const int64_t mega = w.n * w.k >> 20;
  return mega >= 100 ? "linear fp8 over 100 MiB" : mega >= 32 ? "linear fp8 32 to 100 MiB" : "linear fp8 under 32 MiB";
}

void tensor_linear(const Context& ctx, TensorView x, const PackedWeight::Impl& w, TensorView y, bool add) {
  const device::WorkspaceScope scope(*ctx.workspace);
  TensorGemm gemm;
  gemm.name = linear_name(w);
  gemm.dtype = w.dtype;
  gemm.x = x.data();
  gemm.rows = x.dim(0);
  gemm.n = gemm.y_row_stride = w.n;
  gemm.k = gemm.x_row_stride = w.k;
  gemm.w = static_cast<const std::byte*>(w.values.data());
  gemm.y = y.data();
  gemm.y_is_bf16 = y.dtype() == DType::kBF16;
  gemm.add = add;
  if (w.dtype == DType::kF8E4M3) {
    const Quantised q = Quantised::take(*ctx.workspace, gemm.rows, w.k);
    quantise(ctx, x, nullptr, gemm.rows, q);
    gemm.x = q.values;
    gemm.x_scales = q.scales;
    gemm.x_scale_stride = q.scale_stride;
    gemm.scale_offset = static_cast<const std::byte*>(w.scales.data()) - gemm.w;
  }
  run_tensor_gemm(ctx, gemm);
}

}  // namespace

void linear(const Context& ctx, TensorView x, const PackedWeight& weight, TensorView y, bool add) {
  if (runs_on_tensor_cores(ctx, *weight.impl())) return tensor_linear(ctx, x, *weight.impl(), y, add);
  PlainGemm gemm;
  set_weight(gemm, *weight.impl());
  gemm.x = x.data();
  gemm.x_row_stride = gemm.k;
  gemm.x_is_bf16 = x.dtype() == DType::kBF16;
  gemm.y = y.data();
  gemm.y_row_stride = gemm.n;
  gemm.y_is_bf16 = y.dtype() == DType::kBF16;
  gemm.add = add;
  gemm.max_rows = x.dim(0);
  run_plain_gemm(ctx, gemm);
}

size_t linear_workspace_bytes(const Context& ctx, int64_t max_rows, int64_t, int64_t k) {
  return ctx.backend == Backend::kCuda ? Quantised::bytes(max_rows, k) : 0;
}

}  // namespace tandem::kernels::cuda
