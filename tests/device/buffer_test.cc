#include "device/buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

namespace tandem::device {
namespace {

TEST(Buffer, IsAlignedAndZeroFromOneByteToHugePages) {
  for (const size_t bytes : {size_t(1), size_t(63), size_t(4096), (size_t(2) << 20) + 1}) {
    const Buffer buffer(Device::kCpu, bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_EQ(buffer.bytes(), bytes);
    const char* data = static_cast<const char*>(buffer.data());
    size_t nonzero = 0;
    for (size_t i = 0; i < bytes; ++i) nonzero += data[i] != 0;
    EXPECT_EQ(nonzero, 0u);
  }
}

TEST(Buffer, MovesWithoutCopy) {
  Buffer first(Device::kCpu, 100);
  void* data = first.data();
  Buffer second(std::move(first));
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(first.data(), nullptr);
  Buffer third(Device::kCpu, 5);
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.bytes(), 100u);
  EXPECT_EQ(second.bytes(), 0u);
}

TEST(Workspace, ScopesGiveBackAndThePeakIsRemembered) {
  Workspace workspace(Device::kCpu, 1024);
  void* first = workspace.take(1);
  EXPECT_EQ(workspace.used(), 64u);
  {
    const WorkspaceScope scope(workspace);
    void* second = workspace.take(65);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(second) % 64, 0u);
    EXPECT_NE(first, second);
    EXPECT_EQ(workspace.used(), 192u);
  }
  EXPECT_EQ(workspace.used(), 64u);
  EXPECT_EQ(workspace.peak(), 192u);
}

TEST(WorkspaceDeathTest, RunningOverIsABug) {
  Workspace workspace(Device::kCpu, 128);
  workspace.take(100);
  EXPECT_DEATH(workspace.take(1), "");
}

}  // namespace
}  // namespace tandem::device
