#include <algorithm>
#include <cstring>

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

// Byte of column c (0..31) and input 0 or 1 among the 64 of an FP8 pair; see leaf_gemm.inc.
int64_t f8_place(int64_t c) { return c % 16 / 4 * 16 + c / 16 * 8 + c % 4 * 2; }

void pack_f8_column(const Column& column, int64_t k, int64_t c, uint8_t* panel) {
  const uint8_t* from = raw_at(*column.w, column.n, 0);
  const int64_t stride = column.w->transposed ? column.w->row_stride : 1;
  uint8_t* to = panel + f8_place(c);
  for (int64_t i = 0; i + 1 < k; i += 2, to += 2 * kPanel) {
    to[0] = from[i * stride];
    to[1] = from[(i + 1) * stride];
  }
  if (k % 2 != 0) to[0] = from[(k - 1) * stride];
}

void pack_bf16_column(const Column& column, int64_t k, int64_t c, uint16_t* panel) {
  for (int64_t i = 0; i < k; ++i) {
    const RawWeight& w = *column.w;
    panel[i / 2 * 2 * kPanel + c * 2 + i % 2] = w.dtype == DType::kBF16
                                                    ? *reinterpret_cast<const uint16_t*>(raw_at(w, column.n, i))
                                                    : device::bf16_from_f32(raw_value(w, column.n, i));
  }
}

// Fills scales as [panels][segments][32], or [panels][segments] where that says the same.
void pack_scales(PackedWeight::Impl& impl, const std::vector<RawWeight>& stacked) {
  const int64_t segments = impl.num_segments(), panels = num_panels(impl.n);
  std::vector<float> full(size_t(panels * segments * kPanel), 0.0f);
  bool shared = true;
  for (int64_t n = 0; n < panels * kPanel; ++n) {
    const Column column = column_at(stacked, std::min(n, impl.n - 1));  // padding takes its neighbour's
    for (int64_t s = 0; s < segments; ++s) {
      float* row = full.data() + (n / kPanel * segments + s) * kPanel;
      row[n % kPanel] = raw_scale(*column.w, column.n, impl.segments[size_t(s)]);
      shared = shared && row[n % kPanel] == row[0];
    }
  }
  impl.scale_width = shared ? 1 : kPanel;
  impl.scales = device::Buffer(device::Device::kCpu, size_t(panels * segments * impl.scale_width) * sizeof(float));
  float* scales = static_cast<float*>(impl.scales.data());
  for (int64_t i = 0; i < panels * segments * impl.scale_width; ++i)
    scales[i] = full[size_t(i * kPanel / impl.scale_width)];
}

void put_tile(const Leaf& leaf, const TensorView& y, bool add, const RowTile& tile, int64_t column, const float* acc) {
  const int64_t n = y.dim(1), columns = std::min(kPanel, n - column), at = tile.row * n + column;
  if (y.dtype() == DType::kBF16) return leaf.store_bf16(acc, tile.rows, columns, y.as<uint16_t>() + at, n);
  if (add) return leaf.add_f32(acc, tile.rows, columns, y.as<float>() + at, n);
  leaf.store_f32(acc, tile.rows, columns, y.as<float>() + at, n);
}

// Tiles of a matrix of activations. A tile is packed by the thread that will use it where that is known.
struct Tiles {
  RowTile* tiles;
  uint32_t* packed;  // null: the one row serves as it lies
  const uint16_t* input;
  int64_t rows, k, count;

  Tiles(const Context& ctx, const TensorView& x)
      : input(x.as<uint16_t>()), rows(x.dim(0)), k(x.dim(1)), count(num_tiles(x.dim(0))) {
    const bool in_place = rows == 1 && k % 2 == 0;
    tiles = ctx.workspace->take_array<RowTile>(size_t(count));
    packed = in_place ? nullptr : ctx.workspace->take_array<uint32_t>(size_t(rows * num_pairs(k)));
  }

  std::span<const RowTile> pack(const Leaf& leaf, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      tiles[i] = tile_at(rows, i);
      if (packed == nullptr) {
        tiles[i].a = reinterpret_cast<const uint32_t*>(input);
        continue;
      }
      const uint16_t* from[kTileRows];
      for (int64_t r = 0; r < tiles[i].rows; ++r) from[r] = input + (tiles[i].row + r) * k;
      uint32_t* out = packed + tiles[i].row * num_pairs(k);
      pack_tile(leaf, from, tiles[i].rows, k, out);
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
    const int64_t width = int64_t(size_of(y.dtype()));
    for (int64_t panel = begin; panel < end; panel += once) {
      PanelRange range{&w, panel, std::min(once, end - panel), 1, panel + once < end ? panel + once : -1};
      range.out = y.as<char>() + panel * kPanel * width;
      range.out_stride = w.n * width;
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
  for (size_t s = 1; s < impl.segments.size(); ++s) impl.pair_ends.push_back(int32_t(num_pairs(impl.segments[s])));
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
  const bool f8 = w.dtype == DType::kF8E4M3, fused = f8 && tiles.count == 1;
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
  return size_t(num_tiles(max_rows)) * sizeof(RowTile) + size_t(max_rows * num_pairs(k)) * sizeof(uint32_t) +
         kScratchBytes * size_t(ctx.pool->num_threads()) + 256;
}

}  // namespace tandem::kernels::cpu
