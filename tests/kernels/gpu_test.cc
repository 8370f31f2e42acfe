// The GPU's kernels against the oracle. In f32 they are held to f32's own rounding; on tensor cores to that of bf16,
// and of FP8 activations where the weight is FP8.
#include "tests/kernels/gpu.h"

#include <algorithm>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/fp8_rows.h"
#include "kernels/moe.h"
#include "kernels/norm.h"
#include "kernels/sample.h"
#include "tests/kernels/slot_sort.h"

namespace tandem::kernels::test {
namespace {

class Gpu : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override { NEEDS_GPU(); }
  bool f32() const { return GetParam() == Backend::kCudaF32; }
};

INSTANTIATE_TEST_SUITE_P(Backends, Gpu, ::testing::Values(Backend::kCudaF32, Backend::kCuda),
                         [](const auto& info) { return info.param == Backend::kCuda ? "tensor" : "f32"; });

TEST_P(Gpu, RmsNormAgreesWithTheOracleOnStridedRows) {
  GpuRig rig(GetParam());
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 512}, {3, 33}, {40, 2048}, {300, 160}, {5, 7168}}) {
    const int64_t stride = width + 4;
    std::vector<float> x = random_floats(size_t(rows * stride), 1, 3.0f), weight = random_floats(size_t(width), 2);
    std::vector<float> want(size_t(rows * width));
    Rig oracle(Backend::kRef);
    rms_norm(oracle.ctx, view(x, {rows, width}), stride, view(weight, {width}), 1e-5f, view(want, {rows, width}), {});
    const OnGpu<float> gx(x), gw(weight), gf(std::vector<float>(want.size(), NAN));
    const DType type = rig.ctx.act_dtype();
    const device::Buffer y = GpuRig::poisoned(want.size() * size_of(type));
    rms_norm(rig.ctx, gx.view(DType::kF32, {rows, width}), stride, gw.view(DType::kF32, {width}), 1e-5f,
             TensorView(y.data(), type, {rows, width}), gf.view(DType::kF32, {rows, width}));
    EXPECT_LT(worst_error(rig.floats(y, type), want), f32() ? 1e-5 : 3e-2) << width;
    EXPECT_LT(worst_error(gf.back(), want), 1e-5) << width;
  }
}

TEST_P(Gpu, SwigluAgreesWithTheOracle) {
  GpuRig rig(GetParam());
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 512}, {3, 33}, {300, 160}, {7, 2048}}) {
    std::vector<float> gate_up = random_floats(size_t(rows * 2 * width), 3, 4.0f), want(size_t(rows * width));
    gate_up[0] = -120.0f;
    Rig oracle(Backend::kRef);
    swiglu(oracle.ctx, view(gate_up, {rows, 2 * width}), view(want, {rows, width}));
    const OnGpu<float> in(gate_up);
    const DType type = rig.ctx.act_dtype();
    const device::Buffer y = GpuRig::poisoned(want.size() * size_of(type));
    swiglu(rig.ctx, in.view(DType::kF32, {rows, 2 * width}), TensorView(y.data(), type, {rows, width}));
    EXPECT_LT(relative_error(rig.floats(y, type), want), f32() ? 1e-6 : 3e-3) << width;
  }
}

TEST_P(Gpu, EmbedAndGatherCopyRowsExactly) {
  GpuRig rig(GetParam());
  std::vector<float> table = random_floats(50 * 37, 4);
  const std::vector<uint16_t> rounded = round_to_bf16(table);
  const std::vector<int32_t> ids = {0, 49, 7, 7};
  const OnGpu<float> wide(table);
  const OnGpu<uint16_t> narrow(rounded);
  const OnGpu<int32_t> there(ids);
  for (int form = 0; form < 3; ++form) {
    const OnGpu<float> y(std::vector<float>(4 * 37, NAN));
    const TensorView out = y.view(DType::kF32, {4, 37});
    if (form == 0) embed(rig.ctx, there.span(), wide.view(DType::kF32, {50, 37}), out);
    if (form == 1) embed(rig.ctx, there.span(), narrow.view(DType::kBF16, {50, 37}), out);
    if (form == 2) gather_rows(rig.ctx, wide.view(DType::kF32, {50, 37}), there.span(), out);
    rig.stream.synchronize();
    const std::vector<float> got = y.back();
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], table[size_t(ids[i / 37]) * 37 + i % 37]) << form;
  }
}

