#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/ref/ref.h"

namespace tandem::kernels::ref {
namespace {

using device::TensorView;

// Index of the largest unused value; the lower index wins a tie.
int32_t take_best(float* values, int32_t count) {
  int32_t best = 0;
  for (int32_t i = 1; i < count; ++i) {
    if (values[i] > values[best]) best = i;
  }
  values[best] = -INFINITY;
  return best;
}

// Sets the choice of every expert outside the best groups to -infinity.
void keep_best_groups(const GateConfig& config, float* choice, float* group_scores) {
  const int32_t size = config.num_experts / config.num_groups;
  for (int32_t g = 0; g < config.num_groups; ++g) {
    float first = -INFINITY, second = -INFINITY;
    for (int32_t e = g * size; e < (g + 1) * size; ++e) {
      if (choice[e] > first) {
        second = first;
        first = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    group_scores[g] = config.method == GateMethod::kNoAuxTc && size > 1 ? first + second : first;
  }
  for (int32_t kept = 0; kept < config.top_k_groups; ++kept) {
    int32_t best = -1;
    for (int32_t g = 0; g < config.num_groups; ++g) {
      if (!std::isnan(group_scores[g]) && (best < 0 || group_scores[g] > group_scores[best])) best = g;
    }
    if (best < 0) break;
    group_scores[best] = NAN;  // kept
  }
  for (int32_t g = 0; g < config.num_groups; ++g) {
    if (!std::isnan(group_scores[g])) std::fill(choice + g * size, choice + (g + 1) * size, -INFINITY);
  }
}

}  // namespace

void choose_experts(const GateConfig& config, const float* scores, const float* bias, float* scratch, int32_t* ids,
                    float* weights) {
  float* choice = scratch;
  for (int32_t e = 0; e < config.num_experts; ++e) choice[e] = scores[e] + (bias != nullptr ? bias[e] : 0.0f);
  if (config.method != GateMethod::kGreedy && config.top_k_groups < config.num_groups) {
    keep_best_groups(config, choice, scratch + config.num_experts);
  }
  float sum = 0;
  for (int32_t i = 0; i < config.top_k; ++i) {
    ids[i] = take_best(choice, config.num_experts);
    weights[i] = scores[ids[i]];
    sum += weights[i];
  }
  const bool normalize = config.normalize && config.top_k > 1;
  for (int32_t i = 0; i < config.top_k; ++i) {
    if (normalize) weights[i] /= sum + 1e-20f;
    weights[i] *= config.scaling_factor;
  }
}

void gate(const Context& ctx, const GateConfig& config, TensorView x, TensorView weight, TensorView bias,
          TensorView ids, TensorView weights) {
  const device::WorkspaceScope scope(*ctx.workspace);
  const int64_t rows = x.dim(0), hidden = x.dim(1), experts = config.num_experts;
  float* scores = ctx.workspace->take_array<float>(size_t(experts));
  float* scratch = ctx.workspace->take_array<float>(size_t(experts + config.num_groups));
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < hidden; ++i) {
        sum += double(x.as<float>()[t * hidden + i]) * weight.as<float>()[e * hidden + i];
      }
      scores[e] = float(sum);
    }
    if (config.scoring == GateScoring::kSigmoid) {
      for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    } else {
      const float top = *std::max_element(scores, scores + experts);
      float sum = 0;
      for (int64_t e = 0; e < experts; ++e) sum += scores[e] = std::exp(scores[e] - top);
      for (int64_t e = 0; e < experts; ++e) scores[e] /= sum;
    }
    choose_experts(config, scores, bias.as<float>(), scratch, ids.as<int32_t>() + t * config.top_k,
                   weights.as<float>() + t * config.top_k);
  }
}

void grouped_mlp(const Context& ctx, TensorView x, const SlotSort& sort, std::span<const ExpertWeights* const> experts,
                 int32_t intermediate, TensorView y) {
  const int64_t hidden = x.dim(1), width = intermediate;
  for (size_t slot = 0; slot + 1 < sort.slot_begin.size(); ++slot) {
    const int64_t begin = sort.slot_begin[slot], rows = sort.slot_begin[slot + 1] - begin;
    if (rows == 0) continue;
    const device::WorkspaceScope scope(*ctx.workspace);
    float* gathered = ctx.workspace->take_array<float>(size_t(rows * hidden));
    float* gate_up = ctx.workspace->take_array<float>(size_t(rows * 2 * width));
    float* inner = ctx.workspace->take_array<float>(size_t(rows * width));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = sort.row_token[size_t(begin + r)];
      for (int64_t i = 0; i < hidden; ++i) gathered[r * hidden + i] = load(x, token * hidden + i);
    }
    const TensorView wide(gate_up, device::DType::kF32, {rows, 2 * width});
    const TensorView narrow(inner, device::DType::kF32, {rows, width});
    ref::linear(ctx, TensorView(gathered, device::DType::kF32, {rows, hidden}), experts[slot]->gate_up, wide, false);
    ref::swiglu(ctx, wide, narrow);
    ref::linear(ctx, narrow, experts[slot]->down,
                TensorView(y.as<float>() + begin * hidden, device::DType::kF32, {rows, hidden}), false);
  }
}

size_t moe_workspace_bytes(const Context& ctx, int64_t max_rows, int32_t top_k, int64_t hidden, int64_t intermediate) {
  const int64_t rows = max_rows * top_k;  // all on one expert
  return size_t(rows * (hidden + 3 * intermediate)) * sizeof(float) +
         ref::linear_workspace_bytes(ctx, rows, hidden, std::max(hidden, intermediate)) + 1024;
}

void combine(const Context&, std::span<const float* const> rows, TensorView weights, TensorView out) {
  const int64_t tokens = out.dim(0), hidden = out.dim(1), top_k = weights.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < hidden; ++i) {
      float sum = 0;
      for (int64_t k = 0; k < top_k; ++k) {
        sum += weights.as<float>()[t * top_k + k] * rows[size_t(t * top_k + k)][i];
      }
      out.as<float>()[t * hidden + i] += sum;
    }
  }
}

}  // namespace tandem::kernels::ref
