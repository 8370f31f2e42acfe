#include "kernels/moe.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/support.h"

namespace tandem::kernels::test {
namespace {

struct Routing {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routing route(Rig& rig, const GateConfig& config, std::vector<float>& x, std::vector<float>& weight,
              std::vector<float>& bias, int64_t rows, int64_t hidden) {
  Routing result{std::vector<int32_t>(size_t(rows * config.top_k)), std::vector<float>(size_t(rows * config.top_k))};
  gate(rig.ctx, config, view(x, {rows, hidden}), view(weight, {config.num_experts, hidden}),
       bias.empty() ? TensorView() : view(bias, {config.num_experts}),
       TensorView(result.ids.data(), DType::kI32, {rows, config.top_k}), view(result.weights, {rows, config.top_k}));
  return result;
}

// The V3 gate as the paper's reference implementation states it, from scratch and in double.
Routing noaux_by_definition(const GateConfig& config, const std::vector<float>& x, const std::vector<float>& weight,
                            const std::vector<float>& bias, int64_t rows, int64_t hidden) {
  Routing result;
  const int32_t experts = config.num_experts, size = experts / config.num_groups;
  for (int64_t t = 0; t < rows; ++t) {
    std::vector<double> score(static_cast<size_t>(experts)), choice(static_cast<size_t>(experts));
    for (int32_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < hidden; ++i) sum += double(x[size_t(t * hidden + i)]) * weight[size_t(e * hidden + i)];
      score[size_t(e)] = 1 / (1 + std::exp(-sum));
      choice[size_t(e)] = score[size_t(e)] + bias[size_t(e)];
    }
    std::vector<std::pair<double, int32_t>> groups;
    for (int32_t g = 0; g < config.num_groups; ++g) {
      std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      groups.emplace_back(-(members[0] + members[1]), g);
    }
    std::sort(groups.begin(), groups.end());
    std::vector<std::pair<double, int32_t>> candidates;
    for (int32_t i = 0; i < config.top_k_groups; ++i) {
      for (int32_t e = groups[size_t(i)].second * size; e < (groups[size_t(i)].second + 1) * size; ++e) {
        candidates.emplace_back(-choice[size_t(e)], e);
      }
    }
    std::sort(candidates.begin(), candidates.end());
    double sum = 0;
    for (int32_t i = 0; i < config.top_k; ++i) sum += score[size_t(candidates[size_t(i)].second)];
    for (int32_t i = 0; i < config.top_k; ++i) {
      const int32_t e = candidates[size_t(i)].second;
      result.ids.push_back(e);
      result.weights.push_back(float(score[size_t(e)] / (sum + 1e-20) * config.scaling_factor));
    }
  }
  return result;
}

TEST(Gate, OracleFollowsTheDefinitionOfNoAuxTc) {
  GateConfig config;
  config.num_experts = 32;
  config.top_k = 5;
  config.num_groups = 8;
  config.top_k_groups = 3;
  config.scaling_factor = 2.5f;
  std::vector<float> x = random_floats(40 * 64, 1), weight = random_floats(32 * 64, 2, 0.1f);
  std::vector<float> bias = random_floats(32, 3, 0.2f);
  Rig rig(Backend::kRef);
  const Routing got = route(rig, config, x, weight, bias, 40, 64);
  const Routing want = noaux_by_definition(config, x, weight, bias, 40, 64);
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_LT(worst_error(got.weights, want.weights), 1e-5);
}

TEST(Gate, GroupLimitedGreedyKeepsTheGroupsWithTheBestSingleExpert) {
  GateConfig config;
  config.num_experts = 6;
  config.top_k = 2;
  config.num_groups = 3;
  config.top_k_groups = 1;
  config.scoring = GateScoring::kSoftmax;
  config.method = GateMethod::kGroupLimitedGreedy;
  config.normalize = false;
  config.scaling_factor = 16;
  // One input: scores rise with the weight. Experts 2 and 3 have the best sum, expert 5 is the best.
  std::vector<float> x = {1.0f}, weight = {0, 0, 1.0f, 1.0f, -2.0f, 1.5f}, bias;
  Rig rig(Backend::kRef);
  const Routing got = route(rig, config, x, weight, bias, 1, 1);
  EXPECT_EQ(got.ids, (std::vector<int32_t>{5, 4}));
  double sum = 0;
  for (const float w : weight) sum += std::exp(double(w));
  EXPECT_NEAR(got.weights[0], 16 * std::exp(1.5) / sum, 1e-5);
  EXPECT_NEAR(got.weights[1], 16 * std::exp(-2.0) / sum, 1e-5);
}

TEST(Gate, TiesGoToTheLowerExpert) {
  GateConfig config;
  config.num_experts = 8;
  config.top_k = 3;
  config.method = GateMethod::kGreedy;
  std::vector<float> x(16, 1.0f), weight(8 * 16, 0.5f), bias;
  Rig oracle(Backend::kRef);
  EXPECT_EQ(route(oracle, config, x, weight, bias, 1, 16).ids, (std::vector<int32_t>{0, 1, 2}));
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa);
    EXPECT_EQ(route(rig, config, x, weight, bias, 1, 16).ids, (std::vector<int32_t>{0, 1, 2}));
  }
}