struct GemmCase {
  DType dtype;
  int64_t m, n, k;
};

TEST_P(Gpu, LinearAgreesWithTheOracle) {
  GpuRig rig(GetParam());
  const DType f8 = DType::kF8E4M3, bf16 = DType::kBF16;
  for (const GemmCase& c : {GemmCase{f8, 1, 160, 192},
                            {f8, 5, 33, 130},
                            {f8, 67, 160, 192},
                            {f8, 300, 416, 512},
                            {f8, 14, 97, 639},
                            {f8, 1, 2112, 7168},
                            {f8, 64, 2112, 7168},
                            {f8, 256, 7168, 2048},
                            {f8, 130, 4096, 7168},
                            {f8, 129, 128, 128},
                            {bf16, 1, 160, 192},
                            {bf16, 67, 33, 130},
                            {bf16, 40, 64, 2200},
                            {bf16, 256, 1032, 1536}}) {
    const Matrix matrix(c.dtype, c.n, c.k, uint64_t(c.n * 1000 + c.k));
    std::vector<float> x = random_floats(size_t(c.m * c.k), uint64_t(c.m));
    const device::Buffer gx = rig.activations(x);
    Rig oracle(Backend::kRef, Isa::kAvx2, 2, size_t(256) << 20);
    std::vector<float> want(size_t(c.m * c.n));
    linear(oracle.ctx, view(x, {c.m, c.k}), kernels::pack(Backend::kRef, {}, {matrix.all()}), view(want, {c.m, c.n}));
    const PackedWeight w = rig.pack({matrix.all()});
    const TensorView in(gx.data(), rig.ctx.act_dtype(), {c.m, c.k});
    const device::Buffer y = GpuRig::poisoned(want.size() * 4);
    linear(rig.ctx, in, w, TensorView(y.data(), DType::kF32, {c.m, c.n}));
    const std::vector<float> got = rig.floats(y, DType::kF32);
    // FP8 activations have 4 bits: 2^-4 / sqrt(3) at most of each input, 3e-2 of a sum.
    const double tolerance = f32() ? 1e-5 : c.dtype == f8 ? 4e-2 : 2e-3;
    EXPECT_LT(relative_error(got, want), tolerance) << to_string(c.dtype) << " " << c.m << " " << c.n << " " << c.k;
    EXPECT_LT(worst_error(got, want), 10 * tolerance) << to_string(c.dtype) << " " << c.m << " " << c.n << " " << c.k;
    linear_add(rig.ctx, in, w, TensorView(y.data(), DType::kF32, {c.m, c.n}));
    const std::vector<float> twice = rig.floats(y, DType::kF32);
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(twice[i], got[i] + got[i]) << i;
    EXPECT_EQ(rig.workspace.used(), 0u);
  }
}

TEST_P(Gpu, LinearTakesStacksAndUnalignedSlices) {
  GpuRig rig(GetParam());
  const Matrix first(DType::kF8E4M3, 256, 192, 1), second(DType::kF8E4M3, 160, 192, 2),
      odd(DType::kF8E4M3, 200, 192, 3);
  for (const std::vector<RawWeight>& stacked :
       {std::vector<RawWeight>{first.all(), second.all()}, {odd.all(), second.all()}, {odd.part(64, 70, 0, 192)}}) {
    std::vector<float> x = random_floats(20 * 192, 5);
    const device::Buffer gx = rig.activations(x);
    const PackedWeight w = rig.pack(stacked);
    const int64_t n = w.rows();
    Rig oracle(Backend::kRef);
    std::vector<float> want(size_t(20 * n));
    linear(oracle.ctx, view(x, {20, 192}), kernels::pack(Backend::kRef, {}, stacked), view(want, {20, n}));
    const device::Buffer y = GpuRig::poisoned(want.size() * 4);
    linear(rig.ctx, TensorView(gx.data(), rig.ctx.act_dtype(), {20, 192}), w,
           TensorView(y.data(), DType::kF32, {20, n}));
    EXPECT_LT(relative_error(rig.floats(y, DType::kF32), want), f32() ? 1e-5 : 4e-2) << n;
  }
}

