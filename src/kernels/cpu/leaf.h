// Leaf kernels: plain functions on pointers, compiled once per instruction set (leaf_<isa>.cc) and reached through a
// table. Nothing here may use standard templates or inline functions of other headers: the linker could then pick
// the copy built with instructions that the CPU at hand lacks.
//
// Activations are f32 everywhere; weights are FP8 or bf16, widened exactly, so that every product is one of two f32
// values.
//
// Words used throughout:
//   panel   32 outputs. FP8: 32 bytes per input. bf16: 32 words per pair of inputs (k, k + 1), k in the low half.
//           f32: 32 floats per input (widened FP8, queries, probabilities)
//   half    16 neighbouring outputs of a panel
//   tile    up to kTileRows rows of activations, [inputs][rows] floats, so that one pointer walks all rows
// FP8 is widened to 2^-8 of its value (see Fp8Panel in leaf_gemm.inc); its scales hold the 2^8.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace tandem::kernels::cpu {

inline constexpr int kTileRows = 12;

// acc[panel][row][32] = sum over inputs of a[input][row] * w[panel][input][column], one running sum per element in the
// order of the inputs; with scales, one sum per segment, then acc += scale * sum in the order of the segments.
struct TileArgs {
  const float* a;
  int64_t a_stride;        // floats from input to input
  int64_t rows;            // 1..kTileRows
  const void* w;           // first panel
  int64_t w_panel_stride;  // bytes from panel to panel
  int64_t panels;          // tile_f8 only: panels to compute
  int64_t first_input;     // of K, where a and w begin
  const int32_t* ends;     // end of each segment, in inputs of K
  int64_t segments;
  const float* scales;  // [panel][segment][scale_width]; null: none
  int64_t scale_panel_stride;
  int64_t scale_width;  // 1: one scale for the panel's columns; 32: one each
  bool accumulate;      // with scales: acc holds earlier segments
  const float* decay;   // [32] without scales: acc = acc * decay + sum; null: acc = sum
  float* acc;           // [panels][rows][32]
};

// Softmax over one block of keys for 32 queries (columns), running maximum and sum kept by the caller.
struct SoftmaxBlock {
  float* scores;          // [keys][32], overwritten with the probabilities
  int64_t keys;           // rows
  const int32_t* limits;  // [32] keys visible to each column, may exceed keys or be <= 0
  bool masked;            // false: every column sees every key
  float factor;           // softmax scale times log2(e)
  float* top;             // [32] running maximum of unscaled scores, -inf at first
  float* sum;             // [32]
  float* decay;           // [32] out: what earlier sums are worth now
};

struct Leaf {
  // Rows that tile_f8 takes; more are better served by widen and tile_f32.
  int64_t max_f8_rows;
  // Tiles times bf16, f32 and FP8 panels. All give the same bits for the same values.
  void (*tile_bf16)(const TileArgs&);
  void (*tile_f32)(const TileArgs&);
  void (*tile_f8)(const TileArgs&);
  // 32 bytes of FP8 per input -> 32 floats per input.
  void (*widen)(const uint8_t* f8, int64_t inputs, float* out);
  // dst[j * dst_stride + i] = src[i][j] for i < rows, j < columns.
  void (*transpose)(const float* const* src, int64_t rows, int64_t columns, float* dst, int64_t dst_stride);

  // Rows of a tile to their places; columns <= 32.
  void (*store_f32)(const float* acc, int64_t rows, int64_t columns, float* y, int64_t y_stride);
  void (*add_f32)(const float* acc, int64_t rows, int64_t columns, float* y, int64_t y_stride);
  // silu(gate) * up of whole panels: [rows][32] each.
  void (*swiglu_tile)(const float* gate, const float* up, int64_t rows, float* out);

  // Into y, or rounded into y_bf16 where y is null.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t width, float* y, uint16_t* y_bf16);
  void (*swiglu)(const float* gate, const float* up, int64_t width, float* y);
  void (*widen_row)(const uint16_t* x, int64_t width, float* y);
  void (*narrow_row)(const float* x, int64_t width, uint16_t* y);
  void (*widen_f8_row)(const uint8_t* x, int64_t width, float* y);
  // Rotates pairs (2i, 2i + 1) by (cos, sin) pairs; width even.
  void (*rope)(const float* x, const float* cos_sin, int64_t width, float* y);
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
  // out[row][columns] = x[row] . w[input][columns]; rows of x `stride` floats apart.
  void (*dot_rows)(const float* x, int64_t stride, int64_t rows, const float* w, int64_t inputs, int64_t columns,
                   float* out);
  // As softmax_block; every column sees all keys.
  void (*softmax_heads)(float* scores, int64_t keys, int64_t columns, float factor, float* top, float* sum,
                        float* decay);
  // acc[row][columns] = acc * decay[columns] + sum over inputs of a[input][row] * w[input][columns]; decay null: the
  // sum.
  void (*heads_tile)(const float* a, int64_t a_stride, int64_t rows, const float* w, int64_t inputs, int64_t columns,
                     const float* decay, float* acc);
  // acc[row][columns] = (fresh ? 0 : acc) + from[row][columns] * factor[columns].
  void (*scale_add_heads)(const float* from, int64_t rows, int64_t columns, const float* factor, bool fresh,
                          float* acc);

  // See fp8_rows.h; a scale per 128 columns.
  void (*quantise_row)(const float* x, int64_t width, uint8_t* values, float* scales);
  void (*dequantise_row)(const uint8_t* values, const float* scales, int64_t width, float* x);
};

extern const Leaf kLeafAvx2;
extern const Leaf kLeafAvx512;

}  // namespace tandem::kernels::cpu
