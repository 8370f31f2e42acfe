#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/cpu/product.h"

namespace tandem::kernels::cpu {
namespace {

using device::DType;
using device::TensorView;

// Below this many multiplications a second thread costs more than it brings.
constexpr int64_t kSerialWork = 48 * 1024;

// Which weight of a stack an output belongs to.
struct Column {
  const RawWeight* w = nullptr;
  int64_t n = 0;
};

Column column_at(const std::vector<RawWeight>& stacked, int64_t n) {
  for (const RawWeight& w : stacked) {
    if (n < raw_outputs(w)) return {&w, n};
    n -= raw_outputs(w);
  }
  return {};
}

void pack_f8_column(const Column& column, int64_t k, int64_t c, uint8_t* panel) {
  const uint8_t* from = raw_at(*column.w, column.n, 0);
  const int64_t stride = column.w->transposed ? column.w->row_stride : 1;
  for (int64_t i = 0; i < k; ++i) panel[i * kPanel + c] = from[i * stride];
}

// Whether a segment of a column holds a NaN, which the leaves would read as a number.
bool has_nan(const Column& column, int64_t begin, int64_t end) {
  const int64_t stride = column.w->transposed ? column.w->row_stride : 1;
  const uint8_t* from = raw_at(*column.w, column.n, begin);
  bool found = false;
  for (int64_t i = begin; i < end; ++i, from += stride) found |= (*from & 0x7f) == 0x7f;
  return found;
}

void pack_bf16_column(const Column& column, int64_t k, int64_t c, uint16_t* panel) {
  for (int64_t i = 0; i < k; ++i) {
    const RawWeight& w = *column.w;
    panel[i / 2 * 2 * kPanel + c * 2 + i % 2] = w.dtype == DType::kBF16
                                                    ? *reinterpret_cast<const uint16_t*>(raw_at(w, column.n, i))
                                                    : device::bf16_from_f32(raw_value(w, column.n, i));
  }
}

// Fills scales as [panels][segments][32], or [panels][segments] where that says the same, times the 2^8 that the leaves
// leave to them. NaN where a value is NaN: for that output, or for its panel where the panel has one scale.
void pack_scales(PackedWeight::Impl& impl, const std::vector<RawWeight>& stacked) {
  const int64_t segments = impl.num_segments(), panels = num_panels(impl.n);
  std::vector<float> full(size_t(panels * segments * kPanel), 0.0f);
  std::vector<bool> poisoned(full.size());
  bool shared = true;
  for (int64_t n = 0; n < panels * kPanel; ++n) {
    const Column column = column_at(stacked, std::min(n, impl.n - 1));  // padding takes its neighbour's
    for (int64_t s = 0; s < segments; ++s) {
      const size_t row = size_t((n / kPanel * segments + s) * kPanel), at = row + size_t(n % kPanel);
      const int32_t begin = impl.segments[size_t(s)];
      full[at] = raw_scale(*column.w, column.n, begin) * 256.0f;
      poisoned[at] = has_nan(column, begin, impl.segments[size_t(s) + 1]);
      shared = shared && full[at] == full[row];
    }
  }
  impl.scale_width = shared ? 1 : kPanel;
  impl.scales = device::Buffer(device::Device::kCpu, size_t(panels * segments * impl.scale_width) * sizeof(float));
  float* scales = static_cast<float*>(impl.scales.data());
  for (int64_t i = 0; i < panels * segments * impl.scale_width; ++i)
    scales[i] = full[size_t(i * kPanel / impl.scale_width)];
  for (size_t i = 0; i < full.size(); ++i) {
    if (poisoned[i]) scales[i * size_t(impl.scale_width) / kPanel] = NAN;
  }
}

void put_tile(const Leaf& leaf, const TensorView& y, bool add, const RowTile& tile, int64_t column, const float* acc) {
  const int64_t n = y.dim(1), columns = std::min(kPanel, n - column), at = tile.row * n + column;
  if (add) return leaf.add_f32(acc, tile.rows, columns, y.as<float>() + at, n);
  leaf.store_f32(acc, tile.rows, columns, y.as<float>() + at, n);
}

// Tiles of a matrix of activations. A tile is packed by the thread that will use it where that is known.
struct Tiles {
  RowTile* tiles;
  float* packed;  // null: the one row serves as it lies
  const float* input;
  int64_t rows, k, count;

  Tiles(const Context& ctx, const TensorView& x)
      : input(x.as<float>()), rows(x.dim(0)), k(x.dim(1)), count(num_tiles(x.dim(0))) {
    tiles = ctx.workspace->take_array<RowTile>(size_t(count));
    packed = rows == 1 ? nullptr : ctx.workspace->take_array<float>(size_t(rows * k));
  }

  std::span<const RowTile> pack(const Leaf& leaf, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      tiles[i] = tile_at(rows, i);
      if (packed == nullptr) {
        tiles[i].a = input;
        continue;
      }
      const float* from[kTileRows];
      for (int64_t r = 0; r < tiles[i].rows; ++r) from[r] = input + (tiles[i].row + r) * k;
      float* out = packed + tiles[i].row * k;
      leaf.transpose(from, tiles[i].rows, k, out, tiles[i].rows);
      tiles[i].a = out;
    }
    return {tiles + begin, size_t(end - begin)};
  }
};

// One call of linear.
struct Product {
  const Leaf& leaf;
  const PackedWeight::Impl& w;
  const TensorView& y;
  bool add;
  char* scratch;  // per thread