TEST_P(Gpu, GateChoosesLikeTheOracle) {
  GpuRig rig(GetParam());
  for (const auto& [experts, groups, kept, hidden] :
       {std::array{32, 1, 1, 512}, std::array{32, 4, 2, 256}, std::array{7, 1, 1, 33}, std::array{256, 8, 4, 7168}}) {
    for (const GateScoring scoring : {GateScoring::kSigmoid, GateScoring::kSoftmax}) {
      GateConfig config;
      config.num_experts = experts;
      config.num_groups = groups;
      config.top_k_groups = kept;
      config.top_k = 4;
      config.scoring = scoring;
      std::vector<float> x = random_floats(size_t(61 * hidden), 4);
      std::vector<float> weight = random_floats(size_t(experts * hidden), 5, 0.05f), bias(size_t(experts), 0.0f);
      if (scoring == GateScoring::kSigmoid) bias = random_floats(size_t(experts), 6, 0.1f);
      std::vector<int32_t> want_ids(61 * 4);
      std::vector<float> want(61 * 4);
      Rig oracle(Backend::kRef);
      gate(oracle.ctx, config, view(x, {61, hidden}), view(weight, {experts, hidden}), view(bias, {experts}),
           TensorView(want_ids.data(), DType::kI32, {61, 4}), view(want, {61, 4}));
      const OnGpu<float> gx(x), gw(weight), gb(bias), weights(std::vector<float>(61 * 4, NAN));
      const OnGpu<int32_t> ids(std::vector<int32_t>(61 * 4, -1));
      gate(rig.ctx, config, gx.view(DType::kF32, {61, hidden}), gw.view(DType::kF32, {experts, hidden}),
           gb.view(DType::kF32, {experts}), ids.view(DType::kI32, {61, 4}), weights.view(DType::kF32, {61, 4}));
      rig.stream.synchronize();
      EXPECT_EQ(ids.back(), want_ids) << experts;
      EXPECT_LT(worst_error(weights.back(), want), 1e-5) << experts;
    }
  }
}

TEST_P(Gpu, RowsThatFillABatchUpTakeNoSlot) {
  GpuRig rig(GetParam());
  const OnGpu<int32_t> begin(std::vector<int32_t>{0, 1, 2}), slot(std::vector<int32_t>{1, 0}),
      upto(std::vector<int32_t>{65536, 65536});
  const OnGpu<int32_t> ids(std::vector<int32_t>{0, 1, 1, 0, 0, 1}), counts(std::vector<int32_t>(2, 0));
  const OnGpu<StepValues> values({{.step = 0, .num_tokens = 2}});
  const TensorView view = ids.view(DType::kI32, {3, 2});
  choose_slots(rig.ctx, {begin.data(), slot.data(), upto.data(), 2, values.data(), 0, 1}, view, counts.data());
  const OnGpu<int32_t> slot_begin(std::vector<int32_t>(3, -1)), row_token(std::vector<int32_t>(6, 99));
  const OnGpu<const float*> result_of(std::vector<const float*>(6, nullptr));
  const OnGpu<float> results(std::vector<float>(6, 0));
  sort_by_slot(rig.ctx, view, 2, {slot_begin.data(), row_token.data(), results.data(), 1, result_of.data()});
  rig.stream.synchronize();
  EXPECT_EQ(ids.back(), (std::vector<int32_t>{1, 0, 0, 1, -1, -1}));
  EXPECT_EQ(counts.back(), (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(slot_begin.back(), (std::vector<int32_t>{0, 2, 4}));
  EXPECT_EQ(row_token.back(), (std::vector<int32_t>{0, 1, 0, 1, 0, 0}));
  const float* const first = results.data();
  EXPECT_EQ(result_of.back(), (std::vector<const float*>{first + 2, first, first + 1, first + 3, first, first}));
}

TEST_P(Gpu, ChooseSlotsAndSortFollowTheTables) {
  GpuRig rig(GetParam());
  const std::vector<int32_t> begin = {0, 1, 3, 4}, slot = {2, 0, 3, 1}, upto = {65536, 20000, 65536, 65536};
  std::vector<int32_t> ids;
  for (int i = 0; i < 5000; ++i) {
    ids.push_back(i % 3);
    ids.push_back((i + 1) % 3);
  }
  const OnGpu<int32_t> gb(begin), gs(slot), gu(upto), gids(ids), counts(std::vector<int32_t>(3, 0));
  const OnGpu<StepValues> values({{.step = 7, .num_tokens = 5100}});
  SlotChoice choice{gb.data(), gs.data(), gu.data(), 3, values.data(), 0, 1};
  choice.first_token = 100;
  choose_slots(rig.ctx, choice, gids.view(DType::kI32, {5000, 2}), counts.data());
  const OnGpu<int32_t> slot_begin(std::vector<int32_t>(5, -1)), row_token(std::vector<int32_t>(10000, -1));
  const OnGpu<const float*> result_of(std::vector<const float*>(10000, nullptr));
  sort_by_slot(rig.ctx, gids.view(DType::kI32, {5000, 2}), 4,
               {slot_begin.data(), row_token.data(), nullptr, 1, result_of.data()});
  rig.stream.synchronize();
  const std::vector<int32_t> chosen = gids.back(), counted = counts.back();
  int split = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (ids[i] != 1) {
      ASSERT_EQ(chosen[i], ids[i] == 0 ? 2 : 1);
    }
    if (ids[i] == 1) split += chosen[i] == 0 ? 1 : 0;
  }
  EXPECT_NEAR(split / double(counted[1]), 20000 / 65536.0, 0.03);
  EXPECT_EQ(counted[0] + counted[1] + counted[2], 10000);
  const SortedRows want(chosen, 2, 4);
  EXPECT_EQ(slot_begin.back(), want.begin);
  EXPECT_EQ(row_token.back(), want.tokens);
  const std::vector<const float*> rows = result_of.back();
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i] - static_cast<const float*>(nullptr), want.row_of[i]);
}

