#include "kernels/gemm.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/work.h"

namespace tandem::kernels {
namespace {

using device::DType;
using device::TensorView;

constexpr int64_t kScaleBlock = 128;
constexpr size_t kLine = 64;

size_t whole_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// K begins of the segments of constant scale, over all stacked weights, then K.
std::vector<int32_t> find_segments(const std::vector<RawWeight>& stacked, int64_t k) {
  std::vector<int32_t> cuts = {0, int32_t(k)};
  for (const RawWeight& w : stacked) {
    const int64_t offset = w.transposed ? w.row_offset : w.col_offset;
    for (int64_t cut = kScaleBlock - offset % kScaleBlock; cut < k; cut += kScaleBlock) cuts.push_back(int32_t(cut));
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

// Whether every part of the stack begins at a border of scale blocks, of its own matrix and of the stack.
bool is_block_aligned(const std::vector<RawWeight>& stacked) {
  int64_t n = 0;
  for (const RawWeight& w : stacked) {
    if (n % kScaleBlock != 0 || w.row_offset % kScaleBlock != 0 || w.col_offset % kScaleBlock != 0) return false;
    n += raw_outputs(w);
  }
  return true;
}

// Type of the packed values on a GPU: what cannot keep its scale blocks is widened.
DType packed_gpu_dtype(Backend backend, const std::vector<RawWeight>& stacked) {
  const DType wide = backend == Backend::kCudaF32 ? DType::kF32 : DType::kBF16, first = stacked[0].dtype;
  for (const RawWeight& w : stacked) {
    if (w.dtype != first) return wide;
  }
  if (first == DType::kF8E4M3) return is_block_aligned(stacked) ? first : wide;
  return first == DType::kBF16 ? first : wide;
}

// Type of the packed values. A stack of mixed types, and on kCpu an FP8 view whose scale blocks begin at odd inputs
// (no model of the family has one), is widened: exact in f32, rounded to bf16 on kCpu.
DType packed_dtype(Backend backend, const std::vector<RawWeight>& stacked, const std::vector<int32_t>& segments) {
  if (is_cuda(backend)) return packed_gpu_dtype(backend, stacked);
  const DType wide = backend == Backend::kRef ? DType::kF32 : DType::kBF16;
  const DType first = stacked[0].dtype;
  for (const RawWeight& w : stacked) {
    if (w.dtype != first) return wide;
  }
  if (backend == Backend::kRef) return first;
  if (first != DType::kF8E4M3) return wide;
  const bool even = std::all_of(segments.begin(), segments.end() - 1, [](int32_t cut) { return cut % 2 == 0; });
  return even ? first : wide;
}

void check_linear(const Context& ctx, const TensorView& x, const PackedWeight& w, const TensorView& y) {
  CHECK(ctx.pool != nullptr && ctx.workspace != nullptr);
  CHECK(w.impl() != nullptr && w.impl()->backend == ctx.backend);
  CHECK(x.rank() == 2 && y.rank() == 2 && x.dim(0) == y.dim(0));
  CHECK(x.dim(1) == w.cols() && y.dim(1) == w.rows());
  CHECK(x.dtype() == ctx.act_dtype());
  CHECK(y.dtype() == DType::kF32 || y.dtype() == ctx.act_dtype());
}

void run_linear(const Context& ctx, TensorView x, const PackedWeight& w, TensorView y, bool add) {
  check_linear(ctx, x, w, y);
  if (x.dim(0) == 0) return;
  profile::OpSpan span(ctx.spans, add ? "linear_add" : "linear");
  if (span) {
    span.work({x.dim(0), w.rows(), w.cols()}, 2.0 * double(x.dim(0)) * double(w.rows()) * double(w.cols()),
              double(w.bytes()) + bytes_of(x, y));
  }
  switch (ctx.backend) {
    case Backend::kRef: return ref::linear(ctx, x, w, y, add);
    case Backend::kCpu: return cpu::linear(ctx, x, w, y, add);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::linear(ctx, x, w, y, add);
  }
}

}  // namespace

PackedWeight::PackedWeight() = default;
PackedWeight::PackedWeight(PackedWeight&&) noexcept = default;
PackedWeight& PackedWeight::operator=(PackedWeight&&) noexcept = default;
PackedWeight::~PackedWeight() = default;

size_t PackedWeight::bytes() const {
  return impl_ == nullptr ? 0 : whole_lines(impl_->values.bytes()) + whole_lines(impl_->scales.bytes());
}

void PackedWeight::place(std::byte* memory) {
  copy_to(memory);
  for (WeightBytes* part : {&impl_->values, &impl_->scales}) {
    *part = WeightBytes(memory, part->bytes());
    memory += whole_lines(part->bytes());
  }
}

void PackedWeight::copy_to(std::byte* memory) const {
  CHECK(impl_ != nullptr);
  CHECK(reinterpret_cast<uintptr_t>(memory) % kLine == 0);
  for (const WeightBytes* part : {&impl_->values, &impl_->scales}) {
    device::copy_bytes(memory, part->data(), part->bytes());
    memory += whole_lines(part->bytes());
  }
}

PackedWeight PackedWeight::like(std::byte* memory) const {
  CHECK(impl_ != nullptr);
  CHECK(reinterpret_cast<uintptr_t>(memory) % kLine == 0);
  PackedWeight twin;
  twin.rows_ = rows_;
  twin.cols_ = cols_;
  twin.impl_ = std::make_unique<Impl>();
  static_cast<PackedForm&>(*twin.impl_) = *impl_;
  twin.impl_->values = WeightBytes(memory, impl_->values.bytes());
  twin.impl_->scales = WeightBytes(memory + whole_lines(impl_->values.bytes()), impl_->scales.bytes());
  return twin;
}

bool PackedWeight::has_form_of(const PackedWeight& other) const {
  CHECK(impl_ != nullptr);
  CHECK(other.impl_ != nullptr);
  return static_cast<const PackedForm&>(*impl_) == *other.impl_;
}

int64_t raw_outputs(const RawWeight& w) { return w.transposed ? w.cols : w.rows; }
int64_t raw_inputs(const RawWeight& w) { return w.transposed ? w.rows : w.cols; }

const uint8_t* raw_at(const RawWeight& w, int64_t n, int64_t k) {
  const int64_t row = w.transposed ? k : n, col = w.transposed ? n : k;
  return static_cast<const uint8_t*>(w.data) + size_t(row * w.row_stride + col) * size_of(w.dtype);
}

float raw_scale(const RawWeight& w, int64_t n, int64_t k) {
  const int64_t row = (w.transposed ? k : n) + w.row_offset, col = (w.transposed ? n : k) + w.col_offset;
  return w.scale_inv[row / kScaleBlock * w.scale_stride + col / kScaleBlock];
}

float raw_value(const RawWeight& w, int64_t n, int64_t k) {
  const uint8_t* at = raw_at(w, n, k);
  switch (w.dtype) {
    case DType::kF32: return *reinterpret_cast<const float*>(at);
    case DType::kBF16: return device::f32_from_bf16(*reinterpret_cast<const uint16_t*>(at));
    case DType::kF8E4M3: return device::f32_from_f8e4m3(*at) * raw_scale(w, n, k);
    case DType::kI32: break;
  }
  CHECK(false);
  return 0;
}

PackedWeight pack_any(Backend backend, Isa isa, const std::vector<RawWeight>& stacked, std::optional<DType> type);

PackedWeight pack(Backend backend, Isa isa, const std::vector<RawWeight>& stacked) {
  return pack_any(backend, isa, stacked, std::nullopt);
}

PackedWeight pack_widened(Backend backend, Isa isa, const std::vector<RawWeight>& stacked, DType type) {
  return pack_any(backend, isa, stacked, type);
}

PackedWeight pack_any(Backend backend, Isa isa, const std::vector<RawWeight>& stacked, std::optional<DType> type) {
  CHECK(!stacked.empty());
  PackedWeight packed;
  packed.impl_ = std::make_unique<PackedWeight::Impl>();
  PackedWeight::Impl& impl = *packed.impl_;
  impl.backend = backend;
  impl.isa = isa;
  impl.k = raw_inputs(stacked[0]);
  bool scaled = false;
  for (const RawWeight& w : stacked) {
    CHECK(w.data != nullptr && w.rows > 0 && w.cols > 0 && w.row_stride >= w.cols);
    CHECK(raw_inputs(w) == impl.k);
    CHECK(w.dtype == DType::kF32 || w.dtype == DType::kBF16 || w.dtype == DType::kF8E4M3);
    CHECK(w.dtype != DType::kF8E4M3 || w.scale_inv != nullptr);
    scaled = scaled || w.dtype == DType::kF8E4M3;
    impl.n += raw_outputs(w);
  }
  impl.segments = scaled ? find_segments(stacked, impl.k) : std::vector<int32_t>{0, int32_t(impl.k)};
  impl.dtype = type ? *type : packed_dtype(backend, stacked, impl.segments);
  if (impl.dtype != DType::kF8E4M3) impl.segments = {0, int32_t(impl.k)};
  packed.rows_ = impl.n;
  packed.cols_ = impl.k;
  switch (backend) {
    case Backend::kRef: ref::pack_into(impl, stacked); break;
    case Backend::kCpu: cpu::pack_into(impl, stacked); break;
    case Backend::kCuda:
    case Backend::kCudaF32: cuda::pack_into(impl, stacked); break;
  }
  return packed;
}

void linear(const Context& ctx, TensorView x, const PackedWeight& w, TensorView y) { run_linear(ctx, x, w, y, false); }

void linear_add(const Context& ctx, TensorView x, const PackedWeight& w, TensorView y) {
  CHECK(y.dtype() == DType::kF32);
  run_linear(ctx, x, w, y, true);
}

size_t linear_workspace_bytes(const Context& ctx, int64_t max_rows, int64_t n, int64_t k) {
  switch (ctx.backend) {
    case Backend::kRef: return ref::linear_workspace_bytes(ctx, max_rows, n, k);
    case Backend::kCpu: return cpu::linear_workspace_bytes(ctx, max_rows, n, k);
    case Backend::kCuda:
    case Backend::kCudaF32: return cuda::linear_workspace_bytes(ctx, max_rows, n, k);
  }
  return 0;
}

}  // namespace tandem::kernels