TEST(Gate, EveryInstructionSetChoosesLikeTheOracle) {
  for (const auto& [experts, groups, kept, hidden] :
       {std::array{32, 1, 1, 512}, std::array{64, 8, 4, 130}, std::array{7, 1, 1, 33}, std::array{256, 8, 4, 70}}) {
    for (const GateScoring scoring : {GateScoring::kSigmoid, GateScoring::kSoftmax}) {
      GateConfig config;
      config.num_experts = experts;
      config.num_groups = groups;
      config.top_k_groups = kept;
      config.top_k = 4;
      config.scoring = scoring;
      std::vector<float> x = random_floats(size_t(61 * hidden), 4);
      std::vector<float> weight = random_floats(size_t(experts * hidden), 5, 0.05f), bias;
      if (scoring == GateScoring::kSigmoid) bias = random_floats(size_t(experts), 6, 0.1f);
      Rig oracle(Backend::kRef);
      const Routing want = route(oracle, config, x, weight, bias, 61, hidden);
      for (const Isa isa : supported_isas()) {
        Rig rig(Backend::kCpu, isa);
        const Routing got = route(rig, config, x, weight, bias, 61, hidden);
        // Scores differ by f32 rounding only, and random ones are never that close.
        EXPECT_EQ(got.ids, want.ids) << to_string(isa) << " experts=" << experts;
        EXPECT_LT(worst_error(got.weights, want.weights), 1e-5);
        std::vector<float> last(x.end() - hidden, x.end());
        const Routing alone = route(rig, config, last, weight, bias, 1, hidden);
        for (size_t k = 0; k < 4; ++k) EXPECT_EQ(alone.weights[k], got.weights[60 * 4 + k]);
      }
    }
  }
}

TEST(SlotSort, SortsBySlotAndKeepsTheOrderOfTokens) {
  Rig rig(Backend::kRef);
  std::vector<int32_t> slots = {3, 0, 0, 2, 3, 0, 5, 3};  // four tokens, two each
  const SlotSort sort = sort_by_slot(rig.ctx, TensorView(slots.data(), DType::kI32, {4, 2}), 6);
  const std::vector<int32_t> begin(sort.slot_begin.begin(), sort.slot_begin.end());
  EXPECT_EQ(begin, (std::vector<int32_t>{0, 3, 3, 4, 7, 7, 8}));
  const std::vector<int32_t> tokens(sort.row_token.begin(), sort.row_token.end());
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 2, 1, 0, 2, 3, 3}));
  for (size_t i = 0; i < slots.size(); ++i) {
    const int32_t row = sort.row_of[i];
    EXPECT_EQ(sort.row_token[size_t(row)], int32_t(i / 2));
    EXPECT_TRUE(row >= begin[size_t(slots[i])] && row < begin[size_t(slots[i]) + 1]);
  }
}

// A layer of experts in one backend's form.
struct Layer {
  Layer(Backend backend, Isa isa, DType dtype, int64_t hidden, int64_t width, int32_t num) : weights(size_t(num)) {
    for (int32_t e = 0; e < num; ++e) {
      const Matrix gate(dtype, width, hidden, uint64_t(100 + e)), up(dtype, width, hidden, uint64_t(200 + e));
      const Matrix down(dtype, hidden, width, uint64_t(300 + e));
      weights[size_t(e)].gate_up = pack(backend, isa, {gate.all(), up.all()});
      weights[size_t(e)].down = pack(backend, isa, {down.all()});
    }
    for (const ExpertWeights& w : weights) pointers.push_back(&w);
  }
  std::vector<ExpertWeights> weights;
  std::vector<const ExpertWeights*> pointers;
};

struct MoeCase {
  DType dtype;
  int64_t tokens, hidden, width;
  int32_t experts, top_k;
};

std::vector<int32_t> random_slots(const MoeCase& c) {
  std::mt19937 random(uint32_t(c.tokens));
  std::vector<int32_t> order(static_cast<size_t>(c.experts)), slots;
  std::iota(order.begin(), order.end(), 0);
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::shuffle(order.begin(), order.end() - 1, random);  // the last expert stays empty
    slots.insert(slots.end(), order.begin(), order.begin() + c.top_k);
  }
  return slots;
}