struct MoeCase {
  DType dtype;
  int64_t tokens, hidden, width;
  int32_t experts, top_k;
};

// What grouped_mlp gives for the same rows in FP8, quantised on the host.
std::vector<float> mlp_of_fp8_rows(GpuRig& rig, const std::vector<float>& x, const MoeCase& c, const SlotSort& sort,
                                   std::span<const ExpertWeights* const> experts) {
  const int64_t row_bytes = fp8_row_bytes(c.hidden);
  std::vector<std::byte> rows(size_t(c.tokens * row_bytes));
  for (int64_t t = 0; t < c.tokens; ++t) {
    quantise_row(x.data() + t * c.hidden, c.hidden, rows.data() + t * row_bytes);
  }
  const OnGpu<std::byte> there(rows);
  const auto pairs = int64_t(sort.row_token.size());
  const device::Buffer y = GpuRig::poisoned(size_t(pairs * c.hidden) * sizeof(float));
  grouped_mlp(rig.ctx, there.view(DType::kF8E4M3, {c.tokens, row_bytes}), sort, experts, int32_t(c.width),
              TensorView(y.data(), DType::kF32, {pairs, c.hidden}));
  return rig.floats(y, DType::kF32);
}

// The experts' MLP with slots in order, told by a table in the GPU's memory which place of the slab each has.
device::Buffer by_places(GpuRig& rig, TensorView x, const SlotSort& sort, const std::vector<ExpertWeights>& experts,
                         int32_t width) {
  const auto size = int32_t(experts.size());
  std::vector<int32_t> place_of_slot;
  for (int32_t e = 0; e < size; ++e) place_of_slot.push_back((e + 2) % size);
  const OnGpu<int32_t> table(place_of_slot);
  const auto first = size_t(std::ranges::find(place_of_slot, 0) - place_of_slot.begin());
  const auto rows = int64_t(sort.row_token.size());
  device::Buffer y = GpuRig::poisoned(size_t(rows * x.dim(1)) * sizeof(float));
  grouped_mlp(rig.ctx, x, sort, GpuPlaces{&experts[first], size, size, table.data()}, width,
              TensorView(y.data(), DType::kF32, {rows, x.dim(1)}));
  rig.stream.synchronize();
  return y;
}

