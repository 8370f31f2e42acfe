#include "kernels/attention.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/support.h"

namespace tandem::kernels::test {
namespace {

constexpr float kEpsilon = 1e-6f;

MlaShape shape_of(int32_t heads, int32_t nope, int32_t rope, int32_t v, int32_t lora) {
  MlaShape shape;
  shape.num_heads = heads;
  shape.nope_dim = nope;
  shape.rope_dim = rope;
  shape.v_dim = v;
  shape.kv_lora_rank = lora;
  shape.softmax_scale = 1.0f / std::sqrt(float(nope + rope));
  return shape;
}

std::vector<float> rope_table(int32_t positions, int32_t width) {
  std::vector<float> table(size_t(positions * width));
  for (int32_t p = 0; p < positions; ++p) {
    for (int32_t i = 0; i < width; i += 2) {
      const double angle = p * std::pow(10000.0, -double(i) / width);
      table[size_t(p * width + i)] = float(std::cos(angle));
      table[size_t(p * width + i + 1)] = float(std::sin(angle));
    }
  }
  return table;
}

// One backend's world: a cache with shuffled blocks, filled through mla_write_cache, and packed weights.
struct World {
  World(const MlaShape& shape, DType weight_type, Backend backend, Isa isa, int threads = 2,
        DType cache_type = DType::kF32)
      : rig(backend, isa, threads),
        shape(shape),
        kv_b(weight_type, shape.num_heads * (shape.nope_dim + shape.v_dim), shape.kv_lora_rank, 77),
        weights(pack_kv_up(backend, isa, shape, kv_b.all())),
        memory(size_t(kBlocks * kBlockTokens * shape.row_width()) * 4),
        table(rope_table(kBlocks * kBlockTokens, shape.rope_dim)) {
    cache.base = memory.data();
    cache.dtype = cache_type;
    cache.block_tokens = kBlockTokens;
    cache.num_blocks = kBlocks;
    rope = {table.data(), kBlocks * kBlockTokens, shape.rope_dim};
    // A good fraction of rounded weights: kv_b has unit variance, so keys would have norms of sqrt(lora).
    this->shape.softmax_scale *= 1.0f / std::sqrt(float(shape.kv_lora_rank));
  }

  // Fills positions [0, count) of a sequence whose blocks are `blocks`, with latents by seed.
  void fill(const std::vector<int32_t>& blocks, int32_t count, uint64_t seed) {
    std::vector<float> kv_a = random_floats(size_t(count * (shape.row_width() + 5)), seed);
    std::vector<float> norm = random_floats(size_t(shape.kv_lora_rank), 5, 0.2f);
    for (float& w : norm) w += 1.0f;
    std::vector<int32_t> positions(static_cast<size_t>(count)), slots;
    std::iota(positions.begin(), positions.end(), 0);
    for (int32_t p = 0; p < count; ++p)
      slots.push_back(blocks[size_t(p / kBlockTokens)] * kBlockTokens + p % kBlockTokens);
    mla_write_cache(rig.ctx, shape, view(kv_a, {count, shape.row_width() + 5}), shape.row_width() + 5,
                    view(norm, {shape.kv_lora_rank}), kEpsilon, positions, slots, rope, cache);
  }

