// Private to this folder.
#pragma once

#include "kernels/backends.h"

namespace tandem::kernels::cuda {

// out [rows], in the GPU's memory: the id of the largest, the lowest of equals; -1 where the row holds NaN or nothing
// finite at its top.
void argmax(const Context& ctx, device::TensorView logits, int32_t* out);

}  // namespace tandem::kernels::cuda