// A layer of experts on the GPU beside the oracle's.
TEST_P(Gpu, GroupedMlpAndCombineAgreeWithTheOracle) {
  const DType f8 = DType::kF8E4M3, bf16 = DType::kBF16;
  for (const MoeCase& c : {MoeCase{f8, 1, 256, 128, 8, 4},
                           {f8, 40, 256, 128, 5, 2},
                           {f8, 300, 512, 256, 4, 2},
                           {bf16, 50, 128, 64, 5, 2},
                           {f8, 70, 1024, 512, 3, 2}}) {
    GpuRig rig(GetParam());
    Rig oracle(Backend::kRef, Isa::kAvx2, 2, size_t(128) << 20);
    std::vector<ExpertWeights> ours(size_t(c.experts)), theirs(size_t(c.experts));
    for (int32_t e = 0; e < c.experts; ++e) {
      const Matrix gate(c.dtype, c.width, c.hidden, uint64_t(100 + e)),
          up(c.dtype, c.width, c.hidden, uint64_t(200 + e));
      const Matrix down(c.dtype, c.hidden, c.width, uint64_t(300 + e));
      theirs[size_t(e)] = {kernels::pack(Backend::kRef, {}, {gate.all(), up.all()}),
                           kernels::pack(Backend::kRef, {}, {down.all()})};
      ours[size_t(e)] = {kernels::pack(GetParam(), {}, {gate.all(), up.all()}),
                         kernels::pack(GetParam(), {}, {down.all()})};
    }
    // One slab of equal places, as a rank has it; out of order.
    const size_t place = ours[0].gate_up.bytes() + ours[0].down.bytes();
    device::Buffer slab(device::Device::kCuda, place * size_t(c.experts));
    std::vector<const ExpertWeights*> our_pointers, their_pointers;
    for (int32_t e = 0; e < c.experts; ++e) {
      std::byte* at = static_cast<std::byte*>(slab.data()) + place * size_t((e + 2) % c.experts);
      ours[size_t(e)].gate_up.place(at);
      ours[size_t(e)].down.place(at + ours[size_t(e)].gate_up.bytes());
      our_pointers.push_back(&ours[size_t(e)]);
      their_pointers.push_back(&theirs[size_t(e)]);
    }
    std::mt19937 random(5);
    std::vector<int32_t> order(static_cast<size_t>(c.experts)), slots;
    std::iota(order.begin(), order.end(), 0);
    for (int64_t t = 0; t < c.tokens; ++t) {
      std::shuffle(order.begin(), order.end() - 1, random);  // the last expert stays empty
      slots.insert(slots.end(), order.begin(), order.begin() + c.top_k);
    }
    std::vector<float> x = random_floats(size_t(c.tokens * c.hidden), 1);
    const device::Buffer gx = rig.activations(x);
    std::vector<float> weights = random_floats(slots.size(), 2), residual = random_floats(x.size(), 3), want = residual;
    const SortedRows sorted(slots, c.top_k, c.experts);
    std::vector<float> y(slots.size() * size_t(c.hidden));
    grouped_mlp(oracle.ctx, view(x, {c.tokens, c.hidden}), sorted.sort(), their_pointers, int32_t(c.width),
                view(y, {int64_t(slots.size()), c.hidden}));
    std::vector<const float*> rows;
    for (const int32_t row : sorted.row_of) rows.push_back(y.data() + row * c.hidden);
    combine(oracle.ctx, rows, view(weights, {c.tokens, c.top_k}), view(want, {c.tokens, c.hidden}));
    const OnGpu<int32_t> begin(sorted.begin), tokens(sorted.tokens);
    const device::Buffer gy = GpuRig::poisoned(y.size() * 4);
    const SlotSort sort{begin.span(), tokens.span()};
    const TensorView there(gx.data(), rig.ctx.act_dtype(), {c.tokens, c.hidden});
    grouped_mlp(rig.ctx, there, sort, our_pointers, int32_t(c.width),
                TensorView(gy.data(), DType::kF32, {int64_t(slots.size()), c.hidden}));
    EXPECT_LT(relative_error(rig.floats(gy, DType::kF32), y), f32() ? 1e-5 : c.dtype == f8 ? 6e-2 : 5e-3) << c.hidden;
    if (c.dtype == f8 && takes_fp8_rows(GetParam(), c.hidden, c.width)) {
      EXPECT_EQ(mlp_of_fp8_rows(rig, x, c, sort, our_pointers), rig.floats(gy, DType::kF32)) << "not a bit differs";
    }
    EXPECT_EQ(rig.floats(by_places(rig, there, sort, ours, int32_t(c.width)), DType::kF32),
              rig.floats(gy, DType::kF32));
    std::vector<const float*> our_rows;
    for (const int32_t row : sorted.row_of) our_rows.push_back(static_cast<const float*>(gy.data()) + row * c.hidden);
    const OnGpu<const float*> pointers(our_rows);
    const OnGpu<float> gw(weights), out(residual);
    combine(rig.ctx, pointers.span(), gw.view(DType::kF32, {c.tokens, c.top_k}),
            out.view(DType::kF32, {c.tokens, c.hidden}));
    rig.stream.synchronize();
    EXPECT_LT(relative_error(out.back(), want), f32() ? 1e-5 : 6e-2) << c.hidden;
    EXPECT_LE(rig.workspace.peak(), moe_workspace_bytes(rig.ctx, c.tokens, c.top_k, c.experts, c.hidden, c.width));
  }
}

