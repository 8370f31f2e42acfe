// KV handover between two processes over UCX (TCP, loopback), beside this machine's own limits taken in the same run.
//   build/release/bench/kv_handover_bench [seconds per case, default 1]
// One JSON object per line. Median, p10 and p90 are over handovers (or messages, or copies) of one case.
// The child process listens as prefill does, the parent reads as decode does, each through its transfer thread and the
// two queues, as an engine does. cpu_us is what one handover costs in CPU time of both processes together. kv/digest
// is what the comparison of bytes adds: for a handover that is sampled, and on average at the default rate.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/check.h"
#include "kv/layout.h"
#include "kv/storage.h"
#include "kv/transfer_thread.h"

namespace tandem::kv {
namespace {

struct Shape {
  const char* name;
  KvLayout layout;
  int32_t num_tokens;  // of one handover
};

KvLayout make_layout(int32_t num_layers, int32_t row_width, int32_t block_tokens, int32_t num_blocks) {
  return {.num_layers = num_layers,
          .row_width = row_width,
          .dtype = device::DType::kBF16,
          .block_tokens = block_tokens,
          .num_blocks = num_blocks};
}

const Shape kShapes[] = {
    {"tiny/layers=6/width=160/block=1/tokens=512", make_layout(6, 160, 1, 1024), 512},
    {"tiny/layers=6/width=160/block=64/tokens=512", make_layout(6, 160, 64, 16), 512},
    {"deepseek-v3/layers=61/width=576/block=64/tokens=1024", make_layout(61, 576, 64, 32), 1024},
};
constexpr double kSampleRate = 0.01;  // --kv-digest-sample-rate's default
constexpr size_t kRegionBytes = size_t(160) << 20;
constexpr size_t kSocketChunk = size_t(64) << 10;

class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  size_t size() const { return values_.size(); }
  double at(double share) {
    CHECK(!values_.empty());
    std::sort(values_.begin(), values_.end());
    return values_[size_t(share * double(values_.size() - 1))];
  }

 private:
  std::vector<double> values_;
};

// CPU time of a process so far, in seconds.
double cpu_seconds(pid_t process) {
  clockid_t clock = CLOCK_PROCESS_CPUTIME_ID;
  CHECK(process == 0 || clock_getcpuclockid(process, &clock) == 0);
  timespec time{};
  CHECK(clock_gettime(clock, &time) == 0);
  return double(time.tv_sec) + double(time.tv_nsec) / 1e9;
}

TransferReport next_report(TransferPort& port) {
  while (true) {
    if (auto report = port.reports.pop(std::chrono::seconds(1))) return std::move(*report);
  }
}

class Bench {
 public:
  Bench(TransferPort& port, std::span<std::byte> memory, double seconds_per_case, pid_t other)
      : port_(port), memory_(memory), limit_(seconds_per_case), other_(other) {}

  void connect(uint16_t port) {
    push(ConnectCommand{1, "127.0.0.1", port});
    peer_ = std::get<ConnectStarted>(next_report(port_)).peer;
    CHECK(std::holds_alternative<PeerConnected>(next_report(port_)));
  }
  double handovers(const Shape& shape);
  void digests(const Shape& shape, double transfer_gb_per_s);
  void round_trips(size_t bytes);
  double copies(size_t bytes);
  // GB/s of one TCP connection over loopback, plain sockets, reader and writer in two processes.
  double socket_limit(int fd);

 private:
  void push(TransferCommand command) { CHECK(port_.commands.push(std::move(command)) == PushResult::kPushed); }
  template <class Once>
  Samples repeat(Once once) {
    Samples samples;
    once();  // warm up
    const TimePoint end = clock_.now() + from_seconds(limit_);
    const double cpu = cpu_seconds(0) + cpu_seconds(other_);
    while (clock_.now() < end || samples.size() < 3) {
      const TimePoint start = clock_.now();
      once();
      samples.add(seconds(clock_.now() - start));
    }
    cpu_us_ = (cpu_seconds(0) + cpu_seconds(other_) - cpu) / double(samples.size()) * 1e6;
    return samples;
  }
  double report(const std::string& name, Samples& samples, double bytes) const {
    fmt::print(
        "{{\"case\": \"kv/{}\", \"n\": {}, \"bytes\": {:.0f}, \"median_us\": {:.1f}, \"p10_us\": {:.1f}, "
        "\"p90_us\": {:.1f}, \"cpu_us\": {:.1f}, \"gb_per_s\": {:.3f}}}\n",
        name, samples.size(), bytes, samples.at(0.5) * 1e6, samples.at(0.1) * 1e6, samples.at(0.9) * 1e6, cpu_us_,
        bytes / samples.at(0.5) / 1e9);
    std::fflush(stdout);
    return bytes / samples.at(0.5) / 1e9;
  }

