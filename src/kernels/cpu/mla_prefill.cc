// Prefill attention. For one head, one block of keys after another is expanded from the latents and used by all query
// rows. Everything is transposed: queries are the columns of a panel, so scores, probabilities and outputs of 32
// queries lie side by side and softmax runs down the columns without shuffles.
//
//   scores [keys, 32] = K . Q^T      softmax -> P [key pairs, 32]      O [v, 32] = O * decay + V^T . P
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/cpu/mla.h"

namespace tandem::kernels::cpu {
namespace {

using device::DType;
using device::TensorView;

constexpr int64_t kKeyBlock = 128;   // at multiples of it, whatever the chunk: part of the result's definition
constexpr int64_t kSpanRows = 2048;  // query rows of a task: their queries and outputs stay near the core

// Rows [first, first + rows) of a sequence.
struct QuerySpan {
  const SequenceSpan* sequence = nullptr;
  int32_t first = 0;
  int32_t rows = 0;
};

// What a thread needs to attend with one head.
struct Scratch {
  uint32_t* wide;      // the head's panels of the expanding weight, widened
  uint32_t* latents;   // one tile of latent rows
  uint16_t* key_rows;  // [kKeyBlock][key words * 2]
  uint16_t* v_rows;    // [kKeyBlock][v]
  uint32_t* keys;      // [key words][kKeyBlock]
  uint32_t* values;    // [kKeyBlock / 2][v]
  uint32_t* queries;   // [query panels][key words][32]
  float* out;          // [query panels][v][32]
  float* top;          // [query panels][32]
  float* sum;          // [query panels][32]
  float* scores;       // [kKeyBlock][32]
  uint32_t* p;         // [kKeyBlock / 2][32]
  float* rows;         // [32][v]

  Scratch(Carver& carver, const MlaShape& shape, int64_t max_rows) {
    const int64_t key_words = num_pairs(shape.nope_dim + shape.rope_dim), v = shape.v_dim;
    const int64_t panels = num_panels(max_rows), lora_pairs = num_pairs(shape.kv_lora_rank);
    wide = carver.take<uint32_t>((num_panels(shape.nope_dim + v) + 1) * lora_pairs * kPanel);
    latents = carver.take<uint32_t>(kTileRows * lora_pairs);
    key_rows = carver.take<uint16_t>(kKeyBlock * key_words * 2);
    v_rows = carver.take<uint16_t>(kKeyBlock * v);
    keys = carver.take<uint32_t>(key_words * kKeyBlock);
    values = carver.take<uint32_t>(kKeyBlock / 2 * v);
    queries = carver.take<uint32_t>(panels * key_words * kPanel);
    out = carver.take<float>(panels * v * kPanel);
    top = carver.take<float>(panels * kPanel);
    sum = carver.take<float>(panels * kPanel);
    scores = carver.take<float>(kKeyBlock * kPanel);
    p = carver.take<uint32_t>(kKeyBlock / 2 * kPanel);
    rows = carver.take<float>(kPanel * v);
  }
};

// One head of one span of query rows.
class HeadTask {
 public:
  HeadTask(const Leaf& leaf, const MlaShape& shape, const PackedWeight::Impl& expand, const PagedCache& cache,
           const QuerySpan& span, int64_t head, const Scratch& scratch)
      : leaf_(leaf), shape_(shape), expand_(expand), cache_(cache), span_(span), head_(head), s_(scratch) {}

  void run(const uint16_t* q, uint16_t* out) {
    load_queries(q);
    widen_weight();
    const int64_t panels = num_panels(span_.rows), last = first_position() + span_.rows;
    std::fill_n(s_.out, panels * shape_.v_dim * kPanel, 0.0f);
    std::fill_n(s_.top, panels * kPanel, -INFINITY);
    std::fill_n(s_.sum, panels * kPanel, 0.0f);
    for (int64_t block = 0; block < last; block += kKeyBlock) {
      expand_keys(block, std::min(kKeyBlock, last - block));
      for (int64_t panel = 0; panel < panels; ++panel) attend(block, panel);
    }
    for (int64_t panel = 0; panel < panels; ++panel) finish(panel, out);
  }

 private:
  int64_t key_width() const { return shape_.nope_dim + shape_.rope_dim; }
  int64_t key_words() const { return num_pairs(key_width()); }
  int64_t head_columns() const { return shape_.nope_dim + shape_.v_dim; }
  int64_t first_panel() const { return head_ * head_columns() / kPanel; }
  int64_t end_panel() const { return num_panels((head_ + 1) * head_columns()); }
  int64_t first_position() const { return span_.sequence->prefix_len + span_.first; }

