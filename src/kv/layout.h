// How the cache of one rank lies in memory: [layer][block][token in block][row], one region for all layers. Sizes and
// offsets come from this one struct, on both sides of a handover. A block is what SGLang calls a page.
#pragma once

#include <cstdint>
#include <string>

#include "device/dtype.h"

namespace tandem::kv {

struct KvLayout {
  int32_t num_layers = 0;
  int32_t row_width = 0;  // elements per token and layer: kv_lora_rank + rope_dim
  device::DType dtype = device::DType::kBF16;
  int32_t block_tokens = 1;  // --page-size
  int32_t num_blocks = 0;

  int64_t row_bytes() const { return int64_t(row_width) * int64_t(device::size_of(dtype)); }
  int64_t block_bytes() const { return row_bytes() * block_tokens; }  // one block of one layer
  int64_t layer_bytes() const { return block_bytes() * num_blocks; }
  int64_t total_bytes() const { return layer_bytes() * num_layers; }
  int64_t token_bytes() const { return row_bytes() * num_layers; }  // one token, all layers
  int64_t offset(int32_t layer, int32_t block) const { return layer * layer_bytes() + block * block_bytes(); }
};

}  // namespace tandem::kv