// grouped_mlp, then combine into a residual.
std::vector<float> run_layer(Rig& rig, const Layer& layer, const MoeCase& c, TensorView x, std::vector<int32_t> slots,
                             std::vector<float> weights, std::vector<float> residual) {
  const device::WorkspaceScope scope(rig.workspace);
  const SlotSort sort = sort_by_slot(rig.ctx, TensorView(slots.data(), DType::kI32, {x.dim(0), c.top_k}), c.experts);
  std::vector<const ExpertWeights*> experts = layer.pointers;
  for (size_t s = 0; s < experts.size(); ++s) {
    if (sort.slot_begin[s] == sort.slot_begin[s + 1]) experts[s] = nullptr;
  }
  std::vector<float> y(slots.size() * size_t(c.hidden), NAN);
  grouped_mlp(rig.ctx, x, sort, experts, int32_t(c.width), view(y, {int64_t(slots.size()), c.hidden}));
  std::vector<const float*> rows;
  for (const int32_t row : sort.row_of) rows.push_back(y.data() + row * c.hidden);
  combine(rig.ctx, rows, view(weights, {x.dim(0), c.top_k}), view(residual, {x.dim(0), c.hidden}));
  return residual;
}

TEST(GroupedMlp, EveryInstructionSetAgreesWithTheOracle) {
  const DType f8 = DType::kF8E4M3, bf16 = DType::kBF16;
  for (const MoeCase& c :
       {MoeCase{f8, 1, 256, 96, 8, 4}, MoeCase{f8, 1, 160, 64, 6, 3}, MoeCase{f8, 9, 256, 128, 8, 4},
        MoeCase{f8, 40, 192, 160, 5, 2}, MoeCase{f8, 300, 128, 64, 4, 2}, MoeCase{bf16, 3, 96, 64, 8, 4},
        MoeCase{bf16, 50, 96, 32, 5, 2}, MoeCase{f8, 7, 130, 48, 5, 3}, MoeCase{bf16, 33, 66, 34, 4, 2}}) {
    std::vector<float> x = random_floats(size_t(c.tokens * c.hidden), 1);
    const std::vector<int32_t> slots = random_slots(c);
    const std::vector<float> weights = random_floats(slots.size(), 2), residual = random_floats(x.size(), 3);
    Rig oracle(Backend::kRef);
    const std::vector<float> want =
        run_layer(oracle, Layer(Backend::kRef, Isa::kAvx2, c.dtype, c.hidden, c.width, c.experts), c,
                  view(x, {c.tokens, c.hidden}), slots, weights, residual);
    for (const Isa isa : supported_isas()) {
      Rig probe(Backend::kCpu, isa);
      Rig rig(Backend::kCpu, isa, 2, moe_workspace_bytes(probe.ctx, c.tokens, c.top_k, c.experts, c.hidden, c.width));
      const Layer layer(Backend::kCpu, isa, c.dtype, c.hidden, c.width, c.experts);
      const std::vector<float> got = run_layer(rig, layer, c, view(x, {c.tokens, c.hidden}), slots, weights, residual);
      // f32 sums in another order, twice; activations rounded to bf16 would show as 2e-3.
      EXPECT_LT(relative_error(got, want), 2e-6) << to_string(isa) << " tokens=" << c.tokens;
      EXPECT_LT(worst_error(got, want), 2e-5) << to_string(isa) << " tokens=" << c.tokens;
    }
  }
}

TEST(GroupedMlp, ATokenIsBitForBitTheSameInAnyBatch) {
  const MoeCase c{DType::kF8E4M3, 64, 256, 96, 6, 3};
  std::vector<float> x = random_floats(size_t(c.tokens * c.hidden), 1);
  const std::vector<int32_t> slots = random_slots(c);
  const std::vector<float> weights = random_floats(slots.size(), 2), residual = random_floats(x.size(), 3);
  for (const Isa isa : supported_isas()) {
    Rig rig(Backend::kCpu, isa, 3);
    const Layer layer(Backend::kCpu, isa, c.dtype, c.hidden, c.width, c.experts);
    const std::vector<float> all = run_layer(rig, layer, c, view(x, {c.tokens, c.hidden}), slots, weights, residual);
    for (const int64_t tokens : {1, 5, 17}) {
      const size_t rows = size_t(tokens * c.hidden), picks = size_t(tokens * c.top_k);
      const std::vector<float> some = run_layer(
          rig, layer, c, TensorView(x.data(), DType::kF32, {tokens, c.hidden}), {slots.begin(), slots.begin() + picks},
          {weights.begin(), weights.begin() + picks}, {residual.begin(), residual.begin() + rows});
      for (size_t i = 0; i < rows; ++i) ASSERT_EQ(some[i], all[i]) << to_string(isa) << " tokens=" << tokens;
    }
  }
}

}  // namespace
}  // namespace tandem::kernels::test
