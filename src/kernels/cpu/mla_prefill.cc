// Prefill attention. For one head, one block of keys after another is expanded from the latents and used by all query
// rows. Everything is transposed: queries are the columns of a panel, so scores, probabilities and outputs of 32
// queries lie side by side and softmax runs down the columns without shuffles.
//
//   scores [keys, 32] = K . Q^T      softmax -> P [keys, 32]      O [v, 32] = O * decay + V^T . P
#include <algorithm>
#include <cmath>

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
  float* wide;     // one panel of the expanding weight, widened
  float* latents;  // rows of a key block as tiles
  float* keys;     // [kKeyBlock][key width]
  float* values;   // [kKeyBlock][v]
  float* columns;  // [key width][kKeyBlock]
  float* queries;  // [query panels][key width][32]
  float* out;      // [query panels][v][32]
  float* top;      // [query panels][32]
  float* sum;      // [query panels][32]
  float* scores;   // [kKeyBlock][32]
  float* rows;     // [32][v], or [kTileRows][lora]

  Scratch(Carver& carver, const MlaShape& shape, int64_t max_rows) {
    const int64_t key_width = shape.nope_dim + shape.rope_dim, v = shape.v_dim, lora = shape.kv_lora_rank;
    const int64_t panels = num_panels(max_rows);
    wide = carver.take<float>(lora * kPanel);
    latents = carver.take<float>(kKeyBlock * lora);
    keys = carver.take<float>(kKeyBlock * key_width);
    values = carver.take<float>(kKeyBlock * v);
    columns = carver.take<float>(key_width * kKeyBlock);
    queries = carver.take<float>(panels * key_width * kPanel);
    out = carver.take<float>(panels * v * kPanel);
    top = carver.take<float>(panels * kPanel);
    sum = carver.take<float>(panels * kPanel);
    scores = carver.take<float>(kKeyBlock * kPanel);
    rows = carver.take<float>(std::max(kPanel * v, kTileRows * lora));
  }
};

// One head of one span of query rows.
class HeadTask {
 public:
  HeadTask(const Leaf& leaf, const MlaShape& shape, const PackedWeight::Impl& expand, const PagedCache& cache,
           const QuerySpan& span, int64_t head, const Scratch& scratch)
      : leaf_(leaf), shape_(shape), expand_(expand), cache_(cache), span_(span), head_(head), s_(scratch) {}

