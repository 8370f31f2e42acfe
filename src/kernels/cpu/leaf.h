// Leaf kernels: plain functions on pointers, compiled once per instruction set (leaf_<isa>.cc) and reached through a
// table. Nothing here may use standard templates or inline functions of other headers: the linker could then pick
// the copy built with instructions that the CPU at hand lacks.
//
// Words used throughout:
//   pair    two neighbouring bf16 inputs (k, k + 1) in one 32-bit word, k in the low half
//   panel   32 outputs; per pair of inputs 32 words in bf16 form, 64 bytes in FP8 form
//   tile    up to kTileRows rows of activations, [pairs][rows] words, so that one pointer walks all rows
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace tandem::kernels::cpu {

inline constexpr int kTileRows = 12;

// acc[panel][row][32] = sum over pairs of a[pair][row] . w[panel][pair][column], one running sum per element in the
// order of the pairs; with scales, one sum per segment, then acc += scale * sum in the order of the segments.
struct TileArgs {
  const uint32_t* a;
  int64_t a_stride;          // words from pair to pair
  int64_t rows;              // 1..kTileRows
  const void* w;             // first panel
  int64_t w_panel_stride;    // bytes from panel to panel
  int64_t panels;            // tile_f8 only: panels to compute
  int64_t first_pair;        // of K, where a and w begin
  const int32_t* pair_ends;  // end of each segment, in pairs of K
  int64_t segments;
  const float* scales;  // [panel][segment][scale_width]; null: none
  int64_t scale_panel_stride;
  int64_t scale_width;  // 1: one scale for the panel's columns; 32: one each
  bool accumulate;      // with scales: acc holds earlier segments
  const float* decay;   // [32] without scales: acc = acc * decay + sum; null: acc = sum
  uint32_t* wide;       // tile_f8 of one panel: widened pairs are left here for other tiles; null: not wanted
  float* acc;           // [panels][rows][32]
};

// Softmax over one block of keys for 32 queries (columns), running maximum and sum kept by the caller.
struct SoftmaxBlock {
  float* scores;          // [keys][32], overwritten
  int64_t keys;           // rows, even
  const int32_t* limits;  // [32] keys visible to each column, may exceed keys or be <= 0
  bool masked;            // false: every column sees every key
  float factor;           // softmax scale times log2(e)
  float* top;             // [32] running maximum of unscaled scores, -inf at first
  float* sum;             // [32]
  float* decay;           // [32] out: what earlier sums are worth now
  uint32_t* p;            // [keys / 2][32] out: pairs of probabilities
};

struct Leaf {
  // bf16 panel (native, or widened FP8).
  void (*tile)(const TileArgs&);
  // FP8 panels, widened on the fly.
  void (*tile_f8)(const TileArgs&);
  // 64 bytes of FP8 per pair -> 32 words of bf16 per pair.
  void (*widen)(const uint8_t* f8, int64_t pairs, uint32_t* out);
  // dst[j * dst_stride + i] = src[i][j] for i < rows, j < words.
  void (*transpose)(const uint32_t* const* src, int64_t rows, int64_t words, uint32_t* dst, int64_t dst_stride);

  // Rows of a tile to their places; columns <= 32.
  void (*store_f32)(const float* acc, int64_t rows, int64_t columns, float* y, int64_t y_stride);
  void (*add_f32)(const float* acc, int64_t rows, int64_t columns, float* y, int64_t y_stride);
  void (*store_bf16)(const float* acc, int64_t rows, int64_t columns, uint16_t* y, int64_t y_stride);
  // silu(gate) * up of whole panels, as pairs: out[row][16] words.
  void (*swiglu_tile)(const float* gate, const float* up, int64_t rows, uint32_t* out);

  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t width, uint16_t* y, float* y_f32);
  void (*swiglu)(const float* gate, const float* up, int64_t width, uint16_t* y);
  void (*widen_row)(const uint16_t* x, int64_t width, float* y);
  void (*narrow_row)(const float* x, int64_t width, uint16_t* y);
  // Rotates pairs (2i, 2i + 1) by (cos, sin) pairs; width even.
  void (*rope)(const float* x, const float* cos_sin, int64_t width, uint16_t* y);
  // y += sum over k of weights[k] * rows[k], in order.
  void (*weighted_sum)(const float* const* rows, const float* weights, int64_t count, int64_t width, float* y);
  // y[t][e] = x[t] . w[e] in f32 for up to 4 rows of x.
  void (*gate_scores)(const float* x, int64_t rows, const float* w, int64_t experts, int64_t width, float* y);
  void (*sigmoid)(float* x, int64_t count);
  void (*softmax)(float* x, int64_t count);
  // Index of the largest value, the lowest of equals; -1 when a NaN was seen.
  int64_t (*argmax)(const float* x, int64_t count);
  // out[i] = exp(x[i] - top).
  void (*exp_below)(const float* x, int64_t count, float top, float* out);

  void (*softmax_block)(const SoftmaxBlock&);
  // acc[row][32] *= factor[32].
  void (*scale_columns)(float* acc, int64_t rows, const float* factor);

  // For decode: heads as columns, 8 or 16 of them side by side.
  // out[row][columns] = rows[row] . w[pair][columns]: rows of pairs as they lie in the cache.
  void (*dot_rows)(const uint32_t* const* rows, int64_t count, const uint32_t* w, int64_t pairs, int64_t columns,
                   float* out);
  // As softmax_block; every column sees all keys, and an odd last key is paired with zero.
  void (*softmax_heads)(float* scores, int64_t keys, int64_t columns, float factor, float* top, float* sum,
                        float* decay, uint32_t* p);
  // acc[row][columns] = acc * decay[columns] + sum over pairs of a[pair][row] . w[pair][columns]; decay null: the sum.
  void (*heads_tile)(const uint32_t* a, int64_t a_stride, int64_t rows, const uint32_t* w, int64_t pairs,
                     int64_t columns, const float* decay, float* acc);
  // acc[row][columns] = (fresh ? 0 : acc) + from[row][columns] * factor[columns].
  void (*scale_add_heads)(const float* from, int64_t rows, int64_t columns, const float* factor, bool fresh,
                          float* acc);
  // Two rows of bf16 -> words (low: first, high: second; second null: zero).
  void (*interleave)(const uint16_t* first, const uint16_t* second, int64_t width, uint32_t* out);
};

extern const Leaf kLeafAvx2;
extern const Leaf kLeafAvx512;
extern const Leaf kLeafAvx512Bf16;

// bf16 of the 128 magnitudes of FP8 E4M3 ("fn"), low and high bytes apart, for byte look-ups.
struct F8Table {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
extern const F8Table kF8Table;

}  // namespace tandem::kernels::cpu
