// UCX instances; echo peers are processes of their own (this program with --echo-peer), so that they can be killed.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/check.h"
#include "kv/transfer_thread.h"
#include "tests/contract/kv_backend.h"

namespace tandem::kv {
namespace {

class ProcessPeer final : public EchoPeer {
 public:
  // Runs this program with these arguments; it says "listening PORT" when it is ready.
  explicit ProcessPeer(const std::vector<std::string>& arguments) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      execv("/proc/self/exe", argv.data());
      _exit(127);
    }
    close(ends[1]);
    FILE* output = fdopen(ends[0], "r");
    unsigned listening = 0;
    const int read = std::fscanf(output, "listening %u", &listening);
    std::fclose(output);
    CHECK(read == 1);
    port_ = uint16_t(listening);
  }
  ~ProcessPeer() override { kill(); }

  uint16_t port() const override { return port_; }
  void pump(TimePoint) override {}
  void kill() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    pid_ = 0;
  }
  void freeze() override {
    ::kill(pid_, SIGSTOP);
    int status = 0;
    // The signal takes effect a moment later, in which the peer could still answer.
    while (waitpid(pid_, &status, WUNTRACED) == pid_ && !WIFSTOPPED(status)) {
    }
  }

 private:
  pid_t pid_ = 0;
  uint16_t port_ = 0;
};

class UcxBackend final : public Backend {
 public:
  std::unique_ptr<KvTransfer> make(const TransferOptions& options, std::span<std::byte> region) override {
    auto transfer = make_ucx_transfer(options, region);
    EXPECT_TRUE(transfer) << transfer.error().message;
    return std::move(transfer).value();
  }
  std::unique_ptr<EchoPeer> start_peer(const TransferOptions& options) override {
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(options.heartbeat_interval).count();
    return std::make_unique<ProcessPeer>(
        std::vector<std::string>{"peer", "--echo-peer", std::to_string(options.port), std::to_string(options.epoch),
                                 std::to_string(ms), std::to_string(options.heartbeat_max_failures), options.secret});
  }
  std::unique_ptr<EchoPeer> start_reader(uint16_t port) override {
    return std::make_unique<ProcessPeer>(std::vector<std::string>{"peer", "--reader", std::to_string(port)});
  }
};

int run_echo_peer(char** argv) {
  TransferOptions options{.listen = true};
  options.port = uint16_t(std::atoi(argv[2]));
  options.epoch = std::strtoull(argv[3], nullptr, 10);
  options.heartbeat_interval = std::chrono::milliseconds(std::atoi(argv[4]));
  options.heartbeat_max_failures = std::atoi(argv[5]);
  options.secret = argv[6];
  std::vector<std::byte> memory(static_cast<size_t>(kEchoBytes));
  for (int64_t i = 0; i < kEchoBytes; ++i) memory[size_t(i)] = pattern(i);
  auto transfer = make_ucx_transfer(options, memory);
  if (!transfer) {
    std::fprintf(stderr, "echo peer: %s\n", transfer.error().message.c_str());
    return 1;
  }
  const std::string address = (*transfer)->address();
  std::printf("listening %s\n", address.substr(address.rfind(':') + 1).c_str());
  std::fflush(stdout);
  // Echoes through its transfer thread, as a service would: it must not burn a core beside the test.
  const SystemClock clock;
  TransferPort queues(4096);
  const TransferThread thread(std::move(transfer).value(), queues, clock, nullptr);
  const TimePoint end = clock.now() + std::chrono::seconds(120);  // should nobody kill us
  while (clock.now() < end && getppid() != 1) {
    const auto report = queues.reports.pop(std::chrono::milliseconds(100));
    const auto* message = report ? std::get_if<PeerMessage>(&*report) : nullptr;
    if (message == nullptr) continue;
    if (message->bytes == "disconnect me") {
      queues.commands.push(DisconnectCommand{message->peer});
    } else {
      queues.commands.push(SendCommand{message->peer, message->bytes});
    }
  }
  return 0;
}

int run_reader(char** argv) {
  std::vector<std::byte> memory(static_cast<size_t>(kReaderBytes));
  auto transfer = make_ucx_transfer({.epoch = 33}, memory);
  CHECK(transfer);
  std::printf("listening 0\n");
  std::fflush(stdout);
  const SystemClock clock;
  TransferPort queues(4096);
  const TransferThread thread(std::move(transfer).value(), queues, clock, nullptr);
  queues.commands.push(ConnectCommand{1, "127.0.0.1", uint16_t(std::atoi(argv[2]))});
  PeerId peer;
  const TimePoint end = clock.now() + std::chrono::seconds(120);
  for (uint64_t read_id = 1; clock.now() < end && getppid() != 1;) {
    const auto report = queues.reports.pop(std::chrono::milliseconds(100));
    if (!report) continue;
    if (std::holds_alternative<PeerLost>(*report)) return 1;
    const auto* connected = std::get_if<PeerConnected>(&*report);
    if (connected != nullptr) {
      peer = connected->peer;
      queues.commands.push(SendCommand{peer, "reading"});
    }
    if (connected != nullptr || std::holds_alternative<ReadFinished>(*report)) {
      queues.commands.push(ReadCommand{read_id++, peer, {{0, 0, kReaderBytes}}});
    }
  }
  return 0;
}

}  // namespace

std::unique_ptr<Backend> make_ucx_backend() { return std::make_unique<UcxBackend>(); }
std::vector<BackendRow> backends() { return {{"Local", make_local_backend}, {"Ucx", make_ucx_backend}}; }

}  // namespace tandem::kv

int main(int argc, char** argv) {
  if (argc == 7 && std::string_view(argv[1]) == "--echo-peer") return tandem::kv::run_echo_peer(argv);
  if (argc == 3 && std::string_view(argv[1]) == "--reader") return tandem::kv::run_reader(argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
