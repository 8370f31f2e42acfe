// A build without CUDA: nothing chooses this backend, so a call is a broken invariant.
#include "base/check.h"
#include "kernels/backends.h"

namespace tandem::kernels::cuda {
namespace {

[[noreturn]] void missing(const char* op) { check_failed("kernels/cuda", 0, op); }

}  // namespace

void pack_into(PackedWeight::Impl&, const std::vector<RawWeight>&) { missing("pack_into"); }
void linear(const Context&, device::TensorView, const PackedWeight&, device::TensorView, bool) { missing("linear"); }
size_t linear_workspace_bytes(const Context&, int64_t, int64_t, int64_t) { missing("linear_workspace_bytes"); }
void embed(const Context&, std::span<const int32_t>, device::TensorView, device::TensorView) { missing("embed"); }
void rms_norm(const Context&, device::TensorView, int64_t, device::TensorView, float, device::TensorView,
              device::TensorView) {
  missing("rms_norm");
}
void swiglu(const Context&, device::TensorView, device::TensorView) { missing("swiglu"); }
void mla_write_cache(const Context&, const MlaShape&, device::TensorView, int64_t, device::TensorView, float,
                     std::span<const int32_t>, std::span<const int32_t>, const RopeTable&, const PagedCache&) {
  missing("mla_write_cache");
}
void mla_rope_q(const Context&, const MlaShape&, device::TensorView, std::span<const int32_t>, const RopeTable&,
                device::TensorView) {
  missing("mla_rope_q");
}
void mla_prefill(const Context&, const MlaShape&, device::TensorView, const KvUpWeights&, const PagedCache&,
                 std::span<const SequenceSpan>, device::TensorView) {
  missing("mla_prefill");
}
void mla_decode(const Context&, const MlaShape&, device::TensorView, const KvUpWeights&, const PagedCache&,
                std::span<const SequenceSpan>, device::TensorView) {
  missing("mla_decode");
}
size_t mla_workspace_bytes(const Context&, const MlaShape&, int64_t, int64_t, int64_t) {
  missing("mla_workspace_bytes");
}
void gate(const Context&, const GateConfig&, device::TensorView, device::TensorView, device::TensorView,
          device::TensorView, device::TensorView) {
  missing("gate");
}
void grouped_mlp(const Context&, device::TensorView, const SlotSort&, std::span<const ExpertWeights* const>, int32_t,
                 device::TensorView) {
  missing("grouped_mlp");
}
void grouped_mlp(const Context&, device::TensorView, const SlotSort&, const GpuPlaces&, int32_t, device::TensorView) {
  missing("grouped_mlp");
}
void combine(const Context&, std::span<const float* const>, device::TensorView, device::TensorView) {
  missing("combine");
}
size_t moe_workspace_bytes(const Context&, int64_t, int32_t, int64_t, int64_t) { missing("moe_workspace_bytes"); }
void gather_rows(const Context&, device::TensorView, std::span<const int32_t>, device::TensorView) {
  missing("gather_rows");
}
void peer_dispatch(const Context&, const PeerGroup&, device::TensorView, device::TensorView) {
  missing("peer_dispatch");
}
void peer_receive(const Context&, const PeerGroup&, device::TensorView) { missing("peer_receive"); }
void peer_answer(const Context&, const PeerGroup&, device::TensorView, const float* const*) { missing("peer_answer"); }
void peer_collect(const Context&, const PeerGroup&, std::span<const float*>) { missing("peer_collect"); }
void choose_slots(const Context&, const SlotChoice&, device::TensorView, int32_t*) { missing("choose_slots"); }
void sort_by_slot(const Context&, device::TensorView, int32_t, const GpuSlotSort&) { missing("sort_by_slot"); }
void sample(const Context&, device::TensorView, std::span<const SampleParams>, std::span<SampleResult>) {
  missing("sample");
}

}  // namespace tandem::kernels::cuda