  static constexpr int32_t kBlockTokens = 16, kBlocks = 200;
  Rig rig;
  MlaShape shape;
  Matrix kv_b;
  KvUpWeights weights;
  std::vector<uint8_t> memory;
  std::vector<float> table;
  PagedCache cache;
  RopeTable rope;
};

struct Sequence {
  std::vector<int32_t> blocks;
  int32_t prefix, rows;
};

// Sequences with blocks handed out in a shuffled order.
std::vector<Sequence> sequences_of(const std::vector<std::pair<int32_t, int32_t>>& prefix_and_rows) {
  std::vector<int32_t> free(World::kBlocks);
  std::iota(free.begin(), free.end(), 0);
  std::shuffle(free.begin(), free.end(), std::mt19937(3));
  std::vector<Sequence> result;
  for (const auto& [prefix, rows] : prefix_and_rows) {
    const int32_t blocks = (prefix + rows + World::kBlockTokens - 1) / World::kBlockTokens;
    result.push_back({{free.end() - blocks, free.end()}, prefix, rows});
    free.resize(free.size() - size_t(blocks));
  }
  return result;
}

std::vector<SequenceSpan> spans_of(const std::vector<Sequence>& sequences) {
  std::vector<SequenceSpan> spans;
  int32_t row = 0;
  for (const Sequence& s : sequences) {
    spans.push_back({row, s.rows, s.prefix, s.blocks.data()});
    row += s.rows;
  }
  return spans;
}

using Attention = void (*)(const Context&, const MlaShape&, TensorView, const KvUpWeights&, const PagedCache&,
                           std::span<const SequenceSpan>, TensorView);

// q [T, heads, nope+rope] in f32 -> attention's output in f32.
std::vector<float> attend(World& world, Attention attention, const std::vector<Sequence>& sequences,
                          std::vector<float> q) {
  const std::vector<SequenceSpan> spans = spans_of(sequences);
  const int64_t rows = spans.back().first_row + spans.back().num_rows, heads = world.shape.num_heads;
  const int64_t width = world.shape.nope_dim + world.shape.rope_dim, v = world.shape.v_dim;
  std::vector<float> out(size_t(rows * heads * v), NAN);
  attention(world.rig.ctx, world.shape, view(q, {rows, heads, width}), world.weights, world.cache, spans,
            view(out, {rows, heads * v}));
  return out;
}

std::vector<float> queries(const World& world, int64_t rows, uint64_t seed) {
  return random_floats(size_t(rows * world.shape.num_heads * (world.shape.nope_dim + world.shape.rope_dim)), seed);
}

void fill_all(World& world, const std::vector<Sequence>& sequences) {
  for (size_t i = 0; i < sequences.size(); ++i)
    world.fill(sequences[i].blocks, sequences[i].prefix + sequences[i].rows, i);
}

const std::vector<MlaShape>& shapes() {
  static const std::vector<MlaShape> all = {shape_of(8, 64, 32, 64, 128), shape_of(3, 48, 16, 40, 72),
                                            shape_of(20, 32, 8, 24, 64), shape_of(2, 128, 64, 128, 512)};
  return all;
}

TEST(MlaCache, HoldsTheNormalisedLatentAndTheRotatedKey) {
  World world(shape_of(2, 8, 4, 8, 6), DType::kF32, Backend::kRef, Isa::kAvx2);
  std::vector<float> kv_a = {1, 2, 3, 4, 5, 6, 10, 20, 30, 40}, norm = {1, 1, 2, 1, 1, 1};
  const std::vector<int32_t> position = {3}, slot = {37};
  mla_write_cache(world.rig.ctx, world.shape, view(kv_a, {1, 10}), 10, view(norm, {6}), 0.0f, position, slot,
                  world.rope, world.cache);
  const float* row = static_cast<const float*>(world.cache.base) + 37 * 10;
  const float rms = std::sqrt(91.0f / 6.0f);
  EXPECT_NEAR(row[0], 1 / rms, 1e-6);
  EXPECT_NEAR(row[2], 6 / rms, 1e-6);
  EXPECT_NEAR(row[6], 10 * std::cos(3.0) - 20 * std::sin(3.0), 1e-4);  // pairs are neighbours, not halves
  EXPECT_NEAR(row[7], 10 * std::sin(3.0) + 20 * std::cos(3.0), 1e-4);
  EXPECT_NEAR(row[8], 30 * std::cos(0.03) - 40 * std::sin(0.03), 1e-4);
}

TEST(MlaCache, EveryInstructionSetWritesTheOraclesRows) {
  for (const MlaShape& shape : shapes()) {
    World oracle(shape, DType::kBF16, Backend::kRef, Isa::kAvx2);
    const std::vector<Sequence> sequences = sequences_of({{0, 150}, {0, 33}});
    fill_all(oracle, sequences);
    const float* want = static_cast<const float*>(oracle.cache.base);
    const size_t count = size_t(World::kBlocks * World::kBlockTokens * shape.row_width());
    for (const Isa isa : supported_isas()) {
      World world(shape, DType::kBF16, Backend::kCpu, isa),
          rounded(shape, DType::kBF16, Backend::kCpu, isa, 2, DType::kBF16),
          f8(shape, DType::kBF16, Backend::kCpu, isa, 2, DType::kF8E4M3);
      for (World* each : {&world, &rounded, &f8}) fill_all(*each, sequences);
      const float* got = static_cast<const float*>(world.cache.base);
      const uint16_t* bits = static_cast<const uint16_t*>(rounded.cache.base);
      size_t wrong = 0;
      for (size_t i = 0; i < count; ++i) {  // f32 arithmetic in another order, then one rounding
        wrong += std::fabs(got[i] - want[i]) > 2e-6 * std::fabs(want[i]) + 2e-6;
        wrong += bits[i] != device::bf16_from_f32(got[i]);
        wrong += f8.memory[i] != device::f8e4m3_from_f32(got[i]);
      }
      EXPECT_EQ(wrong, 0u) << to_string(isa);
    }
  }
}

TEST(MlaRope, RotatesOnlyTheRopePartOfQueries) {
  for (const MlaShape& shape : shapes()) {
    World oracle(shape, DType::kBF16, Backend::kRef, Isa::kAvx2);
    std::vector<float> q = queries(oracle, 70, 9), want(q.size());
    std::vector<int32_t> positions(70);
    for (int32_t i = 0; i < 70; ++i) positions[size_t(i)] = i * 37 % 3000;
    const int64_t width = shape.nope_dim + shape.rope_dim;
    mla_rope_q(oracle.rig.ctx, shape, view(q, {70, shape.num_heads, width}), positions, oracle.rope,
               view(want, {70, shape.num_heads, width}));
    for (size_t i = 0; i < size_t(shape.nope_dim); ++i) EXPECT_EQ(want[i], q[i]);
    for (const Isa isa : supported_isas()) {
      Rig rig(Backend::kCpu, isa);
      std::vector<float> got(q.size());
      mla_rope_q(rig.ctx, shape, view(q, {70, shape.num_heads, width}), positions, oracle.rope,
                 view(got, {70, shape.num_heads, width}));
      EXPECT_LT(worst_error(got, want), 1e-6) << to_string(isa);
    }
  }
}

// Attention over plain expanded keys and values, in double, from the cache's own bytes.
TEST(MlaPrefill, OracleIsCausalSoftmaxAttention) {
  const MlaShape shape = shape_of(3, 8, 4, 6, 10);
  World world(shape, DType::kF32, Backend::kRef, Isa::kAvx2);
  const std::vector<Sequence> sequences = sequences_of({{30, 50}});
  fill_all(world, sequences);
  const std::vector<float> q = queries(world, 50, 1), got = attend(world, mla_prefill, sequences, q);
  std::vector<float> want(got.size());
  const float* cache = static_cast<const float*>(world.cache.base);
  for (int64_t row = 0; row < 50; ++row) {
    for (int64_t h = 0; h < 3; ++h) {
      std::vector<double> score, sum(6, 0.0);
      const float* query = q.data() + (row * 3 + h) * 12;
      double total = 0;
      for (int64_t p = 0; p <= 30 + row; ++p) {
        const float* latent = cache + (sequences[0].blocks[size_t(p / 16)] * 16 + p % 16) * 14;
        double s = 0;
        for (int64_t i = 0; i < 8; ++i) {
          for (int64_t j = 0; j < 10; ++j) s += query[i] * double(world.kv_b.at(h * 14 + i, j)) * latent[j];
        }
        for (int64_t i = 0; i < 4; ++i) s += double(query[8 + i]) * latent[10 + i];
        const double weight = std::exp(s * world.shape.softmax_scale);
        total += weight;
        for (int64_t i = 0; i < 6; ++i) {
          for (int64_t j = 0; j < 10; ++j) sum[size_t(i)] += weight * world.kv_b.at(h * 14 + 8 + i, j) * latent[j];
        }
      }
      for (int64_t i = 0; i < 6; ++i) want[size_t((row * 3 + h) * 6 + i)] = float(sum[size_t(i)] / total);
    }
  }
  EXPECT_LT(worst_error(got, want), 1e-4);
}

TEST(MlaDecode, OracleGivesWhatPrefillGivesForTheLastRow) {
  for (const MlaShape& shape : shapes()) {
    World world(shape, DType::kF8E4M3, Backend::kRef, Isa::kAvx2);
    const std::vector<Sequence> sequences = sequences_of({{0, 1}, {99, 1}, {300, 1}});
    fill_all(world, sequences);
    const std::vector<float> q = queries(world, 3, 2);
    EXPECT_LT(worst_error(attend(world, mla_decode, sequences, q), attend(world, mla_prefill, sequences, q)), 1e-4);
  }
}

void compare_with_oracle(Attention attention, const std::vector<std::pair<int32_t, int32_t>>& batch) {
  const std::vector<Sequence> sequences = sequences_of(batch);
  int64_t rows = 0;
  for (const Sequence& s : sequences) rows += s.rows;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const MlaShape& shape : shapes()) {
      World oracle(shape, dtype, Backend::kRef, Isa::kAvx2);
      fill_all(oracle, sequences);
      const std::vector<float> q = queries(oracle, rows, 8), want = attend(oracle, attention, sequences, q);
      for (const Isa isa : supported_isas()) {
        for (const DType cache : {DType::kF32, DType::kBF16}) {
          World world(shape, dtype, Backend::kCpu, isa, 2, cache);
          fill_all(world, sequences);
          const std::vector<float> got = attend(world, attention, sequences, q);
          // f32 sums in another order and an exponential to 2e-7; or one rounding of keys and values, 2^-9 each.
          const bool f32 = cache == DType::kF32;
          const std::string name = std::string(to_string(isa)) + " heads=" + std::to_string(shape.num_heads);
          EXPECT_LT(relative_error(got, want), f32 ? 1e-5 : 4e-3) << name;
          EXPECT_LT(worst_error(got, want), f32 ? 2e-4 : 6e-2) << name;
        }
      }
    }
  }
}

