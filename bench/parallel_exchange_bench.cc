// Cost of one dispatch and combine for 64 tokens a rank: two ranks in one process, through pointers, and in two
// processes, through UCX; rows in f32, as the CPU's activations are, and in FP8. No experts run: what is left is the
// exchange. Results are compared first; all are timed in one run, medians over all rounds of rank 0.
//   build/release/bench/parallel_exchange_bench [rounds]
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "tests/parallel/node_rig.h"
#include "transport/transport.h"

namespace tandem::parallel {
namespace {

constexpr int64_t kTokens = 64;
const SystemClock kClock;

struct Case {
  const char* name;
  int64_t hidden;
  int32_t top_k, slots_per_rank;
};
constexpr Case kCases[] = {{"tiny", 256, 4, 16}, {"deepseek", 7168, 8, 128}};

// One of the measurements.
struct Way {
  ExchangeMode mode = ExchangeMode::kNormal;
  ExchangePayload payload = ExchangePayload::kAsTheyAre;
};

ExchangeShape shape_of(const Case& which, const Way& way) {
  ExchangeShape shape;
  shape.num_ranks = 2;
  shape.slots_per_rank = which.slots_per_rank;
  shape.top_k = which.top_k;
  shape.hidden = which.hidden;
  shape.dtype = device::DType::kF32;
  shape.payload = way.payload;
  shape.max_tokens = kTokens;
  shape.max_low_latency_tokens = kTokens;
  return shape;
}

ExchangeRound round_of(ExchangeMode mode, uint64_t number) {
  ExchangeRound round;
  round.mode = mode;
  round.tag = {number, 0};
  round.seed = 7;
  round.num_tokens = kTokens;
  return round;
}

struct Figures {
  double p10 = 0, p50 = 0, p90 = 0;
  std::vector<float> first;  // results of the first round
  double row_kb = 0;         // sent to the other process in a round
};

Result<Figures> measure(ExpertExchange& exchange, ExchangeMode mode, int rounds) {
  ExchangeRank rank(exchange, kClock);
  Figures figures;
  ASSIGN_OR_RETURN(figures.first, rank.run(round_of(mode, 1)));
  figures.row_kb = double(exchange.row_bytes_sent()) / 1e3;
  rank.set_experts(false);
  std::vector<double> microseconds;
  for (int i = 0; i < rounds; ++i) {
    const TimePoint begin = kClock.now();
    RETURN_IF_ERROR(rank.run_drawn(round_of(mode, uint64_t(2 + i))));
    microseconds.push_back(seconds(kClock.now() - begin) * 1e6);
  }
  std::sort(microseconds.begin(), microseconds.end());
  const auto at = [&](double q) { return microseconds[size_t(q * double(microseconds.size() - 1))]; };
  figures.p10 = at(0.1);
  figures.p50 = at(0.5);
  figures.p90 = at(0.9);
  return figures;
}

// Rank 1 in a thread of this process.
Result<Figures> within(const Case& which, const Way& way, int rounds) {
  auto exchanges = make_local_exchanges(shape_of(which, way), std::chrono::seconds(20), 2000);
  std::jthread other([&] { static_cast<void>(measure(*exchanges[1], way.mode, rounds)); });
  return measure(*exchanges[0], way.mode, rounds);
}

Result<Figures> node(int32_t number, uint16_t port, const Case& which, const Way& way, int rounds) {
  ASSIGN_OR_RETURN(const auto group,
                   NodeGroup::meet(meeting_options(2, number, 1, port), kClock, [] { return false; }));
  ASSIGN_OR_RETURN(const auto exchanges, group->exchanges(shape_of(which, way), std::chrono::seconds(20), 400));
  group->start({});
  Result<Figures> figures = measure(*exchanges[0], way.mode, rounds);
  group->leave();
  return figures;
}

// Rank 1 in a process of its own: this program again, with what it needs to know as arguments.
Result<Figures> across(const Case& which, const Way& way, int rounds) {
  const auto port = uint16_t(20000 + getpid() % 20000);
  const std::string args[] = {"parallel_exchange_bench",     std::to_string(rounds),
                              std::to_string(port),          std::to_string(&which - kCases),
                              std::to_string(int(way.mode)), std::to_string(int(way.payload))};
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execl("/proc/self/exe", args[0].c_str(), args[1].c_str(), args[2].c_str(), args[3].c_str(), args[4].c_str(),
          args[5].c_str(), nullptr);
    _exit(127);
  }
  Result<Figures> figures = node(0, port, which, way, rounds);
  waitpid(child, nullptr, 0);
  return figures;
}

void report(const Case& which, const Way& way, const char* where, const Figures& figures) {
  fmt::print(R"({{"bench":"parallel/exchange/{}/{}/{}/{}","tokens":{},"hidden":{},"top_k":{},)", which.name,
             way.mode == ExchangeMode::kLowLatency ? "low_latency" : "normal",
             way.payload == ExchangePayload::kFp8 ? "fp8" : "f32", where, kTokens, which.hidden, which.top_k);
  if (figures.row_kb > 0) fmt::print(R"("row_kb_sent":{:.1f},)", figures.row_kb);
  fmt::print(R"("p10_us":{:.1f},"p50_us":{:.1f},"p90_us":{:.1f}}})", figures.p10, figures.p50, figures.p90);
  fmt::print("\n");
  std::fflush(stdout);
}

bool compare(const Way& way, const Case& which, int rounds) {
  const Result<Figures> near = within(which, way, rounds), far = across(which, way, rounds);
  if (near && far && near->first == far->first) {
    report(which, way, "one_process", *near);
    report(which, way, "two_processes", *far);
    return true;
  }
  fmt::print(stderr, "{}: {}\n", which.name,
             !near  ? near.error().message
             : !far ? far.error().message
                    : "the results differ");
  return false;
}

int run(int rounds) {
  for (const Case& which : kCases) {
    for (const ExchangeMode mode : {ExchangeMode::kLowLatency, ExchangeMode::kNormal}) {
      for (const ExchangePayload payload : {ExchangePayload::kAsTheyAre, ExchangePayload::kFp8}) {
        if (!compare({mode, payload}, which, rounds)) return 1;
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace tandem::parallel

int main(int argc, char** argv) {
  using namespace tandem::parallel;
  tandem::log::configure(tandem::log::Level::kWarning, false);
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  if (argc < 6) return run(rounds);
  const auto port = uint16_t(std::atoi(argv[2]));
  return node(1, port, kCases[std::atoi(argv[3])],
              {ExchangeMode(std::atoi(argv[4])), ExchangePayload(std::atoi(argv[5]))}, rounds)
             ? 0
             : 1;
}
