#include "model/weights/weight_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

namespace tandem::model {

namespace {

using device::DType;
using kernels::RawWeight;

constexpr std::string_view kScaleSuffix = "_scale_inv";

std::string scale_name(const TensorSpec& spec) { return spec.name + std::string(kScaleSuffix); }

std::vector<int64_t> shape_of(const TensorSpec& spec) {
  return spec.cols == 0 ? std::vector<int64_t>{spec.rows} : std::vector<int64_t>{spec.rows, spec.cols};
}

bool is_float_type(const TensorEntry& entry) {
  return entry.dtype->type == DType::kF32 || entry.dtype->type == DType::kBF16;
}

// Values as f32 from bytes that need not be aligned.
std::vector<float> to_f32(const Checkpoint::Tensor& tensor) {
  std::vector<float> out(size_t(tensor.entry->num_elements()));
  if (tensor.entry->dtype->type == DType::kF32) {
    std::memcpy(out.data(), tensor.data, tensor.bytes());
    return out;
  }
  CHECK(tensor.entry->dtype->type == DType::kBF16);
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, tensor.data + 2 * i, sizeof(bits));
    out[i] = device::f32_from_bf16(bits);
  }
  return out;
}

// FNV-1a, 64 bits.
uint64_t hash_bytes(uint64_t hash, const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  return hash;
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

// "model.layers.12.mlp..." gives 12; -1: not a tensor of a layer.
int32_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  name.remove_prefix(kPrefix.size());
  int32_t layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' ? layer : -1;
}

}  // namespace

std::string_view to_string(TensorGroup group) {
  switch (group) {
    case TensorGroup::kEmbedding: return "embedding";
    case TensorGroup::kAttention: return "attention";
    case TensorGroup::kDenseMlp: return "dense MLP";
    case TensorGroup::kSharedExperts: return "shared experts";
    case TensorGroup::kRoutedExperts: return "routed experts";
    case TensorGroup::kRouter: return "router";
    case TensorGroup::kNorms: return "norms";
    case TensorGroup::kHead: return "output head";
  }
  return "";
}

WeightSource::WeightSource(std::vector<TensorSpec> specs) : specs_(std::move(specs)) {
  by_name_.reserve(specs_.size());
  for (const TensorSpec& spec : specs_) {
    const bool is_new = by_name_.emplace(spec.name, &spec).second;
    CHECK(is_new);
  }
}

WeightSource WeightSource::dummy(std::vector<TensorSpec> specs, const ModelConfig& config, uint64_t seed) {
  WeightSource source(std::move(specs));
  source.dummy_.emplace(seed);
  source.fp8_blocks_ = config.fp8_blocks;
  return source;
}

Result<WeightSource> WeightSource::from_checkpoint(Checkpoint checkpoint, std::vector<TensorSpec> specs,
                                                   const ModelConfig& config) {
  WeightSource source(std::move(specs));
  source.checkpoint_.emplace(std::move(checkpoint));
  source.fp8_blocks_ = config.fp8_blocks;
  const std::string* first_missing = nullptr;
  int64_t num_missing = 0;
  for (const TensorSpec& spec : source.specs_) {
    if (!source.checkpoint_->find(spec.name)) {
      if (num_missing++ == 0) first_missing = &spec.name;
      continue;
    }
    RETURN_IF_ERROR(source.check_tensor(spec, config));
  }
  if (num_missing > 0) {
    const std::string more = num_missing > 1 ? fmt::format(" (and {} more tensors)", num_missing - 1) : "";
    return corrupt(fmt::format("{}: tensor '{}' is missing{}", source.checkpoint_->directory(), *first_missing, more));
  }
  source.sort_out_unused(config);
  return source;
}

Status WeightSource::check_tensor(const TensorSpec& spec, const ModelConfig& config) const {
  const Checkpoint::Tensor& tensor = *checkpoint_->find(spec.name);
  const std::string& file = checkpoint_->shard_path(tensor.shard);
  if (tensor.entry->shape != shape_of(spec)) {
    return corrupt(fmt::format("{}: tensor '{}' has shape {}, config.json wants {}", file, spec.name,
                               shape_to_string(tensor.entry->shape), shape_to_string(shape_of(spec))));
  }
  if (is_float_type(*tensor.entry)) {
    const bool is_vector = spec.role == TensorRole::kGain || spec.role == TensorRole::kBias;
    if (is_vector && !all_finite(to_f32(tensor))) {
      return corrupt(fmt::format("{}: tensor '{}' holds values that are not finite", file, spec.name));
    }
    return Ok{};
  }
  if (spec.role != TensorRole::kProjection || tensor.entry->dtype->type != DType::kF8E4M3) {
    return corrupt(fmt::format("{}: tensor '{}' has dtype {}, wanted {}", file, spec.name, tensor.entry->dtype->name,
                               spec.role == TensorRole::kProjection ? "F8_E4M3, BF16 or F32" : "BF16 or F32"));
  }
  if (!config.fp8_blocks) {
    return corrupt(
        fmt::format("{}: tensor '{}' is F8_E4M3, but config.json has no fp8 quantization_config", file, spec.name));
  }
  return check_scales(spec);
}

Status WeightSource::check_scales(const TensorSpec& spec) const {
  const std::string name = scale_name(spec);
  const Checkpoint::Tensor* scales = checkpoint_->find(name);
  if (!scales) return corrupt(fmt::format("{}: tensor '{}' is missing", checkpoint_->directory(), name));
  const std::string& file = checkpoint_->shard_path(scales->shard);
  const std::vector<int64_t> wanted{spec.scale_rows(), spec.scale_cols()};
  if (scales->entry->dtype->type != DType::kF32) {
    return corrupt(fmt::format("{}: tensor '{}' has dtype {}, wanted F32", file, name, scales->entry->dtype->name));
  }
  if (scales->entry->shape != wanted) {
    return corrupt(fmt::format("{}: tensor '{}' has shape {}, wanted {} for 128x128 blocks", file, name,
                               shape_to_string(scales->entry->shape), shape_to_string(wanted)));
  }
  if (!all_finite(to_f32(*scales))) {
    return corrupt(fmt::format("{}: tensor '{}' holds values that are not finite", file, name));
  }
  return Ok{};
}

