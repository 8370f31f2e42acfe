#include "kernels/cpu/product.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace tandem::kernels::cpu {
namespace {

using device::DType;

void multiply_fused(const Leaf& leaf, const PanelRange& range, const RowTile& tile, const TileSink& sink) {
  const PackedWeight::Impl& w = *range.w;
  alignas(64) float acc[kMaxPanels * kTileRows * kPanel];
  TileArgs args{};
  args.a = tile.a;
  args.a_stride = tile.rows;
  args.rows = tile.rows;
  args.w = panel_at(w, range.first);
  args.w_panel_stride = panel_bytes(w) * range.step;
  args.panels = range.panels;
  args.ends = w.segment_ends();
  args.segments = w.num_segments();
  args.scales = scales_at(w, range.first);
  args.scale_panel_stride = w.num_segments() * w.scale_width * range.step;
  args.scale_width = w.scale_width;
  args.acc = acc;
  leaf.tile_f8(args);
  sink(tile, acc);
}

void multiply_bf16(const Leaf& leaf, const PanelRange& range, std::span<const RowTile> tiles, const TileSink& sink) {
  const PackedWeight::Impl& w = *range.w;
  alignas(64) float acc[kMaxPanels * kTileRows * kPanel];
  for (const RowTile& tile : tiles) {
    TileArgs args{};
    args.a = tile.a;
    args.a_stride = tile.rows;
    args.rows = tile.rows;
    args.ends = w.segment_ends();
    args.segments = 1;
    for (int64_t p = 0; p < range.panels; ++p) {
      args.w = panel_at(w, range.first + p * range.step);
      args.acc = acc + p * tile.rows * kPanel;
      leaf.tile_bf16(args);
    }
    sink(tile, acc);
  }
}

// Asks for part `part` of `parts` of the next range's panels: widening reads each panel once and in a hurry, at the
// pace of memory, so the bytes should be on their way while tiles are multiplied.
void prefetch_next(const PanelRange& range, int64_t part, int64_t parts) {
  constexpr int64_t kLine = 64;
  if (range.next < 0) return;
  const int64_t lines = panel_bytes(*range.w) / kLine, begin = lines * part / parts, end = lines * (part + 1) / parts;
  for (int64_t p = 0; p < range.panels; ++p) {
    const char* panel = panel_at(*range.w, range.next + p * range.step);
    for (int64_t i = begin; i < end; ++i) __builtin_prefetch(panel + i * kLine, 0, 2);
  }
}

// Takes ownership of the lines that a tile will write: its rows lie a matrix row apart, and stores that miss one after
// another would take as long as the tile itself.
void prefetch_output(const PanelRange& range, const RowTile& tile) {
  if (range.out == nullptr) return;
  for (int64_t r = 0; r < tile.rows; ++r) {
    char* row = range.out + (tile.row + r) * range.out_stride;
    __builtin_prefetch(row, 1, 3);
    __builtin_prefetch(row + 64, 1, 3);
  }
}

// Segments [begin, return) fill at most kChunkInputs inputs (one segment at least: it has 128 inputs at most).
int64_t chunk_end(const PackedWeight::Impl& w, int64_t begin) {
  int64_t end = begin + 1;
  while (end < w.num_segments() && w.segment_ends()[end] - w.segments[size_t(begin)] <= kChunkInputs) ++end;
  return end;
}

// FP8 panels are widened once per chunk of K and used by every tile of the batch.
void multiply_widened(const Leaf& leaf, const PanelRange& range, std::span<const RowTile> tiles, void* scratch,
                      const TileSink& sink) {
  const PackedWeight::Impl& w = *range.w;
  float* wide = static_cast<float*>(scratch);
  float* sums = wide + 2 * kChunkInputs * kPanel;
  CHECK(range.panels <= 2 && int64_t(tiles.size()) <= kBatchTiles);
  for (int64_t segment = 0, end = 0; segment < w.num_segments(); segment = end) {
    end = chunk_end(w, segment);
    const int64_t first = w.segments[size_t(segment)], inputs = w.segments[size_t(end)] - first;
    const bool whole = segment == 0 && end == w.num_segments();
    for (int64_t p = 0; p < range.panels; ++p) {
      const char* panel = panel_at(w, range.first + p * range.step) + first * kPanel;
      leaf.widen(reinterpret_cast<const uint8_t*>(panel), inputs, wide + p * kChunkInputs * kPanel);
    }
    float* acc = sums;
    for (size_t i = 0; i < tiles.size(); ++i) {
      const RowTile& tile = tiles[i];
      if (segment == 0) prefetch_next(range, int64_t(i), int64_t(tiles.size()));
      if (end == w.num_segments()) prefetch_output(range, tile);
      TileArgs args{};
      args.a = tile.a + first * tile.rows;
      args.a_stride = args.rows = tile.rows;
      args.first_input = first;
      args.ends = w.segment_ends() + segment;
      args.segments = end - segment;
      args.scale_width = w.scale_width;
      args.accumulate = segment != 0;
      for (int64_t p = 0; p < range.panels; ++p) {
        args.scales = scales_at(w, range.first + p * range.step) + segment * w.scale_width;
        args.acc = acc + p * tile.rows * kPanel;
        args.w = wide + p * kChunkInputs * kPanel;
        leaf.tile_f32(args);
      }
      if (end == w.num_segments()) sink(tile, acc);
      if (!whole) acc += range.panels * tile.rows * kPanel;
    }
  }
}

}  // namespace

const Leaf& leaf_of(const Context& ctx) {
  switch (ctx.isa) {
    case Isa::kAvx2: return kLeafAvx2;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: return kLeafAvx512;
  }
  CHECK(false);
  return kLeafAvx2;
}

RowTile tile_at(int64_t rows, int64_t i) {
  const int64_t tiles = num_tiles(rows), size = rows / tiles, larger = rows % tiles;
  RowTile tile;
  tile.row = int32_t(i * size + std::min(i, larger));
  tile.rows = int32_t(size + (i < larger ? 1 : 0));
  return tile;
}

int64_t panel_bytes(const PackedWeight::Impl& w) {
  return num_pairs(w.k) * kPanel * (w.dtype == DType::kF8E4M3 ? 2 : 4);
}

const char* panel_at(const PackedWeight::Impl& w, int64_t panel) {
  return static_cast<const char*>(w.values.data()) + panel * panel_bytes(w);
}

const float* scales_at(const PackedWeight::Impl& w, int64_t panel) {
  return static_cast<const float*>(w.scales.data()) + panel * w.num_segments() * w.scale_width;
}

bool is_fused(const Leaf& leaf, const PackedWeight::Impl& w, int64_t rows) {
  return w.dtype == DType::kF8E4M3 && rows <= leaf.max_f8_rows;
}

void multiply(const Leaf& leaf, const PanelRange& range, std::span<const RowTile> tiles, void* scratch,
              const TileSink& sink) {
  if (tiles.size() == 1 && is_fused(leaf, *range.w, tiles[0].rows)) return multiply_fused(leaf, range, tiles[0], sink);
  if (range.w->dtype != DType::kF8E4M3) return multiply_bf16(leaf, range, tiles, sink);
  for (size_t i = 0; i < tiles.size(); i += kBatchTiles) {
    multiply_widened(leaf, range, tiles.subspan(i, std::min(size_t(kBatchTiles), tiles.size() - i)), scratch, sink);
  }
}

}  // namespace tandem::kernels::cpu
