// Checkpoint: the tensors of a Hugging Face directory, by name, over mapped shards. Immutable after open(); any thread
// may read. Views into it die with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/safetensors.h"

namespace tandem::model {

class Checkpoint {
 public:
  struct Tensor {
    const TensorEntry* entry = nullptr;
    const uint8_t* data = nullptr;  // not necessarily aligned
    size_t shard = 0;

    size_t bytes() const { return size_t(entry->end - entry->begin); }
  };

  // Whether the directory holds an index or a single file of weights.
  static bool has_weights(const std::string& directory);
  // Through model.safetensors.index.json, else the single model.safetensors. Errors are one line naming the file.
  static Result<Checkpoint> open(const std::string& directory);

  // Null: there is none of that name.
  const Tensor* find(std::string_view name) const;
  size_t num_tensors() const { return by_name_.size(); }
  size_t num_shards() const { return shards_.size(); }
  const std::string& shard_path(size_t shard) const { return shards_[shard].file.path(); }
  // All tensors, in the order of the files.
  std::vector<const Tensor*> tensors() const;
  const std::string& directory() const { return directory_; }

 private:
  struct Shard {
    MappedFile file;
    TensorEntries entries;
  };
  Status add_shard(const std::string& path);
  Status check_index(const std::vector<IndexEntry>& index) const;

  std::string directory_;
  std::vector<Shard> shards_;
  std::vector<std::vector<Tensor>> tensors_;  // per shard; entry points into shards_[i].entries' heap
  std::unordered_map<std::string_view, const Tensor*> by_name_;
};

}  // namespace tandem::model