  void load_queries(const uint16_t* q) {
    const int64_t row_words = shape_.num_heads * key_width();
    for (int64_t panel = 0; panel < num_panels(span_.rows); ++panel) {
      uint32_t* to = s_.queries + panel * key_words() * kPanel;
      const int64_t begin = panel * kPanel, count = std::min(kPanel, span_.rows - begin);
      if (count < kPanel) std::memset(to, 0, size_t(key_words() * kPanel) * sizeof(uint32_t));
      const uint32_t* from[kPanel];
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = span_.sequence->first_row + span_.first + begin + r;
        from[r] = reinterpret_cast<const uint32_t*>(q + row * row_words + head_ * key_width());
      }
      leaf_.transpose(from, count, key_words(), to, kPanel);
    }
  }

  void widen_weight() {
    if (expand_.dtype != DType::kF8E4M3) return;
    const int64_t pairs = num_pairs(expand_.k);
    const uint8_t* f8 = static_cast<const uint8_t*>(expand_.values.data()) + first_panel() * pairs * 2 * kPanel;
    leaf_.widen(f8, pairs * (end_panel() - first_panel()), s_.wide);
  }

  // Keys and values of positions [block, block + count): rows first, then the forms that the products want.
  void expand_keys(int64_t block, int64_t count) {
    for (int64_t i = 0; i < num_tiles(count); ++i) expand_tile(block, tile_at(count, i));
    const int64_t words = key_words();
    if (count % 2 != 0) {  // pairs of keys: the missing one must be finite
      std::memset(s_.key_rows + count * words * 2, 0, size_t(words) * sizeof(uint32_t));
    }
    const uint32_t* from[kKeyBlock];
    const int64_t padded = (count + 1) / 2 * 2;
    for (int64_t j = 0; j < padded; ++j) from[j] = reinterpret_cast<const uint32_t*>(s_.key_rows) + j * words;
    leaf_.transpose(from, padded, words, s_.keys, kKeyBlock);
    for (int64_t j = 0; j < count; j += 2) {
      const uint16_t* second = j + 1 < count ? s_.v_rows + (j + 1) * shape_.v_dim : nullptr;
      leaf_.interleave(s_.v_rows + j * shape_.v_dim, second, shape_.v_dim, s_.values + j / 2 * shape_.v_dim);
    }
  }

  void expand_tile(int64_t block, RowTile tile) {
    const uint16_t* from[kTileRows];
    for (int64_t r = 0; r < tile.rows; ++r) {
      from[r] = cache_row(shape_, cache_, *span_.sequence, block + tile.row + r);
      uint16_t* key = s_.key_rows + (tile.row + r) * key_words() * 2;
      std::memcpy(key + shape_.nope_dim, from[r] + shape_.kv_lora_rank, size_t(shape_.rope_dim) * sizeof(uint16_t));
    }
    pack_tile(leaf_, from, tile.rows, shape_.kv_lora_rank, s_.latents);
    const int64_t pairs = num_pairs(expand_.k), segments = expand_.num_segments();
    const bool f8 = expand_.dtype == DType::kF8E4M3;
    alignas(64) float acc[(kTileRows + 1) * kPanel];
    TileArgs args{};
    args.a = s_.latents;
    args.a_stride = args.rows = tile.rows;
    args.pair_ends = expand_.pair_ends.data();
    args.segments = segments;
    args.scale_width = expand_.scale_width;
    args.acc = acc;
    for (int64_t panel = first_panel(); panel < end_panel(); ++panel) {
      args.w = f8 ? s_.wide + (panel - first_panel()) * pairs * kPanel
                  : static_cast<const uint32_t*>(expand_.values.data()) + panel * pairs * kPanel;
      if (f8) args.scales = static_cast<const float*>(expand_.scales.data()) + panel * segments * expand_.scale_width;
      leaf_.tile(args);
      // The panel's columns that are this head's keys, then those that are its values.
      const int64_t begin = panel * kPanel - head_ * head_columns();
      put(acc, tile, begin, 0, shape_.nope_dim, s_.key_rows, key_words() * 2);
      put(acc, tile, begin, shape_.nope_dim, head_columns(), s_.v_rows, shape_.v_dim);
    }
  }

  // Columns of the tile that fall into [low, high) of the head, which begin at the tile's column -begin.
  void put(const float* acc, const RowTile& tile, int64_t begin, int64_t low, int64_t high, uint16_t* to,
           int64_t stride) {
    const int64_t from = std::max(begin, low), end = std::min(begin + kPanel, high);
    if (from >= end) return;
    leaf_.store_bf16(acc + (from - begin), tile.rows, end - from, to + tile.row * stride + (from - low), stride);
  }

