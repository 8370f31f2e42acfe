#include "kernels/work.h"

namespace tandem::kernels {

void note_attention(profile::OpSpan& span, const MlaShape& shape, const PagedCache& cache,
                    std::span<const SequenceSpan> sequences, bool is_absorbed, double operand_bytes) {
  double rows = 0, keys = 0, pairs = 0;  // pairs of a query and a key that it sees
  for (const SequenceSpan& s : sequences) {
    rows += s.num_rows;
    keys += s.prefix_len + s.num_rows;
    pairs += double(s.num_rows) * s.prefix_len + double(s.num_rows) * (s.num_rows + 1) / 2;
  }
  const double heads = shape.num_heads, latent = shape.kv_lora_rank, up = shape.nope_dim + shape.v_dim;
  const double per_pair = is_absorbed ? 2 * latent + shape.rope_dim : up + shape.rope_dim;
  const double up_rows = is_absorbed ? rows : keys;  // decode absorbs kv_b_proj into its queries, prefill expands keys
  span.work({int64_t(rows), shape.num_heads, int64_t(keys)}, 2 * heads * (pairs * per_pair + up_rows * latent * up),
            keys * shape.row_width() * double(size_of(cache.dtype)) + operand_bytes);
}

}  // namespace tandem::kernels
