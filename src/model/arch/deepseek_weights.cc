#include "model/arch/deepseek_weights.h"

#include <fmt/format.h>

#include <array>
#include <string>

#include "model/arch/deepseek.h"

namespace tandem::model {

namespace {

using device::Buffer;
using kernels::PackedWeight;

// Read buffers of one thread, kept from job to job: fresh memory for each matrix costs more than filling it.
using Scratch = std::array<SourceMatrix, 2>;
using Job = std::function<void(Scratch&)>;

class Packer {
 public:
  Packer(const ModelConfig& config, const WeightSource& source, const LoadOptions& options)
      : c_(config), source_(source), options_(options) {}

  // The jobs of one layer are independent; running them fills `w`, which must stay where it is meanwhile.
  std::vector<Job> layer_jobs(int32_t layer, DeepseekWeights& w) const {
    std::vector<Job> jobs;
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    AttentionWeights& attention = w.attention[size_t(layer)];
    MlpWeights& mlp = w.mlp[size_t(layer)];
    attention.input_norm = values(prefix + "input_layernorm.weight");
    mlp.norm = values(prefix + "post_attention_layernorm.weight");
    add_attention_jobs(prefix + "self_attn.", attention, jobs);
    if (c_.is_moe_layer(layer)) {
      add_gate_and_shared(prefix + "mlp.", mlp, jobs);
    } else {
      mlp.always_width = c_.intermediate_size;
      add_mlp_jobs(prefix + "mlp.", mlp.always, jobs);
    }
    return jobs;
  }

