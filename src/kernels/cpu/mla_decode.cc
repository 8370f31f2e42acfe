// Decode attention in absorbed form: queries are brought into the latent space once, then every key of the cache serves
// all heads, which are the columns of a panel of 16.
//
//   query[h] = absorb_k[h] q_nope[h] | q_rope[h]        one task per head, all sequences
//   scores [keys, 16] = cache rows . query^T            one task per sequence and split of its keys
//   O [lora, 16] = O * decay + latents^T . P
//   out[h] = absorb_v[h] O[h]                           one task per head, all sequences
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/cpu/mla.h"
#include "kernels/cpu/rows.h"

namespace tandem::kernels::cpu {
namespace {

using device::DType;
using device::TensorView;

// Part of the result's definition, as functions of the number of keys alone.
constexpr int64_t kKeyBlock = 64;    // keys between two rescalings
constexpr int64_t kSplitKeys = 128;  // keys of a split, until there would be more than kMaxSplits
constexpr int64_t kMaxSplits = 16;
// Rows scored at once, and how many the fetching of rows runs ahead.
constexpr int64_t kRows = 8, kAhead = 24;
constexpr int64_t kHeads = 16;  // columns

int64_t split_keys(int64_t keys) {
  const int64_t even = (keys + kMaxSplits - 1) / kMaxSplits;
  return std::max(kSplitKeys, (even + kKeyBlock - 1) / kKeyBlock * kKeyBlock);
}
int64_t num_splits(int64_t keys) { return (keys + split_keys(keys) - 1) / split_keys(keys); }

struct Split {
  int32_t sequence = 0;
  int32_t begin = 0, end = 0;  // keys
};

// What one split says about 16 heads.
struct Partial {
  float* out;  // [lora][16], not yet divided
  float* top;  // [16]
  float* sum;  // [16]
};

class Decoder {
 public:
  Decoder(const Context& ctx, const MlaShape& shape, const PagedCache& cache, std::span<const SequenceSpan> sequences)
      : ctx_(ctx), leaf_(leaf_of(ctx)), shape_(shape), cache_(cache), sequences_(sequences) {
    const int64_t batch = int64_t(sequences.size());
    device::Workspace& workspace = *ctx.workspace;
    queries_ = workspace.take_array<float>(size_t(batch * shape.num_heads * shape.row_width()));
    latents_ = workspace.take_array<float>(size_t(batch * shape.num_heads * shape.kv_lora_rank));
    first_split_ = workspace.take_array<int32_t>(size_t(batch) + 1);
    first_split_[0] = 0;
    for (int64_t b = 0; b < batch; ++b) first_split_[b + 1] = first_split_[b] + int32_t(num_splits(keys_of(b)));
    splits_ = workspace.take_array<Split>(size_t(first_split_[batch]));
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t size = split_keys(keys_of(b));
      for (int32_t i = first_split_[b]; i < first_split_[b + 1]; ++i) {
        const int64_t begin = (i - first_split_[b]) * size;
        splits_[i] = {int32_t(b), int32_t(begin), int32_t(std::min(begin + size, keys_of(b)))};
      }
    }
    partials_ = workspace.take_array<float>(size_t(first_split_[batch] * groups() * partial_floats(shape)));
    per_thread_ = thread_bytes(shape, batch);
    scratch_ = workspace.take_array<char>(per_thread_ * size_t(ctx.pool->num_threads()));
  }

  static int64_t partial_floats(const MlaShape& shape) { return (shape.kv_lora_rank + 2) * kHeads; }

  static size_t thread_bytes(const MlaShape& shape, int64_t batch) {
    Carver measure(nullptr);
    Absorb(measure, shape, batch);
    Carver attend(nullptr);
    Attend(attend, shape);
    return std::max(measure.used(), attend.used());
  }

