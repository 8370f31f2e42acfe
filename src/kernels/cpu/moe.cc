#include <algorithm>

#include "base/check.h"
#include "kernels/backends.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/rows.h"
#include "kernels/ref/ref.h"

namespace tandem::kernels::cpu {
namespace {

using device::DType;
using device::TensorView;

constexpr int64_t kGateRows = 4;

// One slot with rows, and its tiles among all tiles.
struct Active {
  int32_t slot = 0;
  int32_t first_tile = 0, tiles = 0;
};

// The rows of a step, cut into tiles slot by slot. `inner` of a tile is where its activations between the two
// projections go, in tile form too.
struct Plan {
  std::span<Active> active;
  std::span<RowTile> tiles;  // row: index among the sorted rows
  std::span<RowTile> inner;
};

Plan make_plan(const Context& ctx, const SlotSort& sort) {
  const int64_t slots = int64_t(sort.slot_begin.size()) - 1, rows = int64_t(sort.row_token.size());
  Active* active = ctx.workspace->take_array<Active>(size_t(std::min(slots, rows)));
  const size_t most = size_t(num_tiles(rows) + std::min(slots, rows));
  RowTile* tiles = ctx.workspace->take_array<RowTile>(most);
  RowTile* inner = ctx.workspace->take_array<RowTile>(most);
  size_t num_active = 0, count = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int32_t begin = sort.slot_begin[size_t(slot)], here = sort.slot_begin[size_t(slot) + 1] - begin;
    if (here == 0) continue;
    active[num_active++] = {int32_t(slot), int32_t(count), int32_t(num_tiles(here))};
    for (int64_t i = 0; i < num_tiles(here); ++i, ++count) {
      tiles[count] = tile_at(here, i);
      tiles[count].row += begin;
    }
  }
  return Plan{{active, num_active}, {tiles, count}, {inner, count}};
}

// Panels (or pairs of them) that a task takes in a row, so that it can fetch the next while it multiplies one.
constexpr int64_t kRun = 4;

bool is_fused_slot(const Leaf& leaf, const PackedWeight::Impl& w, std::span<const RowTile> tiles) {
  return tiles.size() == 1 && is_fused(leaf, w, tiles[0].rows);
}

// One call of grouped_mlp, in the pieces that its two schedules share.
struct Mlp {
  const Leaf& leaf;
  const TensorView& x;
  const SlotSort& sort;
  std::span<const ExpertWeights* const> experts;
  int64_t width;
  const TensorView& y;
  Plan plan;
  float* packed;  // gathered rows in tile form
  float* inner;   // activations between the projections
  char* scratch;  // per thread

  char* own(int thread) const { return scratch + kScratchBytes * size_t(thread); }

  // Gathers the rows of a tile; a tile of one row needs no copy.
  void gather(int64_t i) const {
    const int64_t hidden = x.dim(1);
    RowTile& tile = plan.tiles[size_t(i)];
    const float* from[kTileRows];
    for (int64_t r = 0; r < tile.rows; ++r) {
      from[r] = x.as<float>() + sort.row_token[size_t(tile.row + r)] * hidden;
    }
    plan.inner[size_t(i)] = RowTile{inner + tile.row * width, tile.row, tile.rows};
    tile.a = from[0];
    if (tile.rows == 1) return;
    float* out = packed + tile.row * hidden;
    leaf.transpose(from, tile.rows, hidden, out, tile.rows);
    tile.a = out;
  }

  // Gate and up panels [begin, end) of a slot side by side, so that their activation never leaves the core.
  void gate_up(const Active& active, int64_t begin, int64_t end, int thread) const {
    const auto tiles = plan.tiles.subspan(size_t(active.first_tile), size_t(active.tiles));
    for (int64_t panel = begin; panel < end; ++panel) {
      const PanelRange range{experts[size_t(active.slot)]->gate_up.impl(), panel, 2, width / kPanel,
                             panel + 1 < end ? panel + 1 : -1};
      multiply(leaf, range, tiles, own(thread), [&](const RowTile& tile, const float* acc) {
        alignas(64) float product[kTileRows * kPanel];
        const float* from[kTileRows];
        leaf.swiglu_tile(acc, acc + tile.rows * kPanel, tile.rows, product);
        for (int64_t r = 0; r < tile.rows; ++r) from[r] = product + r * kPanel;
        leaf.transpose(from, tile.rows, kPanel, inner + tile.row * width + panel * kPanel * tile.rows, tile.rows);
      });
    }
  }

