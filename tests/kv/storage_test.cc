#include "kv/storage.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <vector>

namespace tandem::kv {
namespace {

KvLayout layout(int32_t block_tokens, int32_t row_width, int32_t num_blocks) {
  return {.num_layers = 3,
          .row_width = row_width,
          .dtype = device::DType::kBF16,
          .block_tokens = block_tokens,
          .num_blocks = num_blocks};
}

char* row(const KvStorage& storage, int32_t layer, const std::vector<int32_t>& blocks, int32_t token) {
  const KvLayout& l = storage.layout();
  return static_cast<char*>(storage.base()) + l.offset(layer, blocks[size_t(token / l.block_tokens)]) +
         token % l.block_tokens * l.row_bytes();
}

// The same tokens, whatever blocks they lie in.
void fill(const KvStorage& storage, const std::vector<int32_t>& blocks, int32_t num_tokens) {
  std::mt19937 random(7);
  for (int32_t layer = 0; layer < storage.layout().num_layers; ++layer) {
    for (int32_t token = 0; token < num_tokens; ++token) {
      for (int64_t i = 0; i < storage.layout().row_bytes(); ++i) row(storage, layer, blocks, token)[i] = char(random());
    }
  }
}

TEST(KvLayout, OffsetsFollowLayerBlockTokenRow) {
  const KvLayout l = layout(4, 160, 10);
  EXPECT_EQ(l.row_bytes(), 320);
  EXPECT_EQ(l.block_bytes(), 1280);
  EXPECT_EQ(l.token_bytes(), 960);
  EXPECT_EQ(l.offset(2, 3), 2 * 12800 + 3 * 1280);
  EXPECT_EQ(l.total_bytes(), 38400);
}

TEST(KvLayout, LargeCachesDoNotOverflow) {
  const KvLayout l{
      .num_layers = 61, .row_width = 576, .dtype = device::DType::kBF16, .block_tokens = 64, .num_blocks = 30000};
  EXPECT_EQ(l.total_bytes(), int64_t(61) * 576 * 2 * 64 * 30000);
  EXPECT_EQ(l.offset(60, 29999), l.total_bytes() - l.block_bytes());
}

TEST(KvStorageDigest, IsTheSameForTheSameTokensInOtherBlocks) {
  for (const int32_t width : {160, 576, 5, 33}) {  // 5 and 33: rows that end inside a word
    const KvStorage source(device::Device::kCpu, layout(4, width, 10));
    const KvStorage target(device::Device::kCpu, layout(4, width, 6));
    const std::vector<int32_t> from = {9, 0, 4}, to = {2, 3, 1};
    fill(source, from, 10);
    fill(target, to, 10);
    EXPECT_EQ(source.digest(from.data(), 10), target.digest(to.data(), 10)) << width;
  }
}

TEST(KvStorageDigest, DoesNotDependOnTheBlockSize) {
  const KvStorage small(device::Device::kCpu, layout(1, 160, 12)), large(device::Device::kCpu, layout(8, 160, 2));
  const std::vector<int32_t> from = {11, 1, 3, 5, 7, 9, 0, 2, 4, 6}, to = {1, 0};
  fill(small, from, 10);
  fill(large, to, 10);
  EXPECT_EQ(small.digest(from.data(), 10), large.digest(to.data(), 10));
}

TEST(KvStorageDigest, AnyChangedBitChangesIt) {
  const KvStorage storage(device::Device::kCpu, layout(2, 33, 4));
  const std::vector<int32_t> blocks = {3, 1};
  fill(storage, blocks, 3);
  std::set<uint64_t> seen = {storage.digest(blocks.data(), 3)};
  size_t changes = 0;
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (int32_t token = 0; token < 3; ++token) {
      for (int64_t i = 0; i < storage.layout().row_bytes(); ++i, ++changes) {
        char& byte = row(storage, layer, blocks, token)[i];
        byte = char(byte ^ (1 << (i % 8)));
        seen.insert(storage.digest(blocks.data(), 3));
        byte = char(byte ^ (1 << (i % 8)));
      }
    }
  }
  EXPECT_EQ(seen.size(), changes + 1);
}

TEST(KvStorageDigest, BytesBehindTheLastTokenDoNotCount) {
  const KvStorage storage(device::Device::kCpu, layout(4, 160, 4));
  const std::vector<int32_t> blocks = {0, 2};
  fill(storage, blocks, 5);
  const uint64_t before = storage.digest(blocks.data(), 5);
  row(storage, 0, blocks, 5)[0] ^= 1;
  EXPECT_EQ(storage.digest(blocks.data(), 5), before);
  EXPECT_NE(storage.digest(blocks.data(), 6), before);
}

TEST(KvStorageDigest, SwappedTokensAndLayersDiffer) {
  const KvStorage storage(device::Device::kCpu, layout(1, 160, 4));
  const std::vector<int32_t> blocks = {0, 1}, swapped = {1, 0};
  fill(storage, blocks, 2);
  EXPECT_NE(storage.digest(blocks.data(), 2), storage.digest(swapped.data(), 2));
  const uint64_t before = storage.digest(blocks.data(), 2);
  std::vector<char> layer(size_t(storage.layout().layer_bytes()));
  std::memcpy(layer.data(), storage.layer_base(0), layer.size());
  std::memcpy(storage.layer_base(0), storage.layer_base(1), layer.size());
  std::memcpy(storage.layer_base(1), layer.data(), layer.size());
  EXPECT_NE(storage.digest(blocks.data(), 2), before);
}

TEST(KvStorageDigestDeathTest, BlocksOutsideThePoolAreABug) {
  const KvStorage storage(device::Device::kCpu, layout(1, 160, 4));
  const int32_t bad = 4;
  EXPECT_DEATH(storage.digest(&bad, 1), "num_blocks");
}

}  // namespace
}  // namespace tandem::kv
