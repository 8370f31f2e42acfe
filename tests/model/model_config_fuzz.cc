// Input: config.json, then (behind a zero byte) overrides. Whatever parses holds what the forward pass relies on.
#include <cmath>
#include <cstdint>

#include "base/check.h"
#include "model/config.h"
#include "model/weights/rope_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t zero = text.find('\0');
  const std::string_view overrides = zero == std::string_view::npos ? "" : text.substr(zero + 1);
  const auto config = tandem::model::parse_config(text.substr(0, zero), overrides, "fuzz");
  if (!config) {
    CHECK(!config.error().message.empty());
    return 0;
  }
  const tandem::kernels::GateConfig& gate = config->gate;
  CHECK(config->hidden_size > 0);
  CHECK(config->rope_dim % 2 == 0);
  CHECK(std::isfinite(config->mla().softmax_scale));
  if (config->num_routed_experts > 0) {
    CHECK(gate.num_experts % gate.num_groups == 0);
    CHECK(gate.top_k <= gate.num_experts / gate.num_groups * gate.top_k_groups);
  }
  for (float frequency : tandem::model::rope_frequencies(*config)) CHECK(std::isfinite(frequency));
  return 0;
}