  std::vector<Job> outer_jobs(DeepseekWeights& w) const {
    w.final_norm = values("model.norm.weight");
    std::vector<Job> jobs;
    jobs.push_back([this, &w](Scratch& scratch) {
      SourceMatrix& table = scratch[0];
      source_.read_matrix("model.embed_tokens.weight", table);
      w.embedding_dtype = table.raw.dtype;
      const size_t bytes = size_t(table.raw.rows * table.raw.cols) * size_of(table.raw.dtype);
      w.embedding = Buffer(device_of(options_.backend), bytes);
      device::copy_bytes(w.embedding.data(), table.raw.data, bytes);
    });
    jobs.push_back([this, &w](Scratch& scratch) {
      w.head = pack_shares(c_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", scratch);
    });
    return jobs;
  }

  kernels::ExpertWeights pack_expert(int32_t layer, int32_t expert, Scratch& scratch) const {
    return pack_mlp(fmt::format("model.layers.{}.mlp.experts.{}.", layer, expert), scratch);
  }

  // One job for each expert that a rank here holds in this layer: packed once, written to each of its slots.
  std::vector<Job> expert_jobs(int32_t layer, std::vector<RankExperts>& ranks, std::vector<Status>& outcomes) const {
    const int32_t per_rank = options_.experts.topology.slots_per_rank;
    struct Target {
      ExpertSlots* slots;
      int32_t place;
    };
    std::vector<std::vector<Target>> targets(size_t(c_.num_routed_experts));
    for (RankExperts& rank : ranks) {
      for (int32_t s = 0; s < per_rank; ++s) {
        const int32_t expert = options_.experts.placement.layer(layer)[size_t(rank.rank.value * per_rank + s)];
        targets[size_t(expert)].push_back({rank.slots.get(), rank.slots->layer(layer).place_of_slot[size_t(s)]});
      }
    }
    outcomes.assign(targets.size(), Ok{});
    std::vector<Job> jobs;
    for (int32_t expert = 0; expert < c_.num_routed_experts; ++expert) {
      if (targets[size_t(expert)].empty()) continue;
      jobs.push_back([this, layer, expert, to = targets[size_t(expert)], &outcomes](Scratch& scratch) {
        const kernels::ExpertWeights packed = pack_expert(layer, expert, scratch);
        for (const Target& target : to) {
          if (Status filled = target.slots->fill(target.place, packed); !filled) outcomes[size_t(expert)] = filled;
        }
      });
    }
    return jobs;
  }

 private:
  kernels::ExpertWeights pack_mlp(const std::string& prefix, Scratch& scratch) const {
    kernels::ExpertWeights w;
    w.gate_up = pack({prefix + "gate_proj.weight", prefix + "up_proj.weight"}, scratch);
    w.down = pack({prefix + "down_proj.weight"}, scratch);
    return w;
  }

  PackedWeight pack(const std::vector<std::string>& names, Scratch& scratch) const {
    CHECK(names.size() <= scratch.size());
    std::vector<kernels::RawWeight> raw;
    for (size_t i = 0; i < names.size(); ++i) {
      source_.read_matrix(names[i], scratch[i]);
      raw.push_back(scratch[i].raw);
    }
    return kernels::pack(options_.backend, options_.isa, raw);
  }

  // A matrix cut by its outputs into one weight per attention-TP rank.
  std::vector<PackedWeight> pack_shares(const std::string& name, Scratch& scratch) const {
    source_.read_matrix(name, scratch[0]);
    std::vector<PackedWeight> shares;
    for (int32_t i = 0; i < options_.attention_tp_size; ++i) {
      shares.push_back(kernels::pack(options_.backend, options_.isa, {rows_of_share(scratch[0].raw, i)}));
    }
    return shares;
  }

  kernels::RawWeight rows_of_share(const kernels::RawWeight& whole, int32_t index) const {
    const parallel::RowShare rows = parallel::share_of(whole.rows, options_.attention_tp_size, index);
    kernels::RawWeight share = whole;
    share.data =
        static_cast<const std::byte*>(whole.data) + rows.begin * whole.row_stride * int64_t(size_of(whole.dtype));
    share.rows = rows.count();
    share.row_offset += rows.begin;
    return share;
  }

  Values values(const std::string& name) const {
    const std::vector<float> stored = source_.values(name);
    Values out;
    out.rows = int64_t(stored.size());
    out.buffer = Buffer(device_of(options_.backend), stored.size() * sizeof(float));
    device::copy_bytes(out.buffer.data(), stored.data(), stored.size() * sizeof(float));
    return out;
  }

  void add_attention_jobs(const std::string& prefix, AttentionWeights& w, std::vector<Job>& jobs) const {
    w.kv_a_norm = values(prefix + "kv_a_layernorm.weight");
    if (c_.q_lora_rank > 0) w.q_a_norm = values(prefix + "q_a_layernorm.weight");
    jobs.push_back([this, prefix, &w](Scratch& scratch) {
      std::vector<std::string> down;
      if (c_.q_lora_rank > 0) down.push_back(prefix + "q_a_proj.weight");
      down.push_back(prefix + "kv_a_proj_with_mqa.weight");
      w.down = pack(down, scratch);
    });
    jobs.push_back([this, prefix, &w](Scratch& scratch) {
      w.q_up = pack_shares(prefix + (c_.q_lora_rank > 0 ? "q_b_proj.weight" : "q_proj.weight"), scratch);
    });
    jobs.push_back([this, prefix, &w](Scratch& scratch) {
      source_.read_matrix(prefix + "kv_b_proj.weight", scratch[0]);
      kernels::MlaShape shape = c_.mla();
      shape.num_heads /= options_.attention_tp_size;
      for (int32_t i = 0; i < options_.attention_tp_size; ++i) {
        w.kv_up.push_back(kernels::pack_kv_up(options_.backend, options_.isa, shape, rows_of_share(scratch[0].raw, i)));
      }
    });
    jobs.push_back([this, prefix, &w](Scratch& scratch) { w.output = pack({prefix + "o_proj.weight"}, scratch); });
  }

  void add_mlp_jobs(const std::string& prefix, kernels::ExpertWeights& w, std::vector<Job>& jobs) const {
    jobs.push_back([this, prefix, &w](Scratch& scratch) { w = pack_mlp(prefix, scratch); });
  }

  void add_gate_and_shared(const std::string& prefix, MlpWeights& w, std::vector<Job>& jobs) const {
    w.router = values(prefix + "gate.weight");
    w.router.rows = c_.num_routed_experts;
    w.router.cols = c_.hidden_size;
    if (c_.gate.method == kernels::GateMethod::kNoAuxTc) {
      w.bias = values(prefix + "gate.e_score_correction_bias");
    }
    if (c_.num_shared_experts > 0) {
      w.always_width = c_.num_shared_experts * c_.moe_intermediate_size;
      add_mlp_jobs(prefix + "shared_experts.", w.always, jobs);
    }
  }

  const ModelConfig& c_;
  const WeightSource& source_;
  const LoadOptions& options_;
};

void settle(device::Arena& arena, PackedWeight& weight) {
  if (weight.rows() > 0) weight.place(arena.take(weight.bytes()));
}

// Moves a packed layer's bytes next to each other.
void settle_layer(DeepseekWeights& w, int32_t layer) {
  AttentionWeights& attention = w.attention[size_t(layer)];
  settle(w.arena, attention.down);
  for (PackedWeight& weight : attention.q_up) settle(w.arena, weight);
  for (kernels::KvUpWeights& share : attention.kv_up) {
    settle(w.arena, share.expand);
    for (PackedWeight& weight : share.absorb_k) settle(w.arena, weight);
    for (PackedWeight& weight : share.absorb_v) settle(w.arena, weight);
  }
  settle(w.arena, attention.output);
  settle(w.arena, w.mlp[size_t(layer)].always.gate_up);
  settle(w.arena, w.mlp[size_t(layer)].always.down);
}

// Slots of every rank, empty still. The form is that of any expert.
void make_slots(const ModelConfig& config, const LoadOptions& options, const kernels::ExpertWeights& form,
                std::vector<RankExperts>& ranks) {
  ExpertSlots::Shape shape;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.is_moe_layer(layer)) shape.expert_layers.push_back(layer);
  }
  shape.num_layers = config.num_layers;
  shape.slots_per_rank = options.experts.topology.slots_per_rank;
  shape.num_spares = options.experts.spare_slots;
  for (RankExperts& rank : ranks) {
    rank.slots = std::make_unique<ExpertSlots>(shape, form, device_of(options.backend));
    for (const int32_t layer : shape.expert_layers) {
      const std::span<const int32_t> slots = options.experts.placement.layer(layer);
      rank.slots->set_placement(layer, {slots.begin(), slots.end()},
                                experts::build_dispatch(options.experts.placement, options.experts.topology, layer,
                                                        rank.rank.value, options.experts.dispatch));
    }
  }
}

}  // namespace

