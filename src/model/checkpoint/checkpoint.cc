#include "model/checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <filesystem>
#include <set>

namespace tandem::model {

Status Checkpoint::add_shard(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  ASSIGN_OR_RETURN(TensorEntries entries, parse_safetensors_header(file.bytes(), file.bytes().size(), path));
  const size_t shard = shards_.size();
  shards_.push_back({std::move(file), std::move(entries)});
  std::vector<Tensor>& tensors = tensors_.emplace_back();
  tensors.reserve(shards_.back().entries.size());
  for (const TensorEntry& entry : shards_.back().entries) {
    tensors.push_back({&entry, shards_.back().file.bytes().data() + entry.begin, shard});
    const auto [other, is_new] = by_name_.emplace(entry.name, &tensors.back());
    if (!is_new) {
      return corrupt(fmt::format("{}: tensor '{}' is also in {}", path, entry.name, shard_path(other->second->shard)));
    }
  }
  return Ok{};
}

Status Checkpoint::check_index(const std::vector<IndexEntry>& index) const {
  for (const IndexEntry& want : index) {
    const std::string path = directory_ + "/" + want.file;
    const Tensor* tensor = find(want.tensor);
    if (!tensor || shard_path(tensor->shard) != path) {
      return corrupt(fmt::format("{}: has no tensor '{}', which the index places there", path, want.tensor));
    }
  }
  return Ok{};
}

namespace {

constexpr std::string_view kIndexFile = "/model.safetensors.index.json";
constexpr std::string_view kSingleFile = "/model.safetensors";

bool exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

bool Checkpoint::has_weights(const std::string& directory) {
  return exists(directory + std::string(kIndexFile)) || exists(directory + std::string(kSingleFile));
}

Result<Checkpoint> Checkpoint::open(const std::string& directory) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  const std::string index_path = directory + std::string(kIndexFile);
  if (!exists(index_path)) {
    RETURN_IF_ERROR(checkpoint.add_shard(directory + std::string(kSingleFile)));
    return checkpoint;
  }
  ASSIGN_OR_RETURN(const MappedFile index_file, MappedFile::open(index_path));
  const auto bytes = index_file.bytes();
  ASSIGN_OR_RETURN(const std::vector<IndexEntry> index,
                   parse_safetensors_index({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, index_path));
  std::set<std::string> files;
  for (const IndexEntry& entry : index) files.insert(entry.file);
  checkpoint.shards_.reserve(files.size());
  checkpoint.tensors_.reserve(files.size());
  for (const std::string& file : files) RETURN_IF_ERROR(checkpoint.add_shard(directory + "/" + file));
  RETURN_IF_ERROR(checkpoint.check_index(index));
  return checkpoint;
}

const Checkpoint::Tensor* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

std::vector<const Checkpoint::Tensor*> Checkpoint::tensors() const {
  std::vector<const Tensor*> all;
  for (const auto& shard : tensors_) {
    for (const Tensor& tensor : shard) all.push_back(&tensor);
  }
  return all;
}

}  // namespace tandem::model
