// Decode attention in absorbed form: queries are brought into the latent space once, then every key of the cache serves
// all heads, which are the columns of a panel of 16.
//
//   query[h] = absorb_k[h] q_nope[h] | q_rope[h]        one task per head, all sequences
//   scores [keys, 16] = cache rows . query^T            one task per sequence and split of its keys
//   O [lora, 16] = O * decay + latents^T . P
//   out[h] = absorb_v[h] O[h]                           one task per head, all sequences
#include <algorithm>
#include <cmath>
#include <cstring>

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
    queries_ = workspace.take_array<uint16_t>(size_t(batch * shape.num_heads * shape.row_width()));
    latents_ = workspace.take_array<uint16_t>(size_t(batch * shape.num_heads * shape.kv_lora_rank));
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
    by_head_ = workspace.take_array<float>(size_t(batch * kHeads * shape.kv_lora_rank));
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

  void run(const uint16_t* q, const KvUpWeights& weights, uint16_t* out) {
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
    uint32_t* packed;
    char* product;
    Absorb(Carver& carver, const MlaShape& shape, int64_t batch) {
      tiles = carver.take<RowTile>(num_tiles(batch));
      packed = carver.take<uint32_t>(batch * num_pairs(std::max(shape.nope_dim, shape.kv_lora_rank)));
      product = carver.take<char>(int64_t(kScratchBytes));
    }
  };
  struct Attend {
    uint32_t* query;   // [width words][16]
    uint32_t* values;  // [kKeyBlock / 2][lora]
    float* scores;     // [kKeyBlock][16]
    uint32_t* p;       // [kKeyBlock / 2][16]
    Attend(Carver& carver, const MlaShape& shape) {
      query = carver.take<uint32_t>(shape.row_width() / 2 * kHeads);
      values = carver.take<uint32_t>(kKeyBlock / 2 * shape.kv_lora_rank);
      scores = carver.take<float>(kKeyBlock * kHeads);
      p = carver.take<uint32_t>(kKeyBlock / 2 * kHeads);
    }
  };

  // Asks for the cache rows of positions [begin, end): they lie wherever their blocks do, too short for the hardware to
  // foresee.
  void fetch_rows(const SequenceSpan& sequence, int64_t begin, int64_t end) const {
    constexpr int64_t kLine = 32;  // elements
    for (int64_t p = begin; p < end; ++p) {
      const uint16_t* row = cache_row(shape_, cache_, sequence, p);
      for (int64_t i = 0; i < shape_.row_width(); i += kLine) __builtin_prefetch(row + i, 0, 2);
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
    const uint16_t* from;
    int64_t from_stride;
    bool from_batch;  // row of a sequence: its first_row in the caller's matrix, else its index here
    uint16_t* to;
    int64_t to_stride;
    bool to_batch;
  };
  void multiply_rows(const PackedWeight::Impl& w, const Rows& rows, int thread) const;

  void absorb_query(const uint16_t* q, const PackedWeight::Impl& w, int64_t h, int thread) const;
  void attend(const Split& split, int64_t index, int thread) const;
  void combine_splits(int64_t b) const;
  void absorb_output(const PackedWeight::Impl& w, int64_t h, uint16_t* out, int thread) const;

  const Context& ctx_;
  const Leaf& leaf_;
  const MlaShape& shape_;
  const PagedCache& cache_;
  std::span<const SequenceSpan> sequences_;
  uint16_t* queries_ = nullptr;     // [batch][heads][row_width]
  uint16_t* latents_ = nullptr;     // [batch][heads][lora]
  int32_t* first_split_ = nullptr;  // [batch + 1]
  Split* splits_ = nullptr;
  float* partials_ = nullptr;  // [splits][groups] of Partial
  float* by_head_ = nullptr;   // [batch][16][lora]
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
    const uint16_t* from[kTileRows];
    for (int64_t r = 0; r < tile.rows; ++r) {
      from[r] = rows.from + row_of(tile.row + r, rows.from_batch) * rows.from_stride;
    }
    uint32_t* packed = s.packed + tile.row * num_pairs(w.k);
    pack_tile(leaf_, from, tile.rows, w.k, packed);
    tile.a = packed;
  }
  const std::span<const RowTile> tiles(s.tiles, size_t(num_tiles(batch)));
  const int64_t panels = num_panels(w.n), group = is_fused(w, tiles) ? kMaxPanels : 1;
  for (int64_t panel = 0; panel < panels; panel += group) {
    const PanelRange range{&w, panel, std::min(group, panels - panel), 1};
    multiply(leaf_, range, tiles, s.product, [&](const RowTile& tile, const float* acc) {
      for (int64_t p = 0; p < range.panels; ++p) {
        const int64_t column = (panel + p) * kPanel, columns = std::min(kPanel, w.n - column);
        for (int64_t r = 0; r < tile.rows; ++r) {
          leaf_.store_bf16(acc + (p * tile.rows + r) * kPanel, 1, columns,
                           rows.to + row_of(tile.row + r, rows.to_batch) * rows.to_stride + column, 0);
        }
      }
    });
  }
}

void Decoder::absorb_query(const uint16_t* q, const PackedWeight::Impl& w, int64_t h, int thread) const {
  const int64_t width = shape_.nope_dim + shape_.rope_dim, stride = width * shape_.num_heads;
  const int64_t row = shape_.num_heads * shape_.row_width();
  uint16_t* to = queries_ + h * shape_.row_width();
  multiply_rows(w, Rows{q + h * width, stride, true, to, row, false}, thread);
  for (size_t b = 0; b < sequences_.size(); ++b) {
    std::memcpy(to + int64_t(b) * row + shape_.kv_lora_rank,
                q + sequences_[b].first_row * stride + h * width + shape_.nope_dim,
                size_t(shape_.rope_dim) * sizeof(uint16_t));
  }
}