  TransferPort& port_;
  const std::span<std::byte> memory_;
  const double limit_;
  const pid_t other_;
  const SystemClock clock_;
  PeerId peer_;
  uint64_t next_read_ = 1;
  double cpu_us_ = 0;
};

// One handover: one read per layer, as announced, all under way together, each of all blocks of the prompt.
// Blocks are scattered differently on both sides, so no two neighbours merge into one range.
double Bench::handovers(const Shape& shape) {
  const KvLayout& layout = shape.layout;
  CHECK(size_t(layout.total_bytes()) <= memory_.size());
  const int32_t num_blocks = shape.num_tokens / layout.block_tokens;
  std::vector<std::vector<CopyRange>> reads(size_t(layout.num_layers));
  for (int32_t layer = 0; layer < layout.num_layers; ++layer) {
    for (int32_t i = 0; i < num_blocks; ++i) {
      const int32_t from = i * 5 % num_blocks * 2, to = i * 3 % num_blocks * 2 + 1;
      reads[size_t(layer)].push_back({layout.offset(layer, from), layout.offset(layer, to), layout.block_bytes()});
    }
  }
  Samples samples = repeat([&] {
    for (const auto& ranges : reads) push(ReadCommand{next_read_++, peer_, ranges});
    for (size_t left = reads.size(); left > 0; --left) {
      const TransferReport report = next_report(port_);
      CHECK(std::get<ReadFinished>(report).status);
    }
  });
  return report(fmt::format("handover/{}", shape.name), samples,
                double(layout.token_bytes()) * double(shape.num_tokens));
}

// What comparing a handover's bytes adds to its transfer, taken just before: both sides hash all of them, one handover
// in a hundred by default. Blocks are scattered as in handovers().
void Bench::digests(const Shape& shape, double transfer_gb_per_s) {
  const KvStorage storage(device::Device::kCpu, shape.layout);
  std::memset(storage.base(), 7, size_t(shape.layout.total_bytes()));
  std::vector<int32_t> blocks(size_t(shape.num_tokens / shape.layout.block_tokens));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = int32_t(i * 3 % blocks.size() * 2 + 1);
  uint64_t digest = 0;  // printed, so that nothing is left out
  Samples samples = repeat([&] { digest = storage.digest(blocks.data(), shape.num_tokens); });
  const double bytes = double(shape.layout.token_bytes()) * double(shape.num_tokens);
  const double hash_s = samples.at(0.5), transfer_s = bytes / transfer_gb_per_s / 1e9;
  constexpr double kSides = 2;
  fmt::print(
      "{{\"case\": \"kv/digest/{}\", \"n\": {}, \"ns_per_byte\": {:.4f}, \"gb_per_s\": {:.2f}, \"bytes_hashed\": "
      "{:.0f}, "
      "\"hash_us\": {:.1f}, \"transfer_us\": {:.1f}, \"share_when_sampled\": {:.4f}, \"sample_rate\": {}, "
      "\"bytes_hashed_on_average\": {:.0f}, \"share_of_transfer\": {:.5f}, \"digest\": \"{:016x}\"}}\n",
      shape.name, samples.size(), hash_s / bytes * 1e9, bytes / hash_s / 1e9, kSides * bytes, kSides * hash_s * 1e6,
      transfer_s * 1e6, kSides * hash_s / transfer_s, kSampleRate, kSides * bytes * kSampleRate,
      kSides * hash_s * kSampleRate / transfer_s, digest);
  std::fflush(stdout);
}

void Bench::round_trips(size_t bytes) {
  const std::string message(bytes, 'm');
  Samples samples = repeat([&] {
    push(SendCommand{peer_, message});
    const TransferReport report = next_report(port_);
    CHECK(std::get<PeerMessage>(report).bytes.size() == bytes);
  });
  report(fmt::format("round_trip/bytes={}", bytes), samples, 2.0 * double(bytes));
}

double Bench::copies(size_t bytes) {
  std::byte* const half = memory_.data() + memory_.size() / 2;
  CHECK(bytes <= memory_.size() / 2);
  Samples samples = repeat([&] { std::memcpy(half, memory_.data(), bytes); });
  return report(fmt::format("limit/memcpy/bytes={}", bytes), samples, double(bytes));
}

double Bench::socket_limit(int fd) {
  const size_t bytes = size_t(64) << 20;
  Samples samples = repeat([&] {
    const char go = 'g';
    CHECK(write(fd, &go, 1) == 1);
    for (size_t got = 0; got < bytes;) {
      const ssize_t n = read(fd, memory_.data(), kSocketChunk);
      CHECK(n > 0);
      got += size_t(n);
    }
  });
  return report("limit/loopback_tcp", samples, double(bytes));
}

int listen_socket(uint16_t& port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(listen(fd, 1) == 0);
  socklen_t size = sizeof(address);
  CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port = ntohs(address.sin_port);
  return fd;
}

// The child, first half: plain socket server, until the parent closes.
void serve_socket(int listener, std::span<const std::byte> memory) {
  const int fd = accept(listener, nullptr, nullptr);
  char go = 0;
  while (read(fd, &go, 1) == 1) {
    const size_t bytes = size_t(64) << 20;
    for (size_t sent = 0; sent < bytes;) {
      const ssize_t n = write(fd, memory.data(), std::min(kSocketChunk, bytes - sent));
      if (n <= 0) break;
      sent += size_t(n);
    }
  }
  close(fd);
}

// The child, second half: an instance that sends messages back.
int serve(int output, int listener) {
  std::vector<std::byte> memory(kRegionBytes, std::byte(7));
  serve_socket(listener, memory);
  auto transfer = make_ucx_transfer({.listen = true, .epoch = 1}, memory);
  CHECK(transfer);
  const std::string address = (*transfer)->address();
  const uint16_t port = uint16_t(std::stoi(address.substr(address.rfind(':') + 1)));
  CHECK(write(output, &port, sizeof(port)) == sizeof(port));
  const SystemClock clock;
  TransferPort queues(4096);
  const TransferThread thread(std::move(transfer).value(), queues, clock, nullptr);
  while (true) {
    TransferReport report = next_report(queues);
    if (std::holds_alternative<PeerLost>(report)) return 0;
    auto* message = std::get_if<PeerMessage>(&report);
    if (message != nullptr) queues.commands.push(SendCommand{message->peer, std::move(message->bytes)});
  }
}

int run(double seconds_per_case) {
  uint16_t port = 0;
  const int listener = listen_socket(port);
  int ends[2];
  CHECK(pipe(ends) == 0);
  const pid_t child = fork();  // before UCX starts its threads
  if (child == 0) _exit(serve(ends[1], listener));
  device::Buffer memory(device::Device::kCpu, kRegionBytes);
  const std::span<std::byte> region(static_cast<std::byte*>(memory.data()), kRegionBytes);

  auto transfer = make_ucx_transfer({.epoch = 2}, region);
  CHECK(transfer);
  const SystemClock clock;
  TransferPort queues(4096);
  auto thread = std::make_unique<TransferThread>(std::move(transfer).value(), queues, clock, nullptr);
  Bench bench(queues, region, seconds_per_case, child);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  const double socket_limit = bench.socket_limit(fd);
  close(fd);
  const double copy_limit = bench.copies(size_t(64) << 20);

  CHECK(read(ends[0], &port, sizeof(port)) == sizeof(port));
  bench.connect(port);
  for (const size_t bytes : {64, 4096, 65536}) bench.round_trips(bytes);
  for (const Shape& shape : kShapes) {
    const double rate = bench.handovers(shape);
    fmt::print("{{\"case\": \"kv/share/{}\", \"of_loopback_tcp\": {:.2f}, \"of_memcpy\": {:.2f}}}\n", shape.name,
               rate / socket_limit, rate / copy_limit);
    bench.digests(shape, rate);
  }
  thread.reset();
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return 0;
}

}  // namespace
}  // namespace tandem::kv

int main(int argc, char** argv) { return tandem::kv::run(argc > 1 ? std::atof(argv[1]) : 1.0); }
