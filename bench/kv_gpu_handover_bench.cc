// KV handover between two processes with a GPU each, through the transfer that servers use: requests of DeepSeek-R1's
// shape, 61 layers of 576 bf16 a token in blocks of 64 tokens, scattered on both sides. Every byte is compared.
//   kv_gpu_handover_bench [tokens of a request] [requests at once] [rounds]      default: 4096 4 20
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <thread>

#include "base/check.h"
#include "device/buffer.h"
#include "device/gpu.h"
#include "kv/transfer.h"

namespace tandem::bench {
namespace {

constexpr int64_t kLayers = 61, kBlockBytes = 64 * 576 * 2;
constexpr uint16_t kPort = 18999;

struct Sizes {
  int64_t tokens = 4096, at_once = 4, rounds = 20;
  int64_t blocks() const { return (tokens + 63) / 64 * at_once; }
  size_t bytes() const { return size_t(kLayers * blocks() * kBlockBytes); }
};

kv::TransferOptions options_of(int32_t gpu) {
  kv::TransferOptions options;
  options.port = gpu == 0 ? kPort : uint16_t(0);
  options.listen = gpu == 0;
  options.epoch = uint64_t(gpu) + 1;
  options.gpu = gpu;
  return options;
}

// Words of the cache, so that every place has another.
std::vector<uint64_t> pattern(size_t bytes) {
  std::vector<uint64_t> words(bytes / 8);
  for (size_t i = 0; i < words.size(); ++i) words[i] = (i + 1) * 0x9E3779B97F4A7C15ull;
  return words;
}

int serve(const Sizes& sizes) {
  device::use_gpu(0);
  const SystemClock clock;
  const device::Buffer cache(device::Device::kCuda, sizes.bytes());
  device::copy_bytes(cache.data(), pattern(sizes.bytes()).data(), cache.bytes());
  auto transfer = kv::make_ucx_transfer(options_of(0), {static_cast<std::byte*>(cache.data()), cache.bytes()});
  if (!transfer) return fmt::print(stderr, "{}\n", transfer.error().message), 1;
  std::vector<kv::TransferEvent> events;
  for (;;) {
    if (!(*transfer)->poll(clock.now(), events)) std::this_thread::sleep_for(std::chrono::microseconds(50));
    for (const kv::TransferEvent& event : events) {
      if (std::holds_alternative<kv::PeerLost>(event)) return 0;
    }
    events.clear();
  }
}

class Reader {
 public:
  explicit Reader(const Sizes& sizes) : sizes_(sizes), cache_(device::Device::kCuda, sizes.bytes()) {}

  Status run() {
    ASSIGN_OR_RETURN(transfer_,
                     kv::make_ucx_transfer(options_of(1), {static_cast<std::byte*>(cache_.data()), cache_.bytes()}));
    RETURN_IF_ERROR(connect());
    std::vector<int64_t> from(size_t(sizes_.blocks())), to;
    for (size_t i = 0; i < from.size(); ++i) from[i] = int64_t(i);
    to = from;
    std::mt19937 random(1);
    std::vector<double> rates;
    for (int64_t round = 0; round < sizes_.rounds; ++round) {
      std::shuffle(from.begin(), from.end(), random);
      std::shuffle(to.begin(), to.end(), random);
      const TimePoint begin = clock_.now();
      RETURN_IF_ERROR(read(from, to));
      rates.push_back(double(sizes_.bytes()) / seconds(clock_.now() - begin) / 1e9);
    }
    check(from, to);
    std::sort(rates.begin(), rates.end());
    fmt::print("{} requests of {} tokens at once, {:.1f} MB each: {:.1f} GB/s (p10 {:.1f}, p90 {:.1f})\n",
               sizes_.at_once, sizes_.tokens, double(sizes_.bytes()) / double(sizes_.at_once) / 1e6,
               rates[rates.size() / 2], rates[rates.size() / 10], rates[rates.size() * 9 / 10]);
    return Ok{};
  }

 private:
  // The other process may still be starting.
  Status connect() {
    for (int attempt = 0; attempt < 100; ++attempt) {
      peer_ = transfer_->connect("127.0.0.1", kPort, clock_.now());
      for (;;) {
        const auto event = next();
        if (std::holds_alternative<kv::PeerConnected>(event)) return Ok{};
        if (std::holds_alternative<kv::PeerLost>(event)) break;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    return timed_out("nobody listens");
  }
  kv::TransferEvent next() {
    while (events_.empty()) transfer_->poll(clock_.now(), events_);
    kv::TransferEvent event = std::move(events_.front());
    events_.erase(events_.begin());
    return event;
  }

  Status read(const std::vector<int64_t>& from, const std::vector<int64_t>& to) {
    const int64_t each = sizes_.blocks() / sizes_.at_once;
    for (int64_t r = 0; r < sizes_.at_once; ++r) {
      std::vector<kv::CopyRange> ranges;
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        for (int64_t i = r * each; i < (r + 1) * each; ++i) {
          ranges.push_back({(layer * sizes_.blocks() + from[size_t(i)]) * kBlockBytes,
                            (layer * sizes_.blocks() + to[size_t(i)]) * kBlockBytes, kBlockBytes});
        }
      }
      transfer_->post_read(next_read_++, peer_, ranges);
    }
    for (int64_t r = 0; r < sizes_.at_once; ++r) {
      const kv::TransferEvent event = next();
      const auto* finished = std::get_if<kv::ReadFinished>(&event);
      if (finished == nullptr) return peer_lost("the other process is gone");
      RETURN_IF_ERROR(finished->status);
    }
    return Ok{};
  }

  void check(const std::vector<int64_t>& from, const std::vector<int64_t>& to) const {
    const std::vector<uint64_t> wanted = pattern(sizes_.bytes());
    std::vector<uint64_t> got(wanted.size());
    device::copy_bytes(got.data(), cache_.data(), cache_.bytes());
    const size_t words = size_t(kBlockBytes) / 8;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (size_t i = 0; i < from.size(); ++i) {
        const size_t a = size_t(layer * sizes_.blocks() + from[i]) * words;
        const size_t b = size_t(layer * sizes_.blocks() + to[i]) * words;
        CHECK(std::equal(wanted.begin() + int64_t(a), wanted.begin() + int64_t(a + words), got.begin() + int64_t(b)));
      }
    }
  }

  const Sizes sizes_;
  const SystemClock clock_;
  const device::Buffer cache_;
  std::unique_ptr<kv::KvTransfer> transfer_;
  std::vector<kv::TransferEvent> events_;
  PeerId peer_;
  uint64_t next_read_ = 1;
};

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::bench::Sizes sizes;
  if (argc > 1) sizes.tokens = std::atoll(argv[1]);
  if (argc > 2) sizes.at_once = std::atoll(argv[2]);
  if (argc > 3) sizes.rounds = std::atoll(argv[3]);
  const pid_t other = fork();  // before anything of CUDA
  if (other == 0) return tandem::bench::serve(sizes);
  const auto gpu = tandem::device::find_gpu(1);
  int failed = 1;
  if (!gpu) {
    fmt::print(stderr, "two GPUs are needed: {}\n", gpu.error().message);
  } else {
    const tandem::Status status = tandem::bench::Reader(sizes).run();
    if (!status) fmt::print(stderr, "{}\n", status.error().message);
    failed = status ? 0 : 1;
  }
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
  return failed;
}