// One sequence set on both sides: the cache filled through mla_write_cache, then attention of either phase.
struct Attention {
  static constexpr int32_t kBlockTokens = 64, kBlocks = 80;

  Attention(Backend backend, DType cache_type, const MlaShape& shape,
            const std::vector<std::pair<int32_t, int32_t>>& prefix_and_rows)
      : shape(shape), cache_type(cache_type), rig(backend) {
    std::vector<int32_t> free(kBlocks);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), std::mt19937(3));
    for (const auto& [prefix, count] : prefix_and_rows) {
      const int32_t needed = (prefix + count + kBlockTokens - 1) / kBlockTokens;
      blocks.emplace_back(free.end() - needed, free.end());
      free.resize(free.size() - size_t(needed));
      spans.push_back({rows, count, prefix, nullptr});
      rows += count;
    }
    this->shape.softmax_scale = 1.0f / std::sqrt(float((shape.nope_dim + shape.rope_dim) * shape.kv_lora_rank));
    table = std::vector<float>(size_t(kBlocks * kBlockTokens * shape.rope_dim));
    for (size_t i = 0; i < table.size(); i += 2) {
      const double angle = double(i / size_t(shape.rope_dim)) / (1.0 + double(i % size_t(shape.rope_dim)));
      table[i] = float(std::cos(angle));
      table[i + 1] = float(std::sin(angle));
    }
  }

  MlaShape shape;
  DType cache_type;
  GpuRig rig;
  std::vector<std::vector<int32_t>> blocks;
  std::vector<SequenceSpan> spans;
  std::vector<float> table;
  int32_t rows = 0;
};

DType wide_cache(Backend backend) { return backend == Backend::kCuda ? DType::kBF16 : DType::kF32; }

// What the GPU wrote into an FP8 cache is the oracle's but for ties; with the oracle's own bytes only reading is
// compared.
void take_oracles_rows(GpuRig& rig, const device::Buffer& memory, const std::vector<uint8_t>& oracles,
                       const std::vector<int32_t>& slots, int32_t width) {
  rig.stream.synchronize();
  std::vector<uint8_t> written(oracles.size());
  device::copy_bytes(written.data(), memory.data(), written.size());
  size_t apart = 0;
  for (const int32_t slot : slots) {
    for (size_t i = size_t(slot * width); i < size_t((slot + 1) * width); ++i) apart += written[i] != oracles[i];
  }
  EXPECT_LE(apart, slots.size() * size_t(width) / 1000);
  device::copy_bytes(memory.data(), oracles.data(), oracles.size());
}

