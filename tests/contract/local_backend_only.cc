#include "tests/contract/kv_backend.h"

namespace tandem::kv {
std::vector<BackendRow> backends() { return {{"Local", make_local_backend}}; }
}  // namespace tandem::kv
