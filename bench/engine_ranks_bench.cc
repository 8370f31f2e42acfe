// Decode with the experts of a model on two ranks of one thread against one rank of one thread, the same sequences in
// all, engine and exchange without HTTP. Both servers live at once and take turns, so that a change of the machine
// hits both; the ratio is the median of the rounds' ratios.
//   engine_ranks_bench [--config tiny,s,m] [--layers 0,0,3] [--batches 8,32,64] [--steps 64] [--rounds 7]
// One JSON line per case. ratio: throughput of two ranks over that of one.
#include <random>
#include <sstream>

#include "base/log.h"
#include "bench/rank_harness.h"

namespace tandem::bench {
namespace {

struct Options {
  std::string configs = "tiny,s,m", layers = "0,0,3", batches = "8,32,64";
  int32_t steps = 64, rounds = 7, prompt = 32;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<std::vector<int32_t>> random_prompts(int32_t count, int32_t tokens, int32_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(count));
  for (auto& prompt : prompts) {
    for (int32_t i = 0; i < tokens; ++i) prompt.push_back(int32_t(random() % uint64_t(vocab)));
  }
  return prompts;
}

void run_case(const std::string& name, RankServer& one, RankServer& two, int32_t batch, const Options& options) {
  const auto prompts = random_prompts(batch, options.prompt, one.model_config().vocab_size, 1);
  one.decode_rate(prompts, 8);
  two.decode_rate(prompts, 8);
  std::vector<double> of_one, of_two, ratios;
  for (int32_t round = 0; round < options.rounds; ++round) {
    of_one.push_back(one.decode_rate(prompts, options.steps));
    of_two.push_back(two.decode_rate(prompts, options.steps));
    ratios.push_back(of_two.back() / of_one.back());
  }
  fmt::print(
      "{{\"case\": \"engine/ranks/{}/sequences={}\", \"one_tok_s\": {:.1f}, \"two_tok_s\": {:.1f}, \"ratio\": {:.3f}, "
      "\"best_ratio\": {:.3f}}}\n",
      name, batch, median(of_one), median(of_two), median(ratios),
      *std::max_element(of_two.begin(), of_two.end()) / *std::max_element(of_one.begin(), of_one.end()));
  std::fflush(stdout);
}

int run(const Options& options) {
  const std::vector<std::string> configs = split(options.configs), layers = split(options.layers);
  for (size_t i = 0; i < configs.size(); ++i) {
    RankServer::Options server;
    server.config = configs[i];
    server.layers = i < layers.size() ? std::stoi(layers[i]) : 0;
    RankServer one(server);
    server.num_ranks = 2;
    RankServer two(server);
    for (const std::string& batch : split(options.batches)) run_case(configs[i], one, two, std::stoi(batch), options);
  }
  return 0;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--config") options.configs = value;
    if (flag == "--layers") options.layers = value;
    if (flag == "--batches") options.batches = value;
    if (flag == "--steps") options.steps = std::stoi(value);
    if (flag == "--rounds") options.rounds = std::stoi(value);
  }
  return options;
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  tandem::log::configure(tandem::log::Level::kError, false);
  return tandem::bench::run(tandem::bench::parse(argc, argv));
}