  // One block of keys for one panel of queries.
  void attend(int64_t block, int64_t panel) {
    const int64_t first = first_position() + panel * kPanel;
    const int64_t last = first + std::min(kPanel, span_.rows - panel * kPanel) - 1;
    const int64_t visible = std::min(kKeyBlock, last + 1 - block);
    if (visible <= 0) return;
    const int64_t keys = (visible + 1) / 2 * 2;
    alignas(64) float decay[kPanel];
    int32_t limits[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) limits[i] = int32_t(std::min(first + i, last) + 1 - block);
    const int32_t key_end = int32_t(key_words()), pair_end = int32_t(keys / 2);
    TileArgs args{};
    args.a_stride = kKeyBlock;
    args.w = s_.queries + panel * key_words() * kPanel;
    args.pair_ends = &key_end;
    args.segments = 1;
    for (int64_t i = 0; i < num_tiles(keys); ++i) {
      const RowTile tile = tile_at(keys, i);
      args.a = s_.keys + tile.row;
      args.rows = tile.rows;
      args.acc = s_.scores + tile.row * kPanel;
      leaf_.tile(args);
    }
    leaf_.softmax_block(SoftmaxBlock{s_.scores, keys, limits, block + keys - 1 > first, shape_.softmax_scale * kLog2E,
                                     s_.top + panel * kPanel, s_.sum + panel * kPanel, decay, s_.p});
    args.a_stride = shape_.v_dim;
    args.w = s_.p;
    args.pair_ends = &pair_end;
    args.decay = decay;
    for (int64_t i = 0; i < num_tiles(shape_.v_dim); ++i) {
      const RowTile tile = tile_at(shape_.v_dim, i);
      args.a = s_.values + tile.row;
      args.rows = tile.rows;
      args.acc = s_.out + (panel * shape_.v_dim + tile.row) * kPanel;
      leaf_.tile(args);
    }
  }

  void finish(int64_t panel, uint16_t* out) {
    const int64_t v = shape_.v_dim, begin = panel * kPanel, count = std::min(kPanel, span_.rows - begin);
    alignas(64) float factor[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) factor[i] = 1.0f / s_.sum[begin + i];
    float* columns = s_.out + panel * v * kPanel;
    leaf_.scale_columns(columns, v, factor);
    for (int64_t d = 0; d < v; d += kPanel) {
      const uint32_t* from[kPanel];
      const int64_t rows = std::min(kPanel, v - d);
      for (int64_t i = 0; i < rows; ++i) from[i] = reinterpret_cast<const uint32_t*>(columns) + (d + i) * kPanel;
      leaf_.transpose(from, rows, kPanel, reinterpret_cast<uint32_t*>(s_.rows) + d, v);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = span_.sequence->first_row + span_.first + begin + r;
      leaf_.narrow_row(s_.rows + r * v, v, out + (row * shape_.num_heads + head_) * v);
    }
  }

  const Leaf& leaf_;
  const MlaShape& shape_;
  const PackedWeight::Impl& expand_;
  const PagedCache& cache_;
  const QuerySpan& span_;
  const int64_t head_;
  const Scratch& s_;
};

size_t scratch_bytes(const MlaShape& shape, int64_t max_rows) {
  Carver measure(nullptr);
  Scratch(measure, shape, std::min(max_rows, kSpanRows));
  return measure.used();
}

}  // namespace

size_t prefill_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_rows, int64_t max_sequences) {
  const size_t spans = size_t(max_sequences + max_rows / kSpanRows + 1) * sizeof(QuerySpan);
  return spans + scratch_bytes(shape, max_rows) * size_t(ctx.pool->num_threads()) + 256;
}

void mla_prefill(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                 const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  const Leaf& leaf = leaf_of(ctx);
  const device::WorkspaceScope scope(*ctx.workspace);
  int64_t count = 0, longest = 0;
  for (const SequenceSpan& s : sequences) {
    count += (s.num_rows + kSpanRows - 1) / kSpanRows;
    longest = std::max<int64_t>(longest, s.num_rows);
  }
  QuerySpan* spans = ctx.workspace->take_array<QuerySpan>(size_t(count));
  int64_t next = 0;
  for (const SequenceSpan& s : sequences) {
    for (int64_t first = 0; first < s.num_rows; first += kSpanRows) {
      spans[next++] = {&s, int32_t(first), int32_t(std::min(kSpanRows, s.num_rows - first))};
    }
  }
  const size_t per_thread = scratch_bytes(shape, longest);
  char* scratch = ctx.workspace->take_array<char>(per_thread * size_t(ctx.pool->num_threads()));
  ctx.pool->parallel_for(count * shape.num_heads, [&](int64_t i, int thread) {
    // Longest context first would balance best; spans of one sequence are in order, so go backwards.
    const QuerySpan& span = spans[count - 1 - i / shape.num_heads];
    Carver carver(scratch + per_thread * size_t(thread));
    const Scratch own(carver, shape, std::min(longest, kSpanRows));
    HeadTask(leaf, shape, *weights.expand.impl(), cache, span, i % shape.num_heads, own)
        .run(q.as<uint16_t>(), out.as<uint16_t>());
  });
}

}  // namespace tandem::kernels::cpu
