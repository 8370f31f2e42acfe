#include "loadgen/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/check.h"

namespace tandem::loadgen {
namespace {

// Calls add(itl, count) for each run of equal inter-token latencies of one request.
template <class Add>
void each_itl(const RequestResult& result, bool retokenize, const text::Tokenizer& tokenizer, Add add) {
  if (!retokenize || result.itl_text_bytes.size() != result.itls_s.size()) {
    for (double itl : result.itls_s) add(itl, size_t(1));
    return;
  }
  size_t chunk_bytes = 0;
  for (uint32_t bytes : result.itl_text_bytes) chunk_bytes += bytes;
  size_t at = result.generated_text.size() - chunk_bytes;  // behind the first token's text
  for (size_t i = 0; i < result.itls_s.size(); ++i) {
    const std::string_view chunk = std::string_view(result.generated_text).substr(at, result.itl_text_bytes[i]);
    at += chunk.size();
    const size_t tokens = tokenizer.encode(chunk, false).size();
    if (tokens > 0) add(result.itls_s[i] / double(tokens), tokens);
  }
}

// Tokens and living requests per second of the run, buckets of 1 s from the first successful dispatch.
class Buckets {
 public:
  explicit Buckets(std::span<const RequestResult> results) {
    double first = INFINITY, last = 0;
    for (const RequestResult& r : results) {
      if (!r.success) continue;
      first = std::min(first, r.start_s);
      last = std::max(last, r.start_s + r.latency_s);
    }
    if (std::isinf(first)) return;
    const size_t count = size_t(std::ceil(last - first)) + 1;
    std::vector<int64_t> tokens(count), alive(count);
    auto bucket = [&](double at) { return std::min(size_t(std::max(at - first, 0.0)), count - 1); };
    for (const RequestResult& r : results) {
      if (!r.success) continue;
      double at = r.start_s + r.ttft_s.value_or(0);
      if (r.ttft_s) ++tokens[bucket(at)];
      for (double itl : r.itls_s) ++tokens[bucket(at += itl)];
      const size_t end = bucket(r.start_s + r.latency_s);
      for (size_t second = bucket(r.start_s); second <= end; ++second) ++alive[second];
    }
    max_tokens = *std::max_element(tokens.begin(), tokens.end());
    max_alive = *std::max_element(alive.begin(), alive.end());
  }
  int64_t max_tokens = 0, max_alive = 0;
};

Failures collect_failures(std::span<const RequestResult> results) {
  Failures failures;
  std::map<std::string, int64_t> counts;
  for (const RequestResult& r : results) {
    if (r.success) continue;
    ++failures.count;
    ++counts[r.error];
  }
  failures.by_error.assign(counts.begin(), counts.end());
  std::stable_sort(failures.by_error.begin(), failures.by_error.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return failures;
}

}  // namespace

double percentile(std::span<const double> sorted, double percent) {
  CHECK(!sorted.empty());
  const double rank = percent / 100 * double(sorted.size() - 1);
  const size_t low = std::min(size_t(rank), sorted.size() - 1);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (rank - double(low)) * (sorted[high] - sorted[low]);
}

Spread spread_ms(std::vector<double> values_s) {
  if (values_s.empty()) return {};
  std::sort(values_s.begin(), values_s.end());
  const double count = double(values_s.size());
  const double mean = std::accumulate(values_s.begin(), values_s.end(), 0.0) / count;
  double squares = 0;
  for (double v : values_s) squares += (v - mean) * (v - mean);
  return {.mean = mean * 1000,
          .median = percentile(values_s, 50) * 1000,
          .std = std::sqrt(squares / count) * 1000,
          .p95 = percentile(values_s, 95) * 1000,
          .p99 = percentile(values_s, 99) * 1000,
          .max = values_s.back() * 1000};
}

Report make_report(std::span<const RequestResult> results, double duration_s, std::optional<double> accept_length,
                   const Backend& backend, const text::Tokenizer& tokenizer) {
  Report report;
  report.duration_s = duration_s;
  report.accept_length = accept_length;
  const bool sglang_openai =
      backend.dialect != Dialect::kNative && std::string_view(backend.name).starts_with("sglang");
  const bool retokenize = accept_length.value_or(0) > 0 && sglang_openai;
  std::vector<double> e2e, ttft, tpot, itl;
  double latency_sum = 0;
  for (const RequestResult& r : results) {
    if (!r.success) continue;
    ++report.completed;
    report.total_input_tokens += r.input_len;
    report.total_output_tokens += r.output_len;
    report.total_output_tokens_retokenized += int64_t(tokenizer.encode(r.generated_text, false).size());
    latency_sum += r.latency_s;
    e2e.push_back(r.latency_s);
    if (r.ttft_s) ttft.push_back(*r.ttft_s);
    if (r.ttft_s && r.output_len > 1) tpot.push_back((r.latency_s - *r.ttft_s) / (r.output_len - 1));
    each_itl(r, retokenize, tokenizer, [&](double value, size_t count) { itl.insert(itl.end(), count, value); });
  }
  if (duration_s > 0) {
    report.request_throughput = double(report.completed) / duration_s;
    report.input_throughput = double(report.total_input_tokens) / duration_s;
    report.output_throughput = double(report.total_output_tokens) / duration_s;
    report.total_throughput = report.input_throughput + report.output_throughput;
    report.concurrency = latency_sum / duration_s;
  }
  const Buckets buckets(results);
  report.max_output_tokens_per_s = double(buckets.max_tokens);
  report.max_concurrent_requests = buckets.max_alive;
  report.e2e = spread_ms(std::move(e2e));
  report.ttft = spread_ms(std::move(ttft));
  report.tpot = spread_ms(std::move(tpot));
  report.itl = spread_ms(std::move(itl));
  report.failures = collect_failures(results);
  return report;
}

}  // namespace tandem::loadgen