void WeightSource::sort_out_unused(const ModelConfig& config) {
  for (const Checkpoint::Tensor* tensor : checkpoint_->tensors()) {
    std::string_view name = tensor->entry->name;
    if (by_name_.contains(name)) continue;
    if (name.ends_with(kScaleSuffix)) {
      const std::string_view weight = name.substr(0, name.size() - kScaleSuffix.size());
      const Checkpoint::Tensor* scaled = by_name_.contains(weight) ? checkpoint_->find(weight) : nullptr;
      if (scaled && scaled->entry->dtype->type == DType::kF8E4M3) continue;
    }
    const int32_t layer = layer_of(name);
    const int32_t stored = config.checkpoint_num_layers;
    if (layer >= config.num_layers && layer < stored) {
      unused_.cut_layers.push_back(tensor);
    } else if (layer >= stored && layer < stored + config.num_nextn_predict_layers) {
      unused_.next_token_prediction.push_back(tensor);
    } else if (config.tie_word_embeddings && name == "lm_head.weight") {
      unused_.tied_head.push_back(tensor);
    } else {
      unused_.surplus.push_back(tensor);
    }
  }
}

const TensorSpec& WeightSource::spec(std::string_view name) const {
  const auto found = by_name_.find(name);
  CHECK(found != by_name_.end());  // the architecture reads only what it listed
  return *found->second;
}

void WeightSource::read_matrix(std::string_view name, SourceMatrix& out) const {
  const TensorSpec& wanted = spec(name);
  CHECK(wanted.cols > 0);
  out.raw = {};
  if (checkpoint_) {
    read_stored(wanted, out);
  } else {
    invent(wanted, out);
  }
  out.raw.rows = wanted.rows;
  out.raw.cols = out.raw.row_stride = wanted.cols;
  if (out.raw.dtype == DType::kF8E4M3) {
    out.raw.scale_inv = out.scales.data();
    out.raw.scale_stride = wanted.scale_cols();
  }
}

void WeightSource::read_stored(const TensorSpec& spec, SourceMatrix& out) const {
  const Checkpoint::Tensor& tensor = *checkpoint_->find(spec.name);
  out.raw.dtype = *tensor.entry->dtype->type;
  out.raw.data = tensor.data;
  if (std::bit_cast<uintptr_t>(tensor.data) % size_of(out.raw.dtype) != 0) {
    out.own.assign(tensor.data, tensor.data + tensor.bytes());
    out.raw.data = out.own.data();
  }
  if (out.raw.dtype == DType::kF8E4M3) out.scales = to_f32(*checkpoint_->find(scale_name(spec)));
}

void WeightSource::invent(const TensorSpec& spec, SourceMatrix& out) const {
  out.raw.dtype = spec.is_fp8(fp8_blocks_) ? DType::kF8E4M3 : DType::kBF16;
  out.own.resize(size_t(spec.num_elements()) * size_of(out.raw.dtype));
  out.raw.data = out.own.data();
  // Deviation 1/sqrt(inputs): a product of unit activations has unit size again.
  const float deviation = 1.0f / std::sqrt(float(spec.cols));
  if (out.raw.dtype == DType::kF8E4M3) {
    dummy_->fill_fp8(spec.name, spec.num_elements(), out.own.data());
    out.scales.assign(size_t(spec.scale_rows() * spec.scale_cols()), deviation * DummyWeights::fp8_scale());
  } else {
    dummy_->fill_bf16(spec.name, spec.num_elements(), int(std::lround(std::log2(deviation))),
                      reinterpret_cast<uint16_t*>(out.own.data()));
  }
}

std::vector<float> WeightSource::values(std::string_view name) const {
  const TensorSpec& wanted = spec(name);
  if (checkpoint_) return to_f32(*checkpoint_->find(wanted.name));
  std::vector<float> out(size_t(wanted.num_elements()));
  switch (wanted.role) {
    case TensorRole::kGain: dummy_->fill_f32(name, wanted.num_elements(), 1.0f, 0.05f, out.data()); break;
    case TensorRole::kBias: dummy_->fill_f32(name, wanted.num_elements(), 0.0f, 0.02f, out.data()); break;
    default: dummy_->fill_f32(name, wanted.num_elements(), 0.0f, 1.0f / std::sqrt(float(wanted.cols)), out.data());
  }
  return out;
}

uint64_t WeightSource::fingerprint(uint64_t hash) const {
  if (dummy_) {
    const uint64_t seed = dummy_->seed();
    hash = hash_bytes(hash, &seed, sizeof(seed));
  }
  for (const TensorSpec& spec : specs_) {
    hash = hash_bytes(hash, spec.name.data(), spec.name.size());
    hash = hash_bytes(hash, &spec.rows, sizeof(spec.rows));
    hash = hash_bytes(hash, &spec.cols, sizeof(spec.cols));
    if (!checkpoint_) continue;
    const Checkpoint::Tensor& tensor = *checkpoint_->find(spec.name);
    hash = hash_bytes(hash, tensor.entry->dtype->name.data(), tensor.entry->dtype->name.size());
    hash = hash_bytes(hash, tensor.data, std::min<size_t>(tensor.bytes(), 64));
  }
  return hash;
}

}  // namespace tandem::model