void Decoder::absorb_output(const PackedWeight::Impl& w, int64_t h, uint16_t* out, int thread) const {
  const int64_t lora = shape_.kv_lora_rank, v = shape_.v_dim, heads = shape_.num_heads;
  multiply_rows(w, Rows{latents_ + h * lora, heads * lora, false, out + h * v, heads * v, true}, thread);
}

void Decoder::attend(const Split& split, int64_t index, int thread) const {
  Carver carver(scratch_of(thread));
  const Attend s(carver, shape_);
  const SequenceSpan& sequence = sequences_[size_t(split.sequence)];
  const int64_t lora = shape_.kv_lora_rank, words = shape_.row_width() / 2, columns = this->columns();
  fetch_rows(sequence, split.begin, std::min<int64_t>(split.begin + kAhead, split.end));
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t first_head = g * kHeads, heads = std::min(kHeads, shape_.num_heads - first_head);
    const Partial partial = partial_at(index, g);
    const uint32_t* from[kHeads];
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t at = split.sequence * shape_.num_heads + first_head + h;
      from[h] = reinterpret_cast<const uint32_t*>(queries_ + at * shape_.row_width());
    }
    if (heads < columns) std::memset(s.query, 0, size_t(words * columns) * sizeof(uint32_t));
    leaf_.transpose(from, heads, words, s.query, columns);
    std::fill_n(partial.top, kHeads, -INFINITY);
    std::fill_n(partial.sum, kHeads, 0.0f);
    for (int64_t begin = split.begin; begin < split.end; begin += kKeyBlock) {
      const int64_t keys = std::min<int64_t>(kKeyBlock, split.end - begin);
      const uint32_t* rows[kKeyBlock];
      for (int64_t j = 0; j < keys; ++j) {
        rows[j] = reinterpret_cast<const uint32_t*>(cache_row(shape_, cache_, sequence, begin + j));
      }
      alignas(64) float decay[kHeads];
      for (int64_t j = 0; j < keys; j += kRows) {
        const int64_t ahead = begin + j + kAhead;
        if (g == 0) fetch_rows(sequence, ahead, std::min<int64_t>(ahead + kRows, split.end));
        leaf_.dot_rows(rows + j, std::min(kRows, keys - j), s.query, words, columns, s.scores + j * columns);
      }
      leaf_.softmax_heads(s.scores, keys, columns, shape_.softmax_scale * kLog2E, partial.top, partial.sum, decay, s.p);
      for (int64_t j = 0; j < keys; j += 2) {
        const uint16_t* second = j + 1 < keys ? reinterpret_cast<const uint16_t*>(rows[j + 1]) : nullptr;
        leaf_.interleave(reinterpret_cast<const uint16_t*>(rows[j]), second, lora, s.values + j / 2 * lora);
      }
      leaf_.heads_tile(s.values, lora, lora, s.p, (keys + 1) / 2, columns, begin == split.begin ? nullptr : decay,
                       partial.out);
    }
  }
}

// Splits in order of their keys, into the first one's place; then rows per head, rounded.
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
    float* by_head = by_head_ + b * kHeads * lora;
    for (int64_t d = 0; d < lora; d += kHeads) {
      const uint32_t* from[kHeads];
      const int64_t rows = std::min(kHeads, lora - d);
      for (int64_t i = 0; i < rows; ++i) from[i] = reinterpret_cast<const uint32_t*>(total.out) + (d + i) * columns;
      leaf_.transpose(from, rows, columns, reinterpret_cast<uint32_t*>(by_head) + d, lora);
    }
    for (int64_t h = 0; h < heads; ++h) {
      leaf_.narrow_row(by_head + h * lora, lora, latents_ + (b * shape_.num_heads + first_head + h) * lora);
    }
  }
}

}  // namespace

size_t decode_workspace_bytes(const Context& ctx, const MlaShape& shape, int64_t max_sequences, int64_t max_context) {
  const int64_t heads = shape.num_heads, groups = (heads + kHeads - 1) / kHeads;
  const int64_t splits = max_sequences * std::min(kMaxSplits, (max_context + kSplitKeys - 1) / kSplitKeys);
  const size_t rows = size_t(max_sequences * heads * (shape.row_width() + shape.kv_lora_rank)) * sizeof(uint16_t);
  const int64_t partials = (splits * groups + max_sequences) * Decoder::partial_floats(shape);
  return rows + size_t(max_sequences + 1) * sizeof(int32_t) + size_t(splits) * sizeof(Split) +
         size_t(partials) * sizeof(float) +
         (Decoder::thread_bytes(shape, max_sequences) + 64) * size_t(ctx.pool->num_threads()) + 512;
}

void mla_decode(const Context& ctx, const MlaShape& shape, TensorView q, const KvUpWeights& weights,
                const PagedCache& cache, std::span<const SequenceSpan> sequences, TensorView out) {
  if (sequences.empty()) return;
  const device::WorkspaceScope scope(*ctx.workspace);
  Decoder(ctx, shape, cache, sequences).run(q.as<uint16_t>(), weights, out.as<uint16_t>());
}

}  // namespace tandem::kernels::cpu
