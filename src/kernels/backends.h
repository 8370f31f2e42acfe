// What each backend implements, private to this room; the doors (kernels/<family>.cc) check and choose.
#pragma once

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/gemm_impl.h"
#include "kernels/moe.h"
#include "kernels/norm.h"
#include "kernels/peer_exchange.h"
#include "kernels/sample.h"

// The oracle: plain loops in f32. Activations may be f32 or bf16, so that a fast backend can be compared on its own
// inputs.
namespace tandem::kernels::ref {
#include "kernels/backend_ops.inc"
}  // namespace tandem::kernels::ref

// Fast kernels; ctx.isa chooses among the leaf functions compiled per instruction set.
namespace tandem::kernels::cpu {
#include "kernels/backend_ops.inc"
}  // namespace tandem::kernels::cpu

// A build without CUDA has functions that end the process.
namespace tandem::kernels::cuda {
#include "kernels/backend_ops.inc"
void peer_dispatch(const Context& ctx, const PeerGroup& group, device::TensorView x, device::TensorView slots);
void peer_receive(const Context& ctx, const PeerGroup& group, device::TensorView own_slots);
void peer_answer(const Context& ctx, const PeerGroup& group, device::TensorView own_slots,
                 const float* const* result_of);
void peer_collect(const Context& ctx, const PeerGroup& group, std::span<const float*> rows);
}  // namespace tandem::kernels::cuda
