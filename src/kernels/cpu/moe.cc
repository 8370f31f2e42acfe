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
constexpr int64_t kMaxTopK = 64;

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

// Gathers the rows of every tile; a tile of one row needs no copy.
void gather(const Context& ctx, const Leaf& leaf, const TensorView& x, const SlotSort& sort, Plan& plan) {
  const int64_t width = x.dim(1), pairs = num_pairs(width);
  uint32_t* packed = ctx.workspace->take_array<uint32_t>(sort.row_token.size() * size_t(pairs));
  const auto fill = [&](int64_t i) {
    RowTile& tile = plan.tiles[size_t(i)];
    const uint16_t* from[kTileRows];
    for (int64_t r = 0; r < tile.rows; ++r) {
      from[r] = x.as<uint16_t>() + sort.row_token[size_t(tile.row + r)] * width;
    }
    if (tile.rows == 1 && width % 2 == 0) {
      tile.a = reinterpret_cast<const uint32_t*>(from[0]);
      return;
    }
    uint32_t* out = packed + tile.row * pairs;
    pack_tile(leaf, from, tile.rows, width, out);
    tile.a = out;
  };
  for_rows(ctx, int64_t(plan.tiles.size()), int64_t(sort.row_token.size()) * width / int64_t(plan.tiles.size()), fill);
}

// Panels (or pairs of them) that a task takes in a row, so that it can fetch the next while it multiplies one.
constexpr int64_t kRun = 4;

// Gate and up panels of a slot side by side, so that their activation never leaves the core.
void gate_up(const Context& ctx, const Leaf& leaf, std::span<const ExpertWeights* const> experts, int64_t width,
             const Plan& plan, uint32_t* inner, char* scratch) {
  const int64_t panels = width / kPanel, pairs = width / 2, runs = (panels + kRun - 1) / kRun;
  ctx.pool->parallel_for(int64_t(plan.active.size()) * runs, [&](int64_t i, int thread) {
    const Active& active = plan.active[size_t(i / runs)];
    const auto tiles = plan.tiles.subspan(size_t(active.first_tile), size_t(active.tiles));
    const int64_t end = std::min(panels, (i % runs + 1) * kRun);
    for (int64_t panel = i % runs * kRun; panel < end; ++panel) {
      const PanelRange range{experts[size_t(active.slot)]->gate_up.impl(), panel, 2, panels,
                             panel + 1 < end ? panel + 1 : -1};
      multiply(leaf, range, tiles, scratch + kScratchBytes * size_t(thread),
               [&](const RowTile& tile, const float* acc) {
                 alignas(64) uint32_t words[kTileRows * kPanel / 2];
                 const uint32_t* from[kTileRows];
                 leaf.swiglu_tile(acc, acc + tile.rows * kPanel, tile.rows, words);
                 for (int64_t r = 0; r < tile.rows; ++r) from[r] = words + r * kPanel / 2;
                 uint32_t* to = inner + tile.row * pairs + panel * kPanel / 2 * tile.rows;
                 leaf.transpose(from, tile.rows, kPanel / 2, to, tile.rows);
               });
    }
  });
}

void down(const Context& ctx, const Leaf& leaf, std::span<const ExpertWeights* const> experts, const Plan& plan,
          const TensorView& y, char* scratch) {
  const int64_t hidden = y.dim(1), panels = num_panels(hidden), runs = (panels + kRun - 1) / kRun;
  ctx.pool->parallel_for(int64_t(plan.active.size()) * runs, [&](int64_t i, int thread) {
    const Active& active = plan.active[size_t(i / runs)];
    const auto tiles = plan.inner.subspan(size_t(active.first_tile), size_t(active.tiles));
    const PackedWeight::Impl& w = *experts[size_t(active.slot)]->down.impl();
    const int64_t once = is_fused(w, tiles) ? kRun : 1, end = std::min(panels, (i % runs + 1) * kRun);
    for (int64_t panel = i % runs * kRun; panel < end; panel += once) {
      PanelRange range{&w, panel, std::min(once, end - panel), 1, panel + once < end ? panel + once : -1};
      range.out = reinterpret_cast<char*>(y.as<float>() + panel * kPanel);
      range.out_stride = hidden * int64_t(sizeof(float));
      multiply(leaf, range, tiles, scratch + kScratchBytes * size_t(thread),
               [&](const RowTile& tile, const float* acc) {
                 for (int64_t p = 0; p < range.panels; ++p) {
                   const int64_t column = (panel + p) * kPanel;
                   leaf.store_f32(acc + p * tile.rows * kPanel, tile.rows, std::min(kPanel, hidden - column),
                                  y.as<float>() + tile.row * hidden + column, hidden);
                 }
               });
    }
  });
}