void compare_attention(Backend backend, DType cache_type, const MlaShape& shape, bool decode,
                       const std::vector<std::pair<int32_t, int32_t>>& prefix_and_rows) {
  Attention a(backend, cache_type, shape, prefix_and_rows);
  const int32_t width = shape.row_width(), heads = shape.num_heads, head = shape.nope_dim + shape.rope_dim;
  Rig oracle(Backend::kRef, Isa::kAvx2, 2, size_t(256) << 20);
  std::vector<int32_t> positions, slots;
  for (size_t s = 0; s < a.spans.size(); ++s) {
    for (int32_t p = 0; p < a.spans[s].prefix_len + a.spans[s].num_rows; ++p) {
      positions.push_back(p);
      slots.push_back(a.blocks[s][size_t(p / a.kBlockTokens)] * a.kBlockTokens + p % a.kBlockTokens);
    }
  }
  const int64_t tokens = int64_t(positions.size());
  std::vector<float> kv = random_floats(size_t(tokens * (width + 4)), 9), norm(size_t(shape.kv_lora_rank), 1.25f);
  std::vector<uint8_t> host_cache(size_t(a.kBlocks * a.kBlockTokens * width) * 4);
  const bool f8 = cache_type == DType::kF8E4M3;
  PagedCache cache{host_cache.data(), f8 ? cache_type : DType::kF32, a.kBlockTokens, a.kBlocks};
  mla_write_cache(oracle.ctx, shape, view(kv, {tokens, width + 4}), width + 4, view(norm, {shape.kv_lora_rank}), 1e-6f,
                  positions, slots, {a.table.data(), a.kBlocks * a.kBlockTokens, shape.rope_dim}, cache);

  const OnGpu<float> gkv(kv), gnorm(norm), gtable(a.table);
  const OnGpu<int32_t> gpositions(positions), gslots(slots);
  const device::Buffer memory(device::Device::kCuda, host_cache.size());
  const PagedCache there{memory.data(), a.cache_type, a.kBlockTokens, a.kBlocks};
  const RopeTable rope{gtable.data(), a.kBlocks * a.kBlockTokens, shape.rope_dim};
  mla_write_cache(a.rig.ctx, shape, gkv.view(DType::kF32, {tokens, width + 4}), width + 4,
                  gnorm.view(DType::kF32, {shape.kv_lora_rank}), 1e-6f, gpositions.span(), gslots.span(), rope, there);
  if (f8) take_oracles_rows(a.rig, memory, host_cache, slots, width);

  std::vector<float> q = random_floats(size_t(a.rows * heads * head), 8);
  const device::Buffer gq = a.rig.activations(q);
  const Matrix kv_b(DType::kF8E4M3, heads * (shape.nope_dim + shape.v_dim), shape.kv_lora_rank, 77);
  const KvUpWeights plain = pack_kv_up(Backend::kRef, {}, shape, kv_b.all());
  KvUpWeights packed = pack_kv_up(backend, {}, shape, kv_b.all());
  packed.expand = a.rig.place(std::move(packed.expand));
  packed.absorb_k[0] = a.rig.place(std::move(packed.absorb_k[0]));
  packed.absorb_v[0] = a.rig.place(std::move(packed.absorb_v[0]));
  std::vector<OnGpu<int32_t>> tables;
  std::vector<SequenceSpan> here = a.spans, gpu_spans = a.spans;
  for (size_t s = 0; s < here.size(); ++s) {
    here[s].block_table = a.blocks[s].data();
    tables.emplace_back(a.blocks[s]);
    gpu_spans[s].block_table = tables.back().data();
  }
  const OnGpu<SequenceSpan> there_spans(gpu_spans);
  std::vector<float> want(size_t(a.rows * heads * shape.v_dim));
  const DType type = a.rig.ctx.act_dtype();
  const device::Buffer out = GpuRig::poisoned(want.size() * size_of(type));
  const TensorView gpu_q(gq.data(), type, {a.rows, heads, head}),
      gpu_out(out.data(), type, {a.rows, heads * shape.v_dim});
  if (decode) {
    mla_decode(oracle.ctx, a.shape, view(q, {a.rows, heads, head}), plain, cache, here,
               view(want, {a.rows, heads * shape.v_dim}));
    mla_decode(a.rig.ctx, a.shape, gpu_q, packed, there, there_spans.span(), gpu_out);
  } else {
    mla_prefill(oracle.ctx, a.shape, view(q, {a.rows, heads, head}), plain, cache, here,
                view(want, {a.rows, heads * shape.v_dim}));
    mla_prefill(a.rig.ctx, a.shape, gpu_q, packed, there, there_spans.span(), gpu_out);
  }
  const std::vector<float> got = a.rig.floats(out, type);
  const bool f32 = backend == Backend::kCudaF32;
  EXPECT_LT(relative_error(got, want), f32 ? 2e-5 : 1.5e-2) << heads << " " << shape.kv_lora_rank << " " << decode;
  EXPECT_LT(worst_error(got, want), f32 ? 4e-4 : 0.15) << heads << " " << shape.kv_lora_rank << " " << decode;
  EXPECT_LE(a.rig.workspace.peak(), mla_workspace_bytes(a.rig.ctx, shape, a.rows, int64_t(a.spans.size()), 5000));
}

