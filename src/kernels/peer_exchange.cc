#include "kernels/peer_exchange.h"

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/fp8_rows.h"

namespace tandem::kernels {

using device::DType;
using device::TensorView;

void peer_dispatch(const Context& ctx, const PeerGroup& group, TensorView x, TensorView slots) {
  CHECK(is_cuda(ctx.backend));
  CHECK(group.num_ranks <= kMaxPeers && group.row_bytes % 16 == 0);
  CHECK(x.dim(0) <= group.stride);
  if (group.fp8_width > 0) {
    CHECK(x.dtype() == DType::kBF16 && x.dim(1) == group.fp8_width && group.fp8_width % 16 == 0);
    CHECK(group.row_bytes == fp8_row_bytes(group.fp8_width));
  } else {
    CHECK(x.dim(1) * int64_t(size_of(x.dtype())) == group.row_bytes);
  }
  CHECK(slots.dtype() == DType::kI32 && slots.num_elements() == x.dim(0) * group.top_k);
  cuda::peer_dispatch(ctx, group, x, slots);
}

void peer_receive(const Context& ctx, const PeerGroup& group, TensorView own_slots) {
  CHECK(own_slots.dtype() == DType::kI32);
  CHECK(own_slots.num_elements() == group.num_ranks * group.stride * group.top_k);
  cuda::peer_receive(ctx, group, own_slots);
}

void peer_answer(const Context& ctx, const PeerGroup& group, TensorView own_slots, const float* const* result_of) {
  CHECK(own_slots.num_elements() == group.num_ranks * group.stride * group.top_k);
  cuda::peer_answer(ctx, group, own_slots, result_of);
}

void peer_collect(const Context& ctx, const PeerGroup& group, std::span<const float*> rows) {
  CHECK(int64_t(rows.size()) <= group.stride * group.top_k);
  cuda::peer_collect(ctx, group, rows);
}

}  // namespace tandem::kernels