  void down(const Active& active, int64_t begin, int64_t end, int thread) const {
    const auto tiles = plan.inner.subspan(size_t(active.first_tile), size_t(active.tiles));
    const PackedWeight::Impl& w = *experts[size_t(active.slot)]->down.impl();
    const int64_t hidden = y.dim(1), once = is_fused_slot(leaf, w, tiles) ? kRun : 1;
    for (int64_t panel = begin; panel < end; panel += once) {
      PanelRange range{&w, panel, std::min(once, end - panel), 1, panel + once < end ? panel + once : -1};
      range.out = reinterpret_cast<char*>(y.as<float>() + panel * kPanel);
      range.out_stride = hidden * int64_t(sizeof(float));
      multiply(leaf, range, tiles, own(thread), [&](const RowTile& tile, const float* acc) {
        for (int64_t p = 0; p < range.panels; ++p) {
          const int64_t column = (panel + p) * kPanel;
          leaf.store_f32(acc + p * tile.rows * kPanel, tile.rows, std::min(kPanel, hidden - column),
                         y.as<float>() + tile.row * hidden + column, hidden);
        }
      });
    }
  }
};

// Puts the slots with most work first and says whether handing them out whole keeps the threads about equally busy.
bool can_balance_whole_slots(const Context& ctx, std::span<Active> active) {
  std::sort(active.begin(), active.end(),
            [](const Active& a, const Active& b) { return a.tiles != b.tiles ? a.tiles > b.tiles : a.slot < b.slot; });
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t threads = ctx.pool->num_threads();
  int64_t* load = ctx.workspace->take_array<int64_t>(size_t(threads));
  std::fill_n(load, threads, 0);
  int64_t total = 0;
  for (const Active& a : active) {
    *std::min_element(load, load + threads) += a.tiles;
    total += a.tiles;
  }
  return *std::max_element(load, load + threads) * threads * 10 <= total * 11;
}

// A slot's whole MLP on one thread: its activations stay in that core's cache and threads meet once.
void run_whole_slots(const Context& ctx, const Mlp& mlp) {
  ctx.pool->parallel_for(int64_t(mlp.plan.active.size()), [&](int64_t i, int thread) {
    const Active& active = mlp.plan.active[size_t(i)];
    for (int64_t t = 0; t < active.tiles; ++t) mlp.gather(active.first_tile + t);
    mlp.gate_up(active, 0, mlp.width / kPanel, thread);
    mlp.down(active, 0, num_panels(mlp.y.dim(1)), thread);
  });
}

// Slots cut into runs of panels, for when a few of them have most of the rows.
void run_cut_slots(const Context& ctx, const Mlp& mlp) {
  const int64_t count = int64_t(mlp.plan.active.size()), hidden = mlp.y.dim(1);
  const auto runs_of = [](int64_t panels) { return (panels + kRun - 1) / kRun; };
  const auto in_runs = [&](int64_t panels, auto body) {
    const int64_t runs = runs_of(panels);
    ctx.pool->parallel_for(count * runs, [&](int64_t i, int thread) {
      const int64_t begin = i % runs * kRun;
      body(mlp.plan.active[size_t(i / runs)], begin, std::min(panels, begin + kRun), thread);
    });
  };
  for_rows(ctx, int64_t(mlp.plan.tiles.size()), kTileRows * hidden, [&](int64_t i) { mlp.gather(i); });
  in_runs(mlp.width / kPanel, [&](auto&... args) { mlp.gate_up(args...); });
  in_runs(num_panels(hidden), [&](auto&... args) { mlp.down(args...); });
}

// Widths that are no multiple of a panel: slot by slot through linear.
void mlp_unfused(const Context& ctx, const TensorView& x, const SlotSort& sort,
                 std::span<const ExpertWeights* const> experts, int64_t width, const TensorView& y) {
  const int64_t hidden = x.dim(1);
  for (size_t slot = 0; slot + 1 < sort.slot_begin.size(); ++slot) {
    const int64_t begin = sort.slot_begin[slot], rows = sort.slot_begin[slot + 1] - begin;
    if (rows == 0) continue;
    const device::WorkspaceScope scope(*ctx.workspace);
    const TensorView gathered(ctx.workspace->take_array<float>(size_t(rows * hidden)), DType::kF32, {rows, hidden});
    const TensorView wide(ctx.workspace->take_array<float>(size_t(rows * 2 * width)), DType::kF32, {rows, 2 * width});
    const TensorView inner(ctx.workspace->take_array<float>(size_t(rows * width)), DType::kF32, {rows, width});
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(x.as<float>() + sort.row_token[size_t(begin + r)] * hidden, hidden,
                  gathered.as<float>() + r * hidden);
    }
    cpu::linear(ctx, gathered, experts[slot]->gate_up, wide, false);
    cpu::swiglu(ctx, wide, inner);
    cpu::linear(ctx, inner, experts[slot]->down,
                TensorView(y.as<float>() + begin * hidden, DType::kF32, {rows, hidden}), false);
  }
}

}  // namespace