// Widths that are no multiple of a panel: slot by slot through linear.
void mlp_unfused(const Context& ctx, const TensorView& x, const SlotSort& sort,
                 std::span<const ExpertWeights* const> experts, int64_t width, const TensorView& y) {
  const int64_t hidden = x.dim(1);
  for (size_t slot = 0; slot + 1 < sort.slot_begin.size(); ++slot) {
    const int64_t begin = sort.slot_begin[slot], rows = sort.slot_begin[slot + 1] - begin;
    if (rows == 0) continue;
    const device::WorkspaceScope scope(*ctx.workspace);
    const TensorView gathered(ctx.workspace->take_array<uint16_t>(size_t(rows * hidden)), DType::kBF16, {rows, hidden});
    const TensorView wide(ctx.workspace->take_array<float>(size_t(rows * 2 * width)), DType::kF32, {rows, 2 * width});
    const TensorView inner(ctx.workspace->take_array<uint16_t>(size_t(rows * width)), DType::kBF16, {rows, width});
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(x.as<uint16_t>() + sort.row_token[size_t(begin + r)] * hidden, hidden,
                  gathered.as<uint16_t>() + r * hidden);
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
  const int64_t pairs = intermediate / 2;
  Plan plan = make_plan(ctx, sort);
  gather(ctx, leaf, x, sort, plan);
  uint32_t* inner = ctx.workspace->take_array<uint32_t>(sort.row_token.size() * size_t(pairs));
  for (size_t i = 0; i < plan.tiles.size(); ++i) {
    plan.inner[i] = RowTile{inner + plan.tiles[i].row * pairs, plan.tiles[i].row, plan.tiles[i].rows};
  }
  char* scratch = ctx.workspace->take_array<char>(kScratchBytes * size_t(ctx.pool->num_threads()));
  gate_up(ctx, leaf, experts, intermediate, plan, inner, scratch);
  down(ctx, leaf, experts, plan, y, scratch);
}

void combine(const Context& ctx, TensorView y, const SlotSort& sort, TensorView weights, TensorView out) {
  const Leaf& leaf = leaf_of(ctx);
  const int64_t hidden = out.dim(1), top_k = weights.dim(1);
  CHECK(top_k <= kMaxTopK);
  for_rows(ctx, out.dim(0), hidden * top_k, [&](int64_t t) {
    const float* rows[kMaxTopK];
    for (int64_t k = 0; k < top_k; ++k) rows[k] = y.as<float>() + sort.row_of[size_t(t * top_k + k)] * hidden;
    leaf.weighted_sum(rows, weights.as<float>() + t * top_k, top_k, hidden, out.as<float>() + t * hidden);
  });
}

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int64_t hidden, int64_t intermediate) {
  const int64_t rows = max_rows * top_k;
  const size_t tiles = size_t(num_tiles(rows) + rows) * 2 * sizeof(RowTile) + size_t(rows) * sizeof(Active);
  const size_t fused = size_t(rows * (num_pairs(hidden) + num_pairs(intermediate))) * sizeof(uint32_t) +
                       kScratchBytes * size_t(ctx.pool->num_threads());
  const size_t unfused = size_t(rows * (2 * hidden + 10 * intermediate)) +
                         cpu::linear_workspace_bytes(ctx, rows, hidden, std::max(hidden, intermediate));
  return tiles + (intermediate % kPanel == 0 ? fused : unfused) + 1024;
}

}  // namespace tandem::kernels::cpu