// The same bytes: what differs is the order of f32 sums, as with a cache in f32.
void compare_f8_with_oracle(Attention attention, const std::vector<std::pair<int32_t, int32_t>>& batch) {
  const std::vector<Sequence> sequences = sequences_of(batch);
  int64_t rows = 0;
  for (const Sequence& s : sequences) rows += s.rows;
  for (const MlaShape& shape : shapes()) {
    World oracle(shape, DType::kF8E4M3, Backend::kRef, Isa::kAvx2, 2, DType::kF8E4M3);
    fill_all(oracle, sequences);
    const std::vector<float> q = queries(oracle, rows, 8), want = attend(oracle, attention, sequences, q);
    for (const Isa isa : supported_isas()) {
      World world(shape, DType::kF8E4M3, Backend::kCpu, isa, 2, DType::kF8E4M3);
      std::ranges::copy(oracle.memory, world.memory.begin());
      const std::vector<float> got = attend(world, attention, sequences, q);
      EXPECT_LT(relative_error(got, want), 1e-5) << to_string(isa) << " heads=" << shape.num_heads;
      EXPECT_LT(worst_error(got, want), 2e-4) << to_string(isa) << " heads=" << shape.num_heads;
    }
  }
}

TEST(MlaPrefill, AnF8CacheIsReadAsTheOracleReadsIt) {
  compare_f8_with_oracle(mla_prefill, {{0, 1}, {0, 33}, {130, 70}, {127, 2}});
}

