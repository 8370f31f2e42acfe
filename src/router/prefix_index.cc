#include "router/prefix_index.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tandem::router {

struct PrefixIndex::Node {
  std::string text;  // on the edge from the parent
  Node* parent = nullptr;
  std::map<char, std::unique_ptr<Node>> children;
  std::vector<Seen> seen;  // one entry per instance
  TimePoint last_use{};
};

PrefixIndex::PrefixIndex(size_t max_bytes) : max_bytes_(max_bytes), root_(std::make_unique<Node>()) {}
PrefixIndex::~PrefixIndex() { evict_to(0); }

namespace {

size_t common_prefix(std::string_view a, std::string_view b) {
  return std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first - a.begin();
}

}  // namespace

PrefixIndex::Match PrefixIndex::find(std::string_view text, std::span<const InstanceId> among) const {
  Match best;
  const Node* node = root_.get();
  size_t matched = 0;
  while (matched < text.size()) {
    auto child = node->children.find(text[matched]);
    if (child == node->children.end()) break;
    node = child->second.get();
    const size_t n = common_prefix(node->text, text.substr(matched));
    matched += n;
    TimePoint newest = TimePoint::min();
    for (const Seen& seen : node->seen) {
      if (seen.at < newest || std::find(among.begin(), among.end(), seen.instance) == among.end()) continue;
      newest = seen.at;
      best = {matched, seen.instance};
    }
    if (n < node->text.size()) break;
  }
  return best;
}

void PrefixIndex::touch(Node& node, InstanceId instance, TimePoint now) {
  node.last_use = now;
  for (Seen& seen : node.seen) {
    if (seen.instance == instance) {
      seen.at = now;
      return;
    }
  }
  node.seen.push_back({instance, now});
}

void PrefixIndex::insert(std::string_view text, InstanceId instance, TimePoint now) {
  if (text.size() > max_bytes_) text = text.substr(0, max_bytes_);
  Node* node = root_.get();
  while (!text.empty()) {
    auto& slot = node->children[text[0]];
    if (!slot) {
      slot = std::make_unique<Node>();
      slot->text = text;
      slot->parent = node;
      bytes_ += text.size();
      touch(*slot, instance, now);
      break;
    }
    const size_t n = common_prefix(slot->text, text);
    if (n < slot->text.size()) {
      // Split the edge: the upper half keeps who has seen it, the lower half moves below.
      auto upper = std::make_unique<Node>();
      upper->text = slot->text.substr(0, n);
      upper->parent = node;
      upper->seen = slot->seen;
      upper->last_use = slot->last_use;
      slot->text.erase(0, n);
      slot->parent = upper.get();
      const char key = slot->text[0];
      upper->children[key] = std::move(slot);
      slot = std::move(upper);
    }
    touch(*slot, instance, now);
    node = slot.get();
    text.remove_prefix(n);
  }
  // Well below the bound, so that this pass over all leaves is rare.
  if (bytes_ > max_bytes_) evict_to(max_bytes_ - max_bytes_ / 8);
}

void PrefixIndex::evict_to(size_t bytes) {
  auto leaves_first = [](const Node* a, const Node* b) { return a->last_use > b->last_use; };
  std::vector<Node*> heap;
  std::vector<Node*> open = {root_.get()};
  while (!open.empty()) {
    Node* node = open.back();
    open.pop_back();
    if (node->children.empty() && node != root_.get()) heap.push_back(node);
    for (auto& [key, child] : node->children) open.push_back(child.get());
  }
  std::make_heap(heap.begin(), heap.end(), leaves_first);
  while (bytes_ > bytes) {
    CHECK(!heap.empty());
    std::pop_heap(heap.begin(), heap.end(), leaves_first);
    Node* leaf = heap.back();
    heap.pop_back();
    Node* parent = leaf->parent;
    bytes_ -= leaf->text.size();
    const char key = leaf->text[0];
    parent->children.erase(key);
    if (parent->children.empty() && parent != root_.get()) {
      heap.push_back(parent);
      std::push_heap(heap.begin(), heap.end(), leaves_first);
    }
  }
}

void PrefixIndex::drop(Node& node, InstanceId instance) {
  std::erase_if(node.seen, [&](const Seen& seen) { return seen.instance == instance; });
}

void PrefixIndex::forget(InstanceId instance) {
  std::vector<Node*> open = {root_.get()};
  while (!open.empty()) {
    Node* node = open.back();
    open.pop_back();
    drop(*node, instance);
    for (auto& [key, child] : node->children) open.push_back(child.get());
  }
}

}  // namespace tandem::router