MlaShape shape_of(int32_t heads, int32_t nope, int32_t rope, int32_t v, int32_t lora) {
  return {heads, nope, rope, v, lora, 1.0f};
}

TEST_P(Gpu, MlaDecodeAgreesWithTheOracle) {
  for (const MlaShape& shape : {shape_of(4, 64, 32, 64, 128), shape_of(20, 32, 8, 24, 64), shape_of(3, 48, 16, 40, 72),
                                shape_of(16, 128, 64, 128, 512), shape_of(128, 128, 64, 128, 512)}) {
    for (const DType cache : {wide_cache(GetParam()), DType::kF8E4M3}) {
      compare_attention(GetParam(), cache, shape, true,
                        {{0, 1}, {1, 1}, {63, 1}, {64, 1}, {127, 1}, {200, 1}, {900, 1}});
    }
  }
}

TEST_P(Gpu, MlaPrefillAgreesWithTheOracle) {
  for (const MlaShape& shape :
       {shape_of(4, 64, 32, 64, 128), shape_of(3, 48, 16, 40, 72), shape_of(16, 128, 64, 128, 512)}) {
    for (const DType cache : {wide_cache(GetParam()), DType::kF8E4M3}) {
      compare_attention(GetParam(), cache, shape, false, {{0, 1}, {0, 33}, {130, 70}, {0, 300}, {127, 2}, {511, 9}});
    }
  }
}

TEST_P(Gpu, SampleDrawsTheOraclesTokens) {
  GpuRig rig(GetParam());
  constexpr int64_t kVocab = 1003, kRows = 12;
  std::vector<float> logits = random_floats(size_t(kRows * kVocab), 4);
  logits[2 * kVocab + 7] = NAN;
  for (int64_t i = 0; i < kVocab; ++i) logits[size_t(3 * kVocab + i)] = 1.0f;
  const OnGpu<float> there(logits);
  std::vector<SampleParams> params(kRows);
  for (size_t r = 0; r < params.size(); ++r) {
    params[r].temperature = r < 6 ? 0.0f : 0.8f;
    params[r].want_logprob = r == 5;
    params[r].seed = r;
  }
  std::vector<SampleResult> want(kRows), got(kRows);
  Rig oracle(Backend::kRef);
  sample(rig.ctx, there.view(DType::kF32, {kRows, kVocab}), params, got);
  sample(oracle.ctx, view(logits, {kRows, kVocab}), params, want);
  for (size_t r = 0; r < params.size(); ++r) {
    EXPECT_EQ(got[r].token, want[r].token) << r;
    EXPECT_EQ(got[r].finite, want[r].finite) << r;
    EXPECT_EQ(got[r].logprob, want[r].logprob) << r;
  }
}

TEST_P(Gpu, RopeRotatesOnlyTheRopePartOfQueries) {
  GpuRig rig(GetParam());
  const MlaShape shape = shape_of(20, 32, 8, 24, 64);
  std::vector<float> table = random_floats(3000 * 8, 1), q = random_floats(70 * 20 * 40, 9), want(q.size());
  std::vector<int32_t> positions(70);
  for (int32_t i = 0; i < 70; ++i) positions[size_t(i)] = i * 37 % 3000;
  Rig oracle(Backend::kRef);
  mla_rope_q(oracle.ctx, shape, view(q, {70, 20, 40}), positions, {table.data(), 3000, 8}, view(want, {70, 20, 40}));
  const OnGpu<float> gq(q), gt(table);
  const OnGpu<int32_t> gp(positions);
  const DType type = rig.ctx.act_dtype();
  const device::Buffer out = GpuRig::poisoned(want.size() * size_of(type));
  mla_rope_q(rig.ctx, shape, gq.view(DType::kF32, {70, 20, 40}), gp.span(), {gt.data(), 3000, 8},
             TensorView(out.data(), type, {70, 20, 40}));
  EXPECT_LT(relative_error(rig.floats(out, type), want), f32() ? 1e-6 : 3e-3);
}

}  // namespace
}  // namespace tandem::kernels::test