void gate(const Context& ctx, const GateConfig& config, TensorView x, TensorView weight, TensorView bias,
          TensorView ids, TensorView weights) {
  const Leaf& leaf = leaf_of(ctx);
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t rows = x.dim(0), hidden = x.dim(1), experts = config.num_experts, top_k = config.top_k;
  const size_t per_thread = size_t((kGateRows + 1) * experts + config.num_groups + 16);
  float* scratch = ctx.workspace->take_array<float>(per_thread * size_t(ctx.pool->num_threads()));
  const auto body = [&](int64_t i, int thread) {
    float* scores = scratch + per_thread * size_t(thread);
    const int64_t begin = i * kGateRows, count = std::min(kGateRows, rows - begin);
    leaf.gate_scores(x.as<float>() + begin * hidden, count, weight.as<float>(), experts, hidden, scores);
    for (int64_t r = 0; r < count; ++r) {
      float* row = scores + r * experts;
      config.scoring == GateScoring::kSigmoid ? leaf.sigmoid(row, experts) : leaf.softmax(row, experts);
      ref::choose_experts(config, row, bias.as<float>(), scores + kGateRows * experts,
                          ids.as<int32_t>() + (begin + r) * top_k, weights.as<float>() + (begin + r) * top_k);
    }
  };
  const int64_t blocks = (rows + kGateRows - 1) / kGateRows;
  if (rows * hidden * experts < 64 * 1024) {
    for (int64_t i = 0; i < blocks; ++i) body(i, 0);
  } else {
    ctx.pool->parallel_for(blocks, body);
  }
}

void grouped_mlp(const Context& ctx, TensorView x, const SlotSort& sort, std::span<const ExpertWeights* const> experts,
                 int32_t intermediate, TensorView y) {
  if (sort.row_token.empty()) return;
  if (intermediate % kPanel != 0) return mlp_unfused(ctx, x, sort, experts, intermediate, y);
  const Leaf& leaf = leaf_of(ctx);
  const device::WorkspaceScope scope(*ctx.workspace);
  const size_t rows = sort.row_token.size();
  Mlp mlp{leaf, x, sort, experts, intermediate, y, make_plan(ctx, sort), nullptr, nullptr, nullptr};
  mlp.packed = ctx.workspace->take_array<float>(rows * size_t(x.dim(1)));
  mlp.inner = ctx.workspace->take_array<float>(rows * size_t(intermediate));
  mlp.scratch = ctx.workspace->take_array<char>(kScratchBytes * size_t(ctx.pool->num_threads()));
  can_balance_whole_slots(ctx, mlp.plan.active) ? run_whole_slots(ctx, mlp) : run_cut_slots(ctx, mlp);
}

void combine(const Context& ctx, std::span<const float* const> rows, TensorView weights, TensorView out) {
  const Leaf& leaf = leaf_of(ctx);
  const int64_t hidden = out.dim(1), top_k = weights.dim(1);
  for_rows(ctx, out.dim(0), hidden * top_k, [&](int64_t t) {
    leaf.weighted_sum(rows.data() + t * top_k, weights.as<float>() + t * top_k, top_k, hidden,
                      out.as<float>() + t * hidden);
  });
}

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int64_t hidden, int64_t intermediate) {
  const int64_t rows = max_rows * top_k;
  const size_t tiles = size_t(num_tiles(rows) + rows) * 2 * sizeof(RowTile) + size_t(rows) * sizeof(Active);
  const size_t fused =
      size_t(rows * (hidden + intermediate)) * sizeof(float) + kScratchBytes * size_t(ctx.pool->num_threads());
  const size_t unfused = size_t(rows * (hidden + 3 * intermediate)) * sizeof(float) +
                         cpu::linear_workspace_bytes(ctx, rows, hidden, std::max(hidden, intermediate));
  return tiles + (intermediate % kPanel == 0 ? fused : unfused) + size_t(ctx.pool->num_threads()) * 8 + 1024;
}

}  // namespace tandem::kernels::cpu
