// Rows that a GPU sends in FP8 are those that the CPU makes of the same values, to the bit.
#include <algorithm>
#include <cstring>

#include "kernels/fp8_rows.h"
#include "kernels/peer_exchange.h"
#include "tests/kernels/gpu.h"

namespace tandem::kernels::test {
namespace {

// One rank that sends to itself, its box in memory of its own.
TEST(GpuPayload, RowsAreTheCpusToTheBit) {
  NEEDS_GPU();
  for (const int64_t width : {16, 128, 144, 512, 528, 2048, 7168}) {
    constexpr int64_t kTokens = 9;
    GpuRig rig(Backend::kCuda);
    const int64_t row_bytes = fp8_row_bytes(width);
    std::vector<float> x = random_floats(size_t(kTokens * width), uint64_t(width));
    for (size_t i = 0; i < x.size(); ++i) x[i] = i / size_t(width) == 4 ? 0.0f : std::ldexp(x[i], -int(i * 7 % 23));
    const device::Buffer gx = rig.activations(x);
    std::vector<int32_t> slots(kTokens, 0);
    slots[2] = -1;  // only fills the batch up: nothing is sent
    const OnGpu<int32_t> there(slots), slots_box(slots);
    const OnGpu<uint64_t> counters(std::vector<uint64_t>(8));
    const device::Buffer rows = GpuRig::poisoned(size_t(kTokens * row_bytes));
    PeerGroup group;
    group.slots_per_rank = 1;
    group.top_k = 1;
    group.row_bytes = row_bytes;
    group.fp8_width = width;
    group.stride = kTokens;
    group.exchanges = counters.data();
    group.blocks_done = reinterpret_cast<uint32_t*>(counters.data() + 1);
    group.fault = device::wait_fault();
    group.boxes[0].rows = static_cast<std::byte*>(rows.data());
    group.boxes[0].slots = slots_box.data();
    group.boxes[0].num_tokens = reinterpret_cast<int64_t*>(counters.data() + 2);
    group.boxes[0].dispatched = counters.data() + 3;
    group.boxes[0].answered = counters.data() + 4;
    peer_dispatch(rig.ctx, group, TensorView(gx.data(), DType::kBF16, {kTokens, width}),
                  there.view(DType::kI32, {kTokens, 1}));
    rig.stream.synchronize();
    std::vector<std::byte> got(rows.bytes()), wanted(static_cast<size_t>(row_bytes));
    device::copy_bytes(got.data(), rows.data(), rows.bytes());
    const size_t said = size_t(width + fp8_num_groups(width) * int64_t(sizeof(float)));
    for (int64_t t = 0; t < kTokens; ++t) {
      quantise_row(x.data() + t * width, width, wanted.data());
      if (t == 2) std::fill(wanted.begin(), wanted.end(), std::byte(0xff));
      EXPECT_EQ(std::memcmp(got.data() + t * row_bytes, wanted.data(), said), 0) << "token " << t << " of " << width;
    }
  }
}

}  // namespace
}  // namespace tandem::kernels::test