  void run(const float* q, const KvUpWeights& weights, float* out) {
    const int64_t batch = int64_t(sequences_.size()), heads = shape_.num_heads;
    for_tasks(heads, batch * heads * shape_.nope_dim * shape_.kv_lora_rank,
              [&](int64_t h, int thread) { absorb_query(q, *weights.absorb_k[size_t(h)].impl(), h, thread); });
    for_tasks(first_split_[batch], int64_t(1) << 30, [&](int64_t i, int thread) { attend(splits_[i], i, thread); });
    for_rows(ctx_, batch, heads * shape_.kv_lora_rank, [&](int64_t b) { combine_splits(b); });
    for_tasks(heads, batch * heads * shape_.v_dim * shape_.kv_lora_rank,
              [&](int64_t h, int thread) { absorb_output(*weights.absorb_v[size_t(h)].impl(), h, out, thread); });
  }

 private:
  // Per-thread scratch of the two kinds of task.
  struct Absorb {
    RowTile* tiles;
    float* packed;
    char* product;
    Absorb(Carver& carver, const MlaShape& shape, int64_t batch) {
      tiles = carver.take<RowTile>(num_tiles(batch));
      packed = carver.take<float>(batch * std::max(shape.nope_dim, shape.kv_lora_rank));
      product = carver.take<char>(int64_t(kScratchBytes));
    }
  };
  struct Attend {
    float* query;   // [row width][columns]
    float* rows;    // [kKeyBlock][row width]
    float* scores;  // [kKeyBlock][columns]
    Attend(Carver& carver, const MlaShape& shape) {
      query = carver.take<float>(shape.row_width() * kHeads);
      rows = carver.take<float>(kKeyBlock * shape.row_width());
      scores = carver.take<float>(kKeyBlock * kHeads);
    }
  };

  // Asks for the cache rows of positions [begin, end): they lie wherever their blocks do, too short for the hardware to
  // foresee.
  void fetch_rows(const SequenceSpan& sequence, int64_t begin, int64_t end) const {
    constexpr int64_t kLine = 64;
    const int64_t bytes = shape_.row_width() * int64_t(size_of(cache_.dtype));
    for (int64_t p = begin; p < end; ++p) {
      const char* row = cache_row(shape_, cache_, sequence, p);
      for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(row + i, 0, 2);
    }
  }
  int64_t keys_of(int64_t b) const { return int64_t(sequences_[size_t(b)].prefix_len) + 1; }
  // Eight heads or fewer: columns of eight, half the work.
  int64_t columns() const { return shape_.num_heads <= 8 ? 8 : kHeads; }
  int64_t groups() const { return (shape_.num_heads + kHeads - 1) / kHeads; }
  char* scratch_of(int thread) const { return scratch_ + per_thread_ * size_t(thread); }

  template <class F>
  void for_tasks(int64_t count, int64_t work, const F& body) const {
    constexpr int64_t kSerialWork = 48 * 1024;  // multiplications that one thread does faster than two
    if (work >= kSerialWork) return ctx_.pool->parallel_for(count, body);
    for (int64_t i = 0; i < count; ++i) body(i, 0);
  }

  Partial partial_at(int64_t split, int64_t group) const {
    float* out = partials_ + (split * groups() + group) * partial_floats(shape_);
    return {out, out + shape_.kv_lora_rank * kHeads, out + (shape_.kv_lora_rank + 1) * kHeads};
  }

  // One row per sequence in and out.
  struct Rows {
    const float* from;
    int64_t from_stride;
    bool from_batch;  // row of a sequence: its first_row in the caller's matrix, else its index here
    float* to;
    int64_t to_stride;
    bool to_batch;
  };
  void multiply_rows(const PackedWeight::Impl& w, const Rows& rows, int thread) const;

  void absorb_query(const float* q, const PackedWeight::Impl& w, int64_t h, int thread) const;
  void attend(const Split& split, int64_t index, int thread) const;
  void combine_splits(int64_t b) const;
  void absorb_output(const PackedWeight::Impl& w, int64_t h, float* out, int thread) const;

