// Whether balance matters end to end: the trained model's decode of one kind of text on two ranks of one thread, before
// and after a rebalance from the loads that the balancer counted. Two servers live at once and take turns: one keeps
// the trivial placement, the other is rebalanced after its first round.
//   engine_balance_bench [--sequences 64] [--steps 96] [--rounds 9] [--redundant 8] [--prompt long-manual]
// Two JSON lines per server and one of the comparison. expert_ms: of a step, the sum over layers of the slower rank's
// expert time (processor time). predicted: that part of the step shrinks by balancedness before / after.
#include <algorithm>
#include <map>

#include "base/json.h"
#include "base/log.h"
#include "bench/rank_harness.h"

namespace tandem::bench {
namespace {

struct Options {
  int32_t sequences = 64, steps = 96, rounds = 9, redundant = 8;
  std::string prompt = "long-manual";
};

// Pieces of one text of the reference prompts, each starting elsewhere.
std::vector<std::vector<int32_t>> prompts_of(const Options& options) {
  const auto document = json::Document::load(std::string(TANDEM_SOURCE_DIR) + "/tests/data/tiny/reference.json");
  CHECK(document.has_value());
  std::vector<int32_t> text;
  const simdjson::dom::array prompts = document->root()["prompts"].get_array().value();
  for (const simdjson::dom::element prompt : prompts) {
    if (std::string_view(prompt["name"].get_string().value()) != options.prompt) continue;
    const simdjson::dom::array ids = prompt["ids"].get_array().value();
    for (const simdjson::dom::element id : ids) text.push_back(int32_t(id.get_int64().value()));
  }
  CHECK(text.size() > 128);
  std::vector<std::vector<int32_t>> result;
  for (int32_t i = 0; i < options.sequences; ++i) {
    const auto begin = text.begin() + int64_t(text.size() - 96) * i / options.sequences;
    result.emplace_back(begin, begin + 96);
  }
  return result;
}

struct Figures {
  std::vector<double> step_ms, expert_ms, balance;
};

// Of the steps that both ranks noted in full: expert time and balance of pairs, by the slower or fuller rank per layer.
void add_expert_figures(RankServer& server, Figures& figures) {
  struct Cell {
    int32_t ranks = 0;
    int64_t pairs = 0, most_pairs = 0, most_ns = 0;
  };
  std::map<std::pair<uint64_t, int32_t>, Cell> cells;
  for (int32_t rank = 0; rank < 2; ++rank) {
    for (const TimedExchange::Piece& piece : server.exchange(rank).pieces) {
      Cell& cell = cells[{piece.step, piece.layer}];
      cell.ranks += 1;
      cell.pairs += piece.pairs;
      cell.most_pairs = std::max(cell.most_pairs, piece.pairs);
      cell.most_ns = std::max(cell.most_ns, piece.ns);
    }
    server.exchange(rank).pieces.clear();
  }
  double mean = 0, most = 0;
  std::map<uint64_t, double> by_step;
  for (const auto& [key, cell] : cells) {
    if (cell.ranks < 2) continue;
    mean += double(cell.pairs) / 2;
    most += double(cell.most_pairs);
    by_step[key.first] += double(cell.most_ns) / 1e6;
  }
  std::vector<double> times;
  for (const auto& [step, ms] : by_step) times.push_back(ms);
  figures.expert_ms.push_back(median(times));
  figures.balance.push_back(mean / most);
}

void measure(RankServer& server, const std::vector<std::vector<int32_t>>& prompts, int32_t steps, Figures& figures) {
  const double rate = server.decode_rate(prompts, steps);
  figures.step_ms.push_back(1e3 * double(prompts.size()) / rate);
  add_expert_figures(server, figures);
}

void rebalance(RankServer& server) {
  std::atomic<int> accepted = -1;
  server.balancer().rebalance("", "", [&](Result<engine::RebalanceReply> reply) {
    if (reply) {
      fmt::print("{{\"plan\": {{\"moves\": {}, \"before\": {:.3f}, \"after\": {:.3f}}}}}\n", reply->moves,
                 reply->before, reply->after);
    } else {
      fmt::print(stderr, "{}\n", reply.error().message);
    }
    accepted = reply.has_value() ? 1 : 0;
  });
  while (accepted < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK(accepted == 1);
}

void print(const char* name, const Figures& figures) {
  fmt::print(
      "{{\"case\": \"engine/balance/{}\", \"step_ms\": {:.3f}, \"expert_ms\": {:.3f}, \"balancedness\": {:.4f}}}\n",
      name, median(figures.step_ms), median(figures.expert_ms), median(figures.balance));
}

int run(const Options& options) {
  const auto prompts = prompts_of(options);
  RankServer::Options server;
  server.num_ranks = 2;
  server.redundant = options.redundant;
  server.spares = 8;
  server.max_running = options.sequences;
  server.temperature = 0.7;
  server.dispatch = experts::DispatchAlgorithm::kWeighted;
  server.balancer.target = 0.99;
  RankServer before(server), after(server);
  Figures warm, of_before, of_after;
  measure(before, prompts, options.steps, warm);
  measure(after, prompts, options.steps, warm);
  rebalance(after);
  measure(after, prompts, options.steps, warm);  // the plan is carried out while these decode
  while (after.balancer().view().in_progress) measure(after, prompts, options.steps, warm);
  std::vector<double> gains, predicted;
  for (int32_t round = 0; round < options.rounds; ++round) {
    measure(before, prompts, options.steps, of_before);
    measure(after, prompts, options.steps, of_after);
    gains.push_back(of_before.step_ms.back() / of_after.step_ms.back());
    const double expert = of_before.expert_ms.back();
    const double shrunk = expert * of_before.balance.back() / of_after.balance.back();
    predicted.push_back(of_before.step_ms.back() / (of_before.step_ms.back() - expert + shrunk));
  }
  print("trivial placement", of_before);
  print("rebalanced", of_after);
  fmt::print(
      "{{\"case\": \"engine/balance\", \"speedup\": {:.4f}, \"predicted\": {:.4f}, \"expert_speedup\": {:.4f}, "
      "\"expert_predicted\": {:.4f}}}\n",
      median(gains), median(predicted), median(of_before.expert_ms) / median(of_after.expert_ms),
      median(of_after.balance) / median(of_before.balance));
  return 0;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--sequences") options.sequences = std::stoi(value);
    if (flag == "--steps") options.steps = std::stoi(value);
    if (flag == "--rounds") options.rounds = std::stoi(value);
    if (flag == "--redundant") options.redundant = std::stoi(value);
    if (flag == "--prompt") options.prompt = value;
  }
  return options;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::log::configure(tandem::log::Level::kError, false);
  return tandem::bench::run(tandem::bench::parse(argc, argv));
}
