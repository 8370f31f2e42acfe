// Private to this folder.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem::kernels::cuda {

// Bytes of workspace that gate takes for at most 1,024 experts.
size_t gate_workspace_bytes(int64_t max_rows);

}  // namespace tandem::kernels::cuda