  const Context& ctx_;
  const Leaf& leaf_;
  const MlaShape& shape_;
  const PagedCache& cache_;
  std::span<const SequenceSpan> sequences_;
  float* queries_ = nullptr;        // [batch][heads][row_width]
  float* latents_ = nullptr;        // [batch][heads][lora]
  int32_t* first_split_ = nullptr;  // [batch + 1]
  Split* splits_ = nullptr;
  float* partials_ = nullptr;  // [splits][groups] of Partial
  char* scratch_ = nullptr;
  size_t per_thread_ = 0;
};

void Decoder::multiply_rows(const PackedWeight::Impl& w, const Rows& rows, int thread) const {
  Carver carver(scratch_of(thread));
  const Absorb s(carver, shape_, int64_t(sequences_.size()));
  const int64_t batch = int64_t(sequences_.size());
  const auto row_of = [&](int64_t b, bool by_row) { return by_row ? int64_t(sequences_[size_t(b)].first_row) : b; };
  for (int64_t i = 0; i < num_tiles(batch); ++i) {
    RowTile& tile = s.tiles[i] = tile_at(batch, i);
    const float* from[kTileRows];
    for (int64_t r = 0; r < tile.rows; ++r) {
      from[r] = rows.from + row_of(tile.row + r, rows.from_batch) * rows.from_stride;
    }
    float* packed = s.packed + tile.row * w.k;
    leaf_.transpose(from, tile.rows, w.k, packed, tile.rows);
    tile.a = packed;
  }
  const std::span<const RowTile> tiles(s.tiles, size_t(num_tiles(batch)));
  const int64_t panels = num_panels(w.n), group = is_fused(leaf_, w, batch) ? kMaxPanels : 1;
  for (int64_t panel = 0; panel < panels; panel += group) {
    const PanelRange range{&w, panel, std::min(group, panels - panel), 1};
    multiply(leaf_, range, tiles, s.product, [&](const RowTile& tile, const float* acc) {
      for (int64_t p = 0; p < range.panels; ++p) {
        const int64_t column = (panel + p) * kPanel, columns = std::min(kPanel, w.n - column);
        for (int64_t r = 0; r < tile.rows; ++r) {
          leaf_.store_f32(acc + (p * tile.rows + r) * kPanel, 1, columns,
                          rows.to + row_of(tile.row + r, rows.to_batch) * rows.to_stride + column, 0);
        }
      }
    });
  }
}

void Decoder::absorb_query(const float* q, const PackedWeight::Impl& w, int64_t h, int thread) const {
  const int64_t width = shape_.nope_dim + shape_.rope_dim, stride = width * shape_.num_heads;
  const int64_t row = shape_.num_heads * shape_.row_width();
  float* to = queries_ + h * shape_.row_width();
  multiply_rows(w, Rows{q + h * width, stride, true, to, row, false}, thread);
  for (size_t b = 0; b < sequences_.size(); ++b) {
    std::copy_n(q + sequences_[b].first_row * stride + h * width + shape_.nope_dim, shape_.rope_dim,
                to + int64_t(b) * row + shape_.kv_lora_rank);
  }
}

void Decoder::absorb_output(const PackedWeight::Impl& w, int64_t h, float* out, int thread) const {
  const int64_t lora = shape_.kv_lora_rank, v = shape_.v_dim, heads = shape_.num_heads;
  multiply_rows(w, Rows{latents_ + h * lora, heads * lora, false, out + h * v, heads * v, true}, thread);
}

void Decoder::attend(const Split& split, int64_t index, int thread) const {
  Carver carver(scratch_of(thread));
  const Attend s(carver, shape_);
  const SequenceSpan& sequence = sequences_[size_t(split.sequence)];
  const int64_t lora = shape_.kv_lora_rank, width = shape_.row_width(), columns = this->columns();
  fetch_rows(sequence, split.begin, std::min<int64_t>(split.begin + kAhead, split.end));
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t first_head = g * kHeads, heads = std::min(kHeads, shape_.num_heads - first_head);
    const Partial partial = partial_at(index, g);
    const float* from[kHeads];
    for (int64_t h = 0; h < heads; ++h) {
      from[h] = queries_ + (split.sequence * shape_.num_heads + first_head + h) * width;
    }
    if (heads < columns) std::fill_n(s.query, width * columns, 0.0f);
    leaf_.transpose(from, heads, width, s.query, columns);
    std::fill_n(partial.top, kHeads, -INFINITY);
    std::fill_n(partial.sum, kHeads, 0.0f);
    for (int64_t begin = split.begin; begin < split.end; begin += kKeyBlock) {
      const int64_t keys = std::min<int64_t>(kKeyBlock, split.end - begin);
      alignas(64) float decay[kHeads];
      for (int64_t j = 0; j < keys; j += kRows) {
        const int64_t ahead = begin + j + kAhead, count = std::min(kRows, keys - j);
        if (g == 0) fetch_rows(sequence, ahead, std::min<int64_t>(ahead + kRows, split.end));
        for (int64_t i = j; i < j + count; ++i) {
          read_row(leaf_, cache_, cache_row(shape_, cache_, sequence, begin + i), 0, width, s.rows + i * width);
        }
        leaf_.dot_rows(s.rows + j * width, width, count, s.query, width, columns, s.scores + j * columns);
      }
      leaf_.softmax_heads(s.scores, keys, columns, shape_.softmax_scale * kLog2E, partial.top, partial.sum, decay);
      leaf_.heads_tile(s.rows, width, lora, s.scores, keys, columns, begin == split.begin ? nullptr : decay,
                       partial.out);
    }
  }
}