TEST(MlaDecode, AnF8CacheIsReadAsTheOracleReadsIt) {
  compare_f8_with_oracle(mla_decode, {{0, 1}, {63, 1}, {64, 1}, {200, 1}, {900, 1}});
}

TEST(MlaDecode, ANanInAnF8CacheStaysOne) {
  for (const Isa isa : supported_isas()) {
    World world(shape_of(3, 48, 16, 40, 72), DType::kBF16, Backend::kCpu, isa, 1, DType::kF8E4M3);
    const std::vector<Sequence> sequences = sequences_of({{20, 1}});
    fill_all(world, sequences);
    const int32_t row = sequences[0].blocks[0] * World::kBlockTokens + 5;
    world.memory[size_t(row * world.shape.row_width() + 7)] = 0x7f;
    EXPECT_TRUE(std::isnan(attend(world, mla_decode, sequences, queries(world, 1, 2))[0]));
  }
}

TEST(MlaPrefill, EveryInstructionSetAgreesWithTheOracle) {
  compare_with_oracle(mla_prefill, {{0, 1}, {0, 33}, {130, 70}, {0, 300}, {127, 2}, {511, 9}});
}

TEST(MlaDecode, EveryInstructionSetAgreesWithTheOracle) {
  compare_with_oracle(mla_decode, {{0, 1}, {1, 1}, {63, 1}, {64, 1}, {127, 1}, {128, 1}, {200, 1}, {900, 1}});
}

