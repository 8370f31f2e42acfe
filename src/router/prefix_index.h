// PrefixIndex: which instance has probably seen the beginning of a prompt. An approximate radix tree over bytes: nobody
// tells when a server's cache drops something, old texts are forgotten by least recent use. Pure; one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "router/instance_table.h"

namespace tandem::router {

class PrefixIndex {
 public:
  // max_bytes bounds the text that is held; an insert that goes beyond it evicts at once.
  explicit PrefixIndex(size_t max_bytes);
  ~PrefixIndex();

  struct Match {
    size_t matched_bytes = 0;
    InstanceId instance;  // meaningful if matched_bytes > 0
  };
  // The longest prefix that one of `among` has seen; of several instances the most recent.
  Match find(std::string_view text, std::span<const InstanceId> among) const;
  void insert(std::string_view text, InstanceId instance, TimePoint now);
  void forget(InstanceId instance);
  // Drops least recently used texts until at most `bytes` are held.
  void evict_to(size_t bytes);

  size_t bytes() const { return bytes_; }

 private:
  struct Node;
  struct Seen {
    InstanceId instance;
    TimePoint at;
  };
  void touch(Node& node, InstanceId instance, TimePoint now);
  void drop(Node& node, InstanceId instance);

  const size_t max_bytes_;
  size_t bytes_ = 0;  // of the edges' texts
  std::unique_ptr<Node> root_;
};

}  // namespace tandem::router
