// Tiles of rows times panels of a packed weight: what linear and the grouped MLP share.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/leaf.h"
#include "kernels/gemm_impl.h"

namespace tandem::kernels::cpu {

const Leaf& leaf_of(const Context& ctx);

// Up to kTileRows rows of activations, [inputs][rows]; `row` is the first one's index in the caller's matrix.
struct RowTile {
  const float* a = nullptr;
  int32_t row = 0;
  int32_t rows = 0;
};

inline int64_t num_pairs(int64_t k) { return (k + 1) / 2; }
inline int64_t num_panels(int64_t n) { return (n + kPanel - 1) / kPanel; }
inline int64_t num_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
// Tile i of `rows` rows in num_tiles(rows) tiles of nearly equal size; `a` is left null.
RowTile tile_at(int64_t rows, int64_t i);

// Panels as they lie in memory.
int64_t panel_bytes(const PackedWeight::Impl& w);
const char* panel_at(const PackedWeight::Impl& w, int64_t panel);
const float* scales_at(const PackedWeight::Impl& w, int64_t panel);

// Per-thread scratch of multiply().
inline constexpr int64_t kMaxPanels = 4;
inline constexpr int64_t kChunkInputs = 1024;  // of widened FP8 held at once: 128 KiB a panel, half of an L2 for two
inline constexpr int64_t kBatchTiles = 64;     // tiles that keep partial sums while K is walked in chunks
inline constexpr size_t kScratchBytes =
    2 * (kChunkInputs * kPanel * sizeof(float) + kBatchTiles * kTileRows * kPanel * sizeof(float));

// `panels` panels of w: first, first + step, ... Up to kMaxPanels where is_fused, else up to 2.
struct PanelRange {
  const PackedWeight::Impl* w = nullptr;
  int64_t first = 0, panels = 1, step = 1;
  // First panel of the range that this thread multiplies next; its bytes are fetched meanwhile. -1: not known.
  int64_t next = -1;
  // Where row 0's results of the first panel will go, two lines of them, and bytes from row to row. Null: not known.
  char* out = nullptr;
  int64_t out_stride = 0;
};

// Receives acc [panels][tile.rows][32] of each tile. Borrowed callable, as device::LoopBody.
class TileSink {
 public:
  template <class F>
  TileSink(const F& f)  // NOLINT: implicit on purpose, f outlives the call
      : object_(&f), call_([](const void* object, const RowTile& tile, const float* acc) {
          (*static_cast<const F*>(object))(tile, acc);
        }) {}
  void operator()(const RowTile& tile, const float* acc) const { call_(object_, tile, acc); }

 private:
  const void* object_;
  void (*call_)(const void*, const RowTile&, const float*);
};

// True where FP8 is widened in registers for these many rows: one pass over the weight serves all of them.
bool is_fused(const Leaf& leaf, const PackedWeight::Impl& w, int64_t rows);
void multiply(const Leaf& leaf, const PanelRange& range, std::span<const RowTile> tiles, void* scratch,
              const TileSink& sink);

}  // namespace tandem::kernels::cpu