Result<std::unique_ptr<DeepseekWeights>> pack_deepseek(const ModelConfig& config, const WeightSource& source,
                                                       const LoadOptions& options, std::vector<RankExperts>& ranks) {
  const Packer packer(config, source, options);
  device::ThreadPool pool(options.num_threads);
  auto w = std::make_unique<DeepseekWeights>(device_of(options.backend));
  w->attention.resize(size_t(config.num_layers));
  w->mlp.resize(size_t(config.num_layers));
  std::vector<Scratch> scratch(size_t(pool.num_threads()));
  const auto run = [&](const std::vector<Job>& jobs) {
    pool.parallel_for(int64_t(jobs.size()), [&](int64_t i, int thread) {
      if (is_cuda(options.backend)) device::use_gpu(ranks.front().gpu);
      jobs[size_t(i)](scratch[size_t(thread)]);
    });
  };
  run(packer.outer_jobs(*w));
  for (PackedWeight& share : w->head) settle(w->arena, share);
  std::vector<Status> outcomes;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    run(packer.layer_jobs(layer, *w));
    settle_layer(*w, layer);
    if (config.is_moe_layer(layer)) {
      if (!ranks.front().slots) make_slots(config, options, packer.pack_expert(layer, 0, scratch[0]), ranks);
      run(packer.expert_jobs(layer, ranks, outcomes));
      for (const Status& outcome : outcomes) {
        if (!outcome) return invalid_input(fmt::format("{}: {}", options.directory, outcome.error().message));
      }
    }
    if (options.progress) options.progress(double(layer + 1) / config.num_layers);
  }
  return w;
}

DeepseekBytes deepseek_weight_bytes(const ModelConfig& config, kernels::Backend backend) {
  DeepseekBytes bytes;
  int64_t num_experts = 0;
  for (const TensorSpec& spec : deepseek_tensors(config)) {
    const bool as_f32 =
        spec.role == TensorRole::kGain || spec.role == TensorRole::kBias || spec.role == TensorRole::kRouter;
    const int64_t width = as_f32 ? 4 : spec.is_fp8(config.fp8_blocks) ? 1 : 2;
    // One f32 scale per 128 inputs, and per output (ref), panel of 32 outputs (cpu) or block of 128 (GPU).
    const int64_t outputs = is_cuda(backend) ? 128 : backend == kernels::Backend::kCpu ? 32 : 1;
    const int64_t scale_rows = (spec.rows + outputs - 1) / outputs;
    const int64_t scales = width == 1 ? scale_rows * spec.scale_cols() * 4 : 0;
    const bool twice = spec.name.ends_with("kv_b_proj.weight");  // expanded for prefill, absorbed for decode
    int64_t here = (spec.num_elements() * width + scales) * (twice ? 2 : 1);
    if (twice && is_cuda(backend)) {  // absorbed ones are widened
      here = spec.num_elements() * (width + (backend == kernels::Backend::kCuda ? 2 : 4)) + scales;
    }
    (spec.group == TensorGroup::kRoutedExperts ? bytes.expert : bytes.shared) += here;
    num_experts += spec.group == TensorGroup::kRoutedExperts && spec.name.ends_with("down_proj.weight") ? 1 : 0;
    if (config.tie_word_embeddings && spec.group == TensorGroup::kEmbedding) {
      bytes.shared += spec.num_elements() * width;
    }
  }
  if (num_experts > 0) bytes.expert /= num_experts;
  return bytes;
}

}  // namespace tandem::model