  // Panels [begin, end), `once` at a time.
  void run(std::span<const RowTile> tiles, int64_t begin, int64_t end, int64_t once, int thread) const {
    char* own = scratch == nullptr ? nullptr : scratch + kScratchBytes * size_t(thread);
    for (int64_t panel = begin; panel < end; panel += once) {
      PanelRange range{&w, panel, std::min(once, end - panel), 1, panel + once < end ? panel + once : -1};
      range.out = reinterpret_cast<char*>(y.as<float>() + panel * kPanel);
      range.out_stride = w.n * int64_t(sizeof(float));
      multiply(leaf, range, tiles, own, [&](const RowTile& tile, const float* acc) {
        for (int64_t p = 0; p < range.panels; ++p) {
          put_tile(leaf, y, add, tile, (panel + p) * kPanel, acc + p * tile.rows * kPanel);
        }
      });
    }
  }
};

}  // namespace

void pack_into(PackedWeight::Impl& impl, const std::vector<RawWeight>& stacked) {
  const int64_t pairs = num_pairs(impl.k), panels = num_panels(impl.n);
  const int64_t bytes = pairs * kPanel * (impl.dtype == DType::kF8E4M3 ? 2 : 4);
  CHECK(impl.dtype == DType::kF8E4M3 || impl.dtype == DType::kBF16);
  impl.values = device::Buffer(device::Device::kCpu, size_t(panels * bytes));
  for (int64_t n = 0; n < impl.n; ++n) {
    char* panel = static_cast<char*>(impl.values.data()) + n / kPanel * bytes;
    if (impl.dtype == DType::kF8E4M3) {
      pack_f8_column(column_at(stacked, n), impl.k, n % kPanel, reinterpret_cast<uint8_t*>(panel));
    } else {
      pack_bf16_column(column_at(stacked, n), impl.k, n % kPanel, reinterpret_cast<uint16_t*>(panel));
    }
  }
  if (impl.dtype == DType::kF8E4M3) pack_scales(impl, stacked);
}

// Many rows times a small weight are split among threads by rows: a thread's packed tiles and outputs stay in its own
// cache, and the weight in everyone's. Else by outputs, so that each byte of the weight is read once. Neither changes a
// result. On two threads 512 x 512 x 512 runs at 0.74 of perfect scaling by outputs, at 0.9 by rows; 512 x 4096 x 2048
// at 0.96 by outputs, at 0.86 by rows.
void linear(const Context& ctx, TensorView x, const PackedWeight& weight, TensorView y, bool add) {
  constexpr int64_t kRunTiles = 8, kSmallWeight = int64_t(1) << 20;
  const Leaf& leaf = leaf_of(ctx);
  const PackedWeight::Impl& w = *weight.impl();
  const device::WorkspaceScope scope(*ctx.workspace);
  const Tiles tiles(ctx, x);
  const int64_t panels = num_panels(w.n), threads = ctx.pool->num_threads();
  const bool f8 = w.dtype == DType::kF8E4M3, fused = is_fused(leaf, w, x.dim(0));
  char* scratch = f8 && !fused ? ctx.workspace->take_array<char>(kScratchBytes * size_t(threads)) : nullptr;
  const Product product{leaf, w, y, add, scratch};
  if (tiles.count >= 2 * threads && w.n * w.k <= kSmallWeight) {
    const int64_t tasks = threads * ((tiles.count + threads * kRunTiles - 1) / (threads * kRunTiles));
    ctx.pool->parallel_for(tasks, [&](int64_t i, int thread) {
      const int64_t begin = i * tiles.count / tasks, end = (i + 1) * tiles.count / tasks;
      product.run(tiles.pack(leaf, begin, end), 0, panels, 1, thread);
    });
    return;
  }
  const std::span<const RowTile> all = tiles.pack(leaf, 0, tiles.count);
  const int64_t once = fused ? kMaxPanels : 1;
  const int64_t group = std::clamp<int64_t>(panels / (4 * threads), 1, kMaxPanels);
  const auto body = [&](int64_t i, int thread) {
    product.run(all, i * group, std::min(panels, (i + 1) * group), once, thread);
  };
  const int64_t tasks = (panels + group - 1) / group;
  if (x.dim(0) * w.n * w.k < kSerialWork) {
    for (int64_t i = 0; i < tasks; ++i) body(i, 0);
  } else {
    ctx.pool->parallel_for(tasks, body);
  }
}

size_t linear_workspace_bytes(const Context& ctx, int64_t max_rows, int64_t, int64_t k) {
  return size_t(num_tiles(max_rows)) * sizeof(RowTile) + size_t(max_rows * k) * sizeof(float) +
         kScratchBytes * size_t(ctx.pool->num_threads()) + 256;
}

}  // namespace tandem::kernels::cpu
