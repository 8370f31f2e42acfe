#include "workflow/load.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/queue.h"
#include "loadgen/report.h"
#include "loadgen/request_body.h"
#include "loadgen/target.h"
#include "loadgen/workload.h"

namespace tandem::workflow {
namespace {

using Outcome = Result<loadgen::LoadOutcome>;

// The first requests get only a rest of their output, each another share: as in a load that has run for long, so that
// requests end one by one from the start and not in waves.
void begin_midway(loadgen::Workload& workload, size_t at_once) {
  for (size_t i = 0; i < std::min(at_once, workload.items.size()); ++i) {
    int32_t& length = workload.items[i].output_len;
    length = std::max(1, int32_t(int64_t(length) * int64_t(2 * i + 1) / int64_t(2 * at_once)));
  }
}

}  // namespace

struct Load::Run {
  loadgen::Workload workload;
  loadgen::RequestShape shape;
  loadgen::LoadPlan plan;
  std::stop_source stop_dispatch, stop;
  BoundedQueue<Outcome> outcome{1};
  std::jthread thread;  // last: it uses the others
};

Result<std::unique_ptr<Load>> Load::start(const LoadShape& shape, const Deployment& deployment, const Clock& clock) {
  loadgen::BenchConfig config;
  config.base_url = deployment.url();
  config.authorization = deployment.authorization();
  config.dataset_name = "random-ids";
  config.tokenize_prompt = true;
  config.num_prompts = shape.num_prompts;
  config.random_input_len = shape.input_len;
  config.random_output_len = shape.output_len;
  config.random_range_ratio = shape.range_ratio;
  config.seed = shape.seed;
  RETURN_IF_ERROR(config.validate());
  ASSIGN_OR_RETURN(loadgen::Target target, loadgen::Target::create(deployment.url(), deployment.authorization()));
  ASSIGN_OR_RETURN(std::string path, loadgen::find_tokenizer(shape.tokenizer, "", target));
  ASSIGN_OR_RETURN(auto tokenizer, loadgen::load_tokenizer(path));

  std::unique_ptr<Load> load(new Load);
  load->run_ = std::make_unique<Run>();
  Run& run = *load->run_;
  ASSIGN_OR_RETURN(run.workload, loadgen::make_workload(config, *tokenizer, nullptr));
  begin_midway(run.workload, size_t(shape.at_once));
  ASSIGN_OR_RETURN(run.shape, loadgen::request_shape(config, ""));
  run.plan.url = target.url("/generate");
  run.plan.headers = target.headers();
  run.plan.arrivals.assign(run.workload.items.size(), Duration::zero());
  run.plan.max_concurrency = shape.at_once;
  run.plan.request_timeout = std::chrono::minutes(10);
  run.plan.stop_dispatch = run.stop_dispatch.get_token();
  run.plan.body = [&run](size_t index) { return loadgen::request_body(run.shape, run.workload.items[index]); };
  run.plan.expectation = [&run](size_t index) {
    return loadgen::Expectation{
        .dialect = loadgen::Dialect::kNative, .stream = true, .output_len = run.workload.items[index].output_len};
  };
  load->begin_s_ = deployment.seconds_now();
  run.thread =
      std::jthread([&run, &clock] { run.outcome.push(loadgen::run_load(run.plan, clock, run.stop.get_token())); });
  return load;
}

Load::~Load() {
  if (run_) run_->stop.request_stop();
}

Result<std::vector<loadgen::RequestResult>> Load::finish(Duration timeout) {
  run_->stop_dispatch.request_stop();
  std::optional<Outcome> outcome = run_->outcome.pop(timeout);
  if (!outcome)
    return timed_out(fmt::format("requests were still under way {:.0f} s after the last", seconds(timeout)));
  if (!*outcome) return outcome->error();
  return std::move((*outcome)->results);
}

LoadSummary summarize_load(const std::vector<loadgen::RequestResult>& results, double begin_s, double end_s) {
  LoadSummary summary;
  std::vector<double> ttfts, itls;
  for (const loadgen::RequestResult& result : results) {
    if (result.start_s < begin_s || result.start_s + result.latency_s > end_s) continue;
    LoadFigures& figures = summary.figures;
    figures.output_tokens += result.success ? result.output_len : 0;
    if (!result.success) {
      figures.failed += 1;
      figures.short_outputs += result.error.starts_with("short answer") ? 1 : 0;
      if (figures.first_error.empty()) figures.first_error = result.error;
      continue;
    }
    figures.completed += 1;
    if (result.ttft_s) ttfts.push_back(*result.ttft_s);
    itls.insert(itls.end(), result.itls_s.begin(), result.itls_s.end());
  }
  summary.ttft = loadgen::spread_ms(ttfts);
  summary.itl = loadgen::spread_ms(itls);
  for (double itl : itls) summary.itls_ms.push_back(itl * 1e3);
  return summary;
}

}  // namespace tandem::workflow