TEST(MlaPrefill, AResultDoesNotDependOnChunksOrNeighbours) {
  for (const Isa isa : supported_isas()) {
    World world(shape_of(4, 48, 16, 40, 72), DType::kF8E4M3, Backend::kCpu, isa, 3);
    const std::vector<Sequence> whole = sequences_of({{0, 401}});
    fill_all(world, whole);
    const std::vector<float> q = queries(world, 401, 8), want = attend(world, mla_prefill, whole, q);
    const size_t query = q.size() / 401, out = want.size() / 401;
    for (const std::vector<int32_t>& cuts :
         {std::vector<int32_t>{0, 401}, {0, 1, 2, 35, 401}, {0, 128, 256, 401}, {0, 200, 333, 401}}) {
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        // The chunk runs beside a stranger whose rows come first.
        std::vector<Sequence> batch = sequences_of({{0, 401}, {20, 30}});
        std::swap(batch[0], batch[1]);
        world.fill(batch[0].blocks, 50, 99);
        batch[1].prefix = cuts[c];
        batch[1].rows = cuts[c + 1] - cuts[c];
        std::vector<float> both = queries(world, 30, 55);
        both.insert(both.end(), q.begin() + long(query) * cuts[c], q.begin() + long(query) * cuts[c + 1]);
        const std::vector<float> got = attend(world, mla_prefill, batch, both);
        for (size_t i = 30 * out; i < got.size(); ++i) {
          ASSERT_EQ(got[i], want[size_t(cuts[c]) * out + i - 30 * out]) << to_string(isa) << " chunk at " << cuts[c];
        }
      }
    }
  }
}

TEST(MlaDecode, AResultDoesNotDependOnTheBatch) {
  for (const Isa isa : supported_isas()) {
    World world(shape_of(20, 48, 16, 40, 72), DType::kF8E4M3, Backend::kCpu, isa, 3);
    std::vector<std::pair<int32_t, int32_t>> lengths;
    for (int32_t i = 0; i < 15; ++i) lengths.emplace_back(i * 29 % 260, 1);
    const std::vector<Sequence> all = sequences_of(lengths);
    fill_all(world, all);
    const std::vector<float> q = queries(world, 15, 8), want = attend(world, mla_decode, all, q);
    const size_t query = q.size() / 15, out = want.size() / 15;
    for (size_t i = 0; i < all.size(); ++i) {
      const std::vector<float> alone =
          attend(world, mla_decode, {all[i]}, {q.begin() + long(i * query), q.begin() + long((i + 1) * query)});
      for (size_t j = 0; j < out; ++j) ASSERT_EQ(alone[j], want[i * out + j]) << to_string(isa) << " sequence " << i;
    }
  }
}

TEST(MlaWorkspace, TheStatedSizeSuffices) {
  for (const Isa isa : supported_isas()) {
    const MlaShape shape = shape_of(4, 48, 16, 40, 72);
    World world(shape, DType::kF8E4M3, Backend::kCpu, isa);
    const std::vector<Sequence> prompt = sequences_of({{100, 200}, {0, 57}}),
                                step = sequences_of({{299, 1}, {2, 1}, {170, 1}});
    fill_all(world, prompt);
    world.rig.workspace =
        device::Workspace(device::Device::kCpu, mla_workspace_bytes(world.rig.ctx, shape, 257, 3, 300));
    attend(world, mla_prefill, prompt, queries(world, 257, 1));
    attend(world, mla_decode, step, queries(world, 3, 1));
    EXPECT_EQ(world.rig.workspace.used(), 0u);
  }
}

}  // namespace
}  // namespace tandem::kernels::test
