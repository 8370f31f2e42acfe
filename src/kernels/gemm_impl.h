// The packed form of a weight, private to this room.
#pragma once

#include <cstdint>
#include <vector>

#include "device/buffer.h"
#include "kernels/gemm.h"

namespace tandem::kernels {

// Columns of a panel in the cpu backend's layout.
inline constexpr int64_t kPanel = 32;

// Bytes of a weight: its own buffer (in the CPU's memory also for a GPU) right after packing, a place in the caller's
// memory after PackedWeight::place().
class WeightBytes {
 public:
  WeightBytes() = default;
  WeightBytes(device::Buffer own)  // NOLINT: implicit, packing assigns buffers
      : own_(std::move(own)), data_(static_cast<std::byte*>(own_.data())), bytes_(own_.bytes()) {}
  WeightBytes(std::byte* borrowed, size_t bytes) : data_(borrowed), bytes_(bytes) {}

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  device::Buffer own_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// What the bytes of a packed weight mean.
// kRef: values [N, K] row-major in `dtype`; scales [N, segments].
// kCpu: values in panels of 32 outputs, kF8E4M3 [ceil(N/32)][2 ceil(K/2)][32] or kBF16 [ceil(N/32)][ceil(K/2)][32
// outputs x 2 inputs]; scales [panels][segments][scale_width], times 2^8. Padding outputs and inputs are zero.
// GPU backends: values [N, K] row-major; kF8E4M3 has scales [ceil(N/128)][ceil(K/128)], as the checkpoint has them.
// Segments cut K where the 128-blocks of the checkpoint do, in the view's own coordinates: within one segment an
// output has one scale. bf16 and f32 have one segment and no scales.
struct PackedForm {
  Backend backend = Backend::kRef;
  Isa isa = Isa::kAvx2;
  device::DType dtype = device::DType::kF32;
  int64_t n = 0, k = 0;
  std::vector<int32_t> segments;  // K begin of each segment, then K
  int64_t scale_width = 1;        // kCpu: 1 where every panel's outputs share their scales, else 32

  const int32_t* segment_ends() const { return segments.data() + 1; }
  int64_t num_segments() const { return int64_t(segments.size()) - 1; }
  bool operator==(const PackedForm&) const = default;
};

struct PackedWeight::Impl : PackedForm {
  WeightBytes values;
  WeightBytes scales;
};

// As pack, in one type whatever the stack holds: f32 exactly, bf16 rounded.
PackedWeight pack_widened(Backend backend, Isa isa, const std::vector<RawWeight>& stacked, device::DType type);

// Element access to a raw weight seen as [outputs, inputs].
int64_t raw_outputs(const RawWeight& w);
int64_t raw_inputs(const RawWeight& w);
float raw_value(const RawWeight& w, int64_t n, int64_t k);        // scaled
float raw_scale(const RawWeight& w, int64_t n, int64_t k);        // FP8 only
const uint8_t* raw_at(const RawWeight& w, int64_t n, int64_t k);  // address of the element

}  // namespace tandem::kernels