// Splits in order of their keys, into the first one's place; then rows per head.
void Decoder::combine_splits(int64_t b) const {
  const int64_t lora = shape_.kv_lora_rank, columns = this->columns();
  const float scale = shape_.softmax_scale * kLog2E;
  const int32_t begin = first_split_[b], end = first_split_[b + 1];
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t first_head = g * kHeads, heads = std::min(kHeads, shape_.num_heads - first_head);
    const Partial total = partial_at(begin, g);
    float top[kHeads], sums[kHeads];
    alignas(64) float factor[kHeads];
    for (int64_t h = 0; h < columns; ++h) {
      top[h] = total.top[h];
      for (int32_t i = begin + 1; i < end; ++i) top[h] = std::max(top[h], partial_at(i, g).top[h]);
      float sum = 0;
      for (int32_t i = begin; i < end; ++i)
        sum += std::exp2((partial_at(i, g).top[h] - top[h]) * scale) * partial_at(i, g).sum[h];
      sums[h] = sum;
    }
    for (int32_t i = begin; i < end; ++i) {
      const Partial part = partial_at(i, g);
      for (int64_t h = 0; h < columns; ++h) factor[h] = std::exp2((part.top[h] - top[h]) * scale) / sums[h];
      leaf_.scale_add_heads(part.out, lora, columns, factor, i == begin, total.out);
    }
    float* by_head = latents_ + (b * shape_.num_heads + first_head) * lora;
    for (int64_t d = 0; d < lora; d += kHeads) {
      const float* from[kHeads];
      const int64_t rows = std::min(kHeads, lora - d);
      for (int64_t i = 0; i < rows; ++i) from[i] = total.out + (d + i) * columns;
      leaf_.transpose(from, rows, heads, by_head + d, lora);
    }
  }
}

}  // namespace

size_t decode_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_sequences, int64_t max_context) {
  const int64_t heads = shape.num_heads, groups = (heads + kHeads - 1) / kHeads;
  const int64_t splits = max_sequences * std::min(kMaxSplits, (max_context + kSplitKeys - 1) / kSplitKeys);
  const size_t rows = size_t(max_sequences * heads * (shape.row_width() + shape.kv_lora_rank)) * sizeof(float);
  const int64_t partials = splits * groups * Decoder::partial_floats(shape);
  return rows + size_t(max_sequences + 1) * sizeof(int32_t) + size_t(splits) * sizeof(Split) +
         size_t(partials) * sizeof(float) +
         (Decoder::thread_bytes(shape, max_sequences) + 64) * size_t(ctx.pool->num_threads()) + 512;
}

void mla_decode(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  if (sequences.empty()) return;
  const device::WorkspaceScope scope(*ctx.workspace);
  Decoder(ctx, shape, cache, sequences).run(q.as<float>(), weights, out.as<float>());
}

}  // namespace tandem::kernels::cpu