  void run(const float* q, float* out) {
    load_queries(q);
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
  int64_t head_columns() const { return shape_.nope_dim + shape_.v_dim; }
  int64_t first_panel() const { return head_ * head_columns() / kPanel; }
  int64_t end_panel() const { return num_panels((head_ + 1) * head_columns()); }
  int64_t first_position() const { return span_.sequence->prefix_len + span_.first; }

  void load_queries(const float* q) {
    const int64_t row_width = shape_.num_heads * key_width();
    for (int64_t panel = 0; panel < num_panels(span_.rows); ++panel) {
      float* to = s_.queries + panel * key_width() * kPanel;
      const int64_t begin = panel * kPanel, count = std::min(kPanel, span_.rows - begin);
      if (count < kPanel) std::fill_n(to, key_width() * kPanel, 0.0f);
      const float* from[kPanel];
      for (int64_t r = 0; r < count; ++r) {
        const int64_t row = span_.sequence->first_row + span_.first + begin + r;
        from[r] = q + row * row_width + head_ * key_width();
      }
      leaf_.transpose(from, count, key_width(), to, kPanel);
    }
  }

  // Keys and values of positions [block, block + count): rows first, then the form that the scores want.
  void expand_keys(int64_t block, int64_t count) {
    load_latents(block, count);
    for (int64_t panel = first_panel(); panel < end_panel(); ++panel) expand_panel(panel, count);
    const float* from[kKeyBlock];
    for (int64_t j = 0; j < count; ++j) from[j] = s_.keys + j * key_width();
    leaf_.transpose(from, count, key_width(), s_.columns, kKeyBlock);
  }

  // Latents into tiles, rotated keys to their place.
  void load_latents(int64_t block, int64_t count) {
    const int64_t lora = shape_.kv_lora_rank;
    for (int64_t i = 0; i < num_tiles(count); ++i) {
      const RowTile tile = tile_at(count, i);
      const float* from[kTileRows];
      for (int64_t r = 0; r < tile.rows; ++r) {
        const char* row = cache_row(shape_, cache_, *span_.sequence, block + tile.row + r);
        float* latent = s_.rows + r * lora;
        read_row(leaf_, cache_, row, 0, lora, latent);
        read_row(leaf_, cache_, row, lora, shape_.rope_dim, s_.keys + (tile.row + r) * key_width() + shape_.nope_dim);
        from[r] = latent;
      }
      leaf_.transpose(from, tile.rows, lora, s_.latents + tile.row * lora, tile.rows);
    }
  }

  // One panel of the expanding weight for all keys of a block.
  void expand_panel(int64_t panel, int64_t count) {
    const int64_t lora = shape_.kv_lora_rank;
    const bool f8 = expand_.dtype == DType::kF8E4M3;
    if (f8) leaf_.widen(reinterpret_cast<const uint8_t*>(panel_at(expand_, panel)), lora, s_.wide);
    alignas(64) float acc[(kTileRows + 1) * kPanel];
    TileArgs args{};
    args.w = f8 ? static_cast<const void*>(s_.wide) : panel_at(expand_, panel);
    args.ends = expand_.segment_ends();
    args.segments = expand_.num_segments();
    args.scales = f8 ? scales_at(expand_, panel) : nullptr;
    args.scale_width = expand_.scale_width;
    args.acc = acc;
    for (int64_t i = 0; i < num_tiles(count); ++i) {
      const RowTile tile = tile_at(count, i);
      args.a = s_.latents + tile.row * lora;
      args.a_stride = args.rows = tile.rows;
      f8 ? leaf_.tile_f32(args) : leaf_.tile_bf16(args);
      // The panel's columns that are this head's keys, then those that are its values.
      const int64_t begin = panel * kPanel - head_ * head_columns();
      put(acc, tile, begin, 0, shape_.nope_dim, s_.keys, key_width());
      put(acc, tile, begin, shape_.nope_dim, head_columns(), s_.values, shape_.v_dim);
    }
  }

  // Columns of the tile that fall into [low, high) of the head, which begin at the tile's column -begin.
  void put(const float* acc, const RowTile& tile, int64_t begin, int64_t low, int64_t high, float* to, int64_t stride) {
    const int64_t from = std::max(begin, low), end = std::min(begin + kPanel, high);
    if (from >= end) return;
    leaf_.store_f32(acc + (from - begin), tile.rows, end - from, to + tile.row * stride + (from - low), stride);
  }

  // One block of keys for one panel of queries.
  void attend(int64_t block, int64_t panel) {
    const int64_t first = first_position() + panel * kPanel;
    const int64_t last = first + std::min(kPanel, span_.rows - panel * kPanel) - 1;
    const int64_t keys = std::min(kKeyBlock, last + 1 - block);
    if (keys <= 0) return;
    alignas(64) float decay[kPanel];
    int32_t limits[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) limits[i] = int32_t(std::min(first + i, last) + 1 - block);
    const int32_t key_end = int32_t(key_width()), keys_end = int32_t(keys);
    TileArgs args{};
    args.a_stride = kKeyBlock;
    args.w = s_.queries + panel * key_width() * kPanel;
    args.ends = &key_end;
    args.segments = 1;
    for (int64_t i = 0; i < num_tiles(keys); ++i) {
      const RowTile tile = tile_at(keys, i);
      args.a = s_.columns + tile.row;
      args.rows = tile.rows;
      args.acc = s_.scores + tile.row * kPanel;
      leaf_.tile_f32(args);
    }
    leaf_.softmax_block(SoftmaxBlock{s_.scores, keys, limits, block + keys - 1 > first, shape_.softmax_scale * kLog2E,
                                     s_.top + panel * kPanel, s_.sum + panel * kPanel, decay});
    args.a_stride = shape_.v_dim;
    args.w = s_.scores;
    args.ends = &keys_end;
    args.decay = decay;
    for (int64_t i = 0; i < num_tiles(shape_.v_dim); ++i) {
      const RowTile tile = tile_at(shape_.v_dim, i);
      args.a = s_.values + tile.row;
      args.rows = tile.rows;
      args.acc = s_.out + (panel * shape_.v_dim + tile.row) * kPanel;
      leaf_.tile_f32(args);
    }
  }

  void finish(int64_t panel, float* out) {
    const int64_t v = shape_.v_dim, begin = panel * kPanel, count = std::min(kPanel, span_.rows - begin);
    alignas(64) float factor[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) factor[i] = 1.0f / s_.sum[begin + i];
    float* columns = s_.out + panel * v * kPanel;
    leaf_.scale_columns(columns, v, factor);
    for (int64_t d = 0; d < v; d += kPanel) {
      const float* from[kPanel];
      const int64_t rows = std::min(kPanel, v - d);
      for (int64_t i = 0; i < rows; ++i) from[i] = columns + (d + i) * kPanel;
      leaf_.transpose(from, rows, kPanel, s_.rows + d, v);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = span_.sequence->first_row + span_.first + begin + r;
      std::copy_n(s_.rows + r * v, v, out + (row * shape_.num_heads + head_) * v);
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
        .run(q.as<float>(), out.as<float>());
  });
}

}  // namespace tandem::kernels::cpu
