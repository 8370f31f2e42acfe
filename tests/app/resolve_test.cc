#include "app/resolve.h"

#include <gtest/gtest.h>

#include <sstream>

#include "app/nodes.h"
#include "app/resolve_gpu.h"
#include "app/server_flags.h"

namespace tandem::app {
namespace {

const std::string kR1 = TANDEM_SOURCE_DIR "/tests/data/configs/deepseek-r1";
const std::string kTiny = TANDEM_SOURCE_DIR "/models/tiny";

ResolveOutcome resolve_line(const std::string& line, Environment environment = {}) {
  std::vector<std::string> args;
  std::istringstream words(line);
  for (std::string word; words >> word;) args.push_back(word);
  Result<ParseOutcome> parsed = parse_flags("launch_server", "", server_flags(), args);
  EXPECT_TRUE(parsed) << parsed.error().message;
  return resolve(std::move(parsed)->values, std::move(environment));
}

std::string joined(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += line + "\n";
  return all;
}

// The launch commands of the small-scale recipe, with program, host addresses and model directory replaced.
const std::string kCommon = "--model-path " + kR1 +
                            " --load-format dummy --disaggregation-ib-device mlx5_0,mlx5_1,mlx5_3,mlx5_4"
                            " --enable-dp-attention --decode-log-interval 1 --enable-deepep-moe --page-size 1"
                            " --host 0.0.0.0 --trust-remote-code --moe-dense-tp-size 1 --enable-dp-lm-head"
                            " --disable-radix-cache --watchdog-timeout 1000000 ";

TEST(Resolve, SeedPrefillOnThreeNodes) {
  ResolveOutcome outcome = resolve_line(
      kCommon +
      "--disaggregation-mode prefill --dist-init-addr 127.0.0.1:5757 --nnodes 3 --node-rank 0 --tp-size 24 "
      "--dp-size 24 --deepep-mode normal --mem-fraction-static 0.85 --chunked-prefill-size 393216 "
      "--max-running-requests 6144 --max-total-tokens 131072 --context-length 8192 "
      "--enable-two-batch-overlap --ep-num-redundant-experts 32 --ep-dispatch-algorithm dynamic "
      "--eplb-algorithm deepseek --init-expert-location /data/prefill_in4096.json");
  EXPECT_TRUE(outcome.faults.empty()) << joined(outcome.faults);
  const ResolvedConfig& config = outcome.config;
  EXPECT_EQ(config.engine.chunked_prefill_size, 16384);
  EXPECT_EQ(config.engine.max_running_requests, 256);
  EXPECT_EQ(config.engine.max_total_tokens, 131072);
  EXPECT_EQ(config.attn_tp_size, 1);
  EXPECT_EQ(config.ep_size, 24);
  EXPECT_EQ(config.ep_dispatch_algorithm, "dynamic");
  EXPECT_TRUE(config.refusals.empty()) << joined(config.refusals);
  json::Object described = describe(config);
  EXPECT_EQ(described["derived"].as_object()["experts_per_rank"], 12);
}

const std::string kTwoNodes = "--model-path " + kTiny + " --tp-size 4 --dp-size 4 --enable-dp-attention --nnodes 2 " +
                              "--dist-init-addr 10.0.0.1:5757 --node-rank ";

TEST(Resolve, RanksAreSpreadOverNodesAndExpertsOverAllOfThem) {
  const ResolvedConfig config = resolve_line(kTwoNodes + "1").config;
  EXPECT_TRUE(config.refusals.empty()) << joined(config.refusals);
  EXPECT_EQ(config.num_ranks, 2);
  EXPECT_EQ(config.num_nodes, 2);
  EXPECT_EQ(config.node_rank, 1);
  EXPECT_EQ(config.dp_size, 4);
  EXPECT_EQ(config.experts.topology, (experts::EpTopology{2, 4, 8}));
  EXPECT_EQ(config.flags.integer("dist_timeout"), 300);
}

TEST(Resolve, NodesAgreeOnWhatTheyShareAndKeepTheRest) {
  const auto settings = [](const std::string& more) {
    std::vector<std::string> all;
    for (const auto& [name, value] : agreed_settings(resolve_line(kTwoNodes + more).config)) {
      EXPECT_EQ(value.find("s3cret"), std::string::npos) << name;
      all.push_back(name + "=" + value);
    }
    return all;
  };
  const std::string of_one_node =
      " --host 10.0.0.2 --port 31000 --num-threads 3 --api-key s3cret --admin-api-key s3cret2 --log-level warning "
      "--deployment-secret-file /s3cret";
  EXPECT_EQ(settings("0"), settings("1" + of_one_node));
  EXPECT_NE(settings("0"), settings("1 --page-size 4"));
  EXPECT_NE(settings("0"), settings("1 --max-total-tokens 4096"));
  EXPECT_NE(settings("0"), settings("1 --deepep-dispatch-dtype fp8"));
  EXPECT_EQ(settings("0"), settings("1 --deepep-dispatch-dtype bf16")) << "what was chosen counts";
  EXPECT_NE(settings("0"), settings("1 --json-model-override-args {\"num_hidden_layers\":3}"));
}

TEST(Resolve, SeedDecodeOnOneNode) {
  Environment environment;
  environment.num_reserved_decode_tokens = 130;
  ResolveOutcome outcome = resolve_line(
      kCommon +
          "--disaggregation-mode decode --dist-init-addr 127.0.0.1:5757 --nnodes 1 --node-rank 0 --tp-size 8 "
          "--dp-size 8 --disable-overlap-schedule --deepep-mode low_latency --mem-fraction-static 0.835 "
          "--max-running-requests 2048 --context-length 4500 --cuda-graph-bs 256",
      environment);
  EXPECT_TRUE(outcome.faults.empty()) << joined(outcome.faults);
  EXPECT_EQ(outcome.config.engine.max_running_requests, 256);
  EXPECT_EQ(outcome.config.engine.num_reserved_decode_tokens, 130);
  EXPECT_EQ(outcome.config.max_dispatch_tokens_per_rank, 256);
  EXPECT_NE(joined(outcome.config.warnings).find("DISPATCH_TOKENS_PER_RANK is not set: 256"), std::string::npos);
}

TEST(Resolve, SeedPrefillOnOneNode) {
  ResolveOutcome outcome =
      resolve_line(kCommon +
                   "--disaggregation-mode prefill --dist-init-addr 127.0.0.1:5757 --nnodes 1 --node-rank 0 --tp-size 8 "
                   "--dp-size 8 --deepep-mode normal --mem-fraction-static 0.85 --chunked-prefill-size 131072 "
                   "--max-running-requests 2048 --max-total-tokens 131072 --context-length 8192 "
                   "--disable-overlap-schedule");
  EXPECT_TRUE(outcome.faults.empty()) << joined(outcome.faults);
  EXPECT_EQ(outcome.config.engine.chunked_prefill_size, 16384);
}

TEST(Resolve, SeedDecodeOnThreeNodesTakesStaticDispatchWithAWarning) {
  ResolveOutcome outcome = resolve_line(
      kCommon +
      "--disaggregation-mode decode --dist-init-addr 127.0.0.1:5757 --nnodes 3 --node-rank 0 --tp-size 24 "
      "--dp-size 24 --enable-two-batch-overlap --deepep-mode low_latency --mem-fraction-static 0.8 "
      "--max-running-requests 6144 --context-length 4500 --cuda-graph-bs 128 --ep-num-redundant-experts 32");
  EXPECT_TRUE(outcome.faults.empty()) << joined(outcome.faults);
  EXPECT_EQ(outcome.config.ep_dispatch_algorithm, "static");
  EXPECT_NE(joined(outcome.config.warnings).find("--ep-dispatch-algorithm is not given: static"), std::string::npos);
}

TEST(Resolve, OneRankOfTheTinyModelStarts) {
  ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " --disaggregation-mode decode --page-size 16");
  EXPECT_TRUE(outcome.faults.empty()) << joined(outcome.faults);
  EXPECT_TRUE(outcome.config.refusals.empty()) << joined(outcome.config.refusals);
  EXPECT_FALSE(outcome.config.engine.radix_cache);
  EXPECT_EQ(outcome.config.engine.context_length, 4096);
}

TEST(Resolve, FlagBeatsTheOldEnvironmentVariable) {
  Environment environment;
  environment.num_reserved_decode_tokens = 130;
  ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " --num-reserved-decode-tokens 7", environment);
  EXPECT_EQ(outcome.config.engine.num_reserved_decode_tokens, 7);
}

TEST(Resolve, EachConflictIsOneLineThatNamesTheFlag) {
  const std::pair<const char*, const char*> cases[] = {
      {"--tp-size 8 --nnodes 3 --dist-init-addr a:1", "--nnodes"},
      {"--tp-size 8 --dp-size 3 --enable-dp-attention", "--dp-size"},
      {"--tp-size 8 --nnodes 2 --dp-size 2 --dist-init-addr a:1", "--enable-dp-attention"},
      {"--tp-size 8 --nnodes 2", "--dist-init-addr"},
      {"--dist-init-addr nowhere", "--dist-init-addr"},
      {"--nnodes 2 --tp-size 2 --node-rank 2 --dist-init-addr a:1", "--node-rank"},
      {"--moe-dense-tp-size 2", "--moe-dense-tp-size"},
      {"--tp-size 8", "4 heads are not divisible by --tp-size / --dp-size = 8"},
      {"--chunked-prefill-size 100 --page-size 64", "--page-size"},
      {"--chunked-prefill-size 0", "--chunked-prefill-size"},
      {"--tp-size 4 --dp-size 4 --enable-dp-attention --max-running-requests 3", "--max-running-requests"},
      {"--enable-eplb", "--enable-eplb"},
      {"--tp-size 3 --enable-deepep-moe", "--ep-size"},
      {"--ep-size 2", "--ep-size"},
      {"--disaggregation-mode decode --disaggregation-decode-tp 2", "--disaggregation-decode-tp"},
      {"--disaggregation-mode prefill --tp-size 4 --disaggregation-decode-tp 6", "--disaggregation-decode-tp"},
      {"--disaggregation-mode prefill --port 8998", "--disaggregation-bootstrap-port"},
      {"--tbo-token-distribution-threshold 0.6", "--tbo-token-distribution-threshold"},
      {"--mem-fraction-static 1.5", "--mem-fraction-static"},
      {"--context-length 5000", "--context-length"},
      {"--port 0", "--port"},
      {"--port 70000", "--port"},
      {"--load-format gguf", "--load-format"},
      {"--dtype float16", "--dtype"},
      {"--quantization awq", "--quantization"},
      {"--kv-cache-dtype fp8_e5m2", "--kv-cache-dtype"},
      {"--served-model-name a:b", "--served-model-name"},
      {"--json-model-override-args {\"num_hidden_layers\":0}", "num_hidden_layers"},
      {"--cuda-graph-bs 0", "--cuda-graph-bs"},
      {"--disaggregation-transfer-backend ascend", "--disaggregation-transfer-backend"},
  };
  for (const auto& [flags, named] : cases) {
    ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " " + flags);
    ASSERT_FALSE(outcome.faults.empty()) << flags;
    EXPECT_NE(joined(outcome.faults).find(named), std::string::npos) << flags << ": " << joined(outcome.faults);
  }
}

TEST(Resolve, AnExplicitDispatchLimitBelowTheDecodeBatchIsAFault) {
  Environment environment;
  environment.max_dispatch_tokens_per_rank = 64;
  ResolveOutcome outcome =
      resolve_line("--model-path " + kTiny + " --enable-deepep-moe --deepep-mode low_latency --max-running-requests 65",
                   environment);
  EXPECT_NE(joined(outcome.faults).find("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=64"), std::string::npos);
}

TEST(Resolve, RowsTravelInFp8WhereThatChangesNothingOrWhereItIsAskedFor) {
  const auto payload = [](const std::string& flags, bool bf16_dispatch = false) -> std::string {
    Environment environment;
    environment.bf16_dispatch = bf16_dispatch;
    const ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " " + flags, environment);
    if (!outcome.faults.empty()) return joined(outcome.faults);
    const bool fp8 = outcome.config.experts.payload == parallel::ExchangePayload::kFp8;
    EXPECT_EQ(outcome.config.flags.text("deepep_dispatch_dtype"), fp8 ? "fp8" : "bf16") << flags;
    return fp8 ? "fp8" : "as they are";
  };
  const std::string asked = "--deepep-dispatch-dtype fp8", tensor = "--device cuda --kernel-backend tensor ";
  EXPECT_EQ(payload(""), "as they are");
  EXPECT_EQ(payload(asked), "fp8");
  EXPECT_EQ(payload(asked, true), "fp8") << "the flag wins";
  EXPECT_EQ(payload("--device cuda"), "as they are");
  EXPECT_EQ(payload(tensor), "fp8");
  EXPECT_EQ(payload(tensor, true), "as they are");
  EXPECT_EQ(payload(tensor + "--deepep-dispatch-dtype bf16"), "as they are");
  EXPECT_NE(payload("--device cuda " + asked).find("--kernel-backend tensor"), std::string::npos);
}

TEST(Resolve, TheCacheIsF32UnlessLessIsAskedFor) {
  EXPECT_EQ(resolve_line("--model-path " + kTiny).config.kv_dtype, device::DType::kF32);
  EXPECT_EQ(resolve_line("--model-path " + kTiny + " --kv-cache-dtype bf16").config.kv_dtype, device::DType::kBF16);
  EXPECT_EQ(resolve_line("--model-path " + kTiny + " --kv-cache-dtype fp8_e4m3").config.kv_dtype,
            device::DType::kF8E4M3);
}

TEST(Resolve, LaterFlagsAreValidButRefusedAtStart) {
  for (const char* flags :
       {"--dp-size 2", "--enable-mixed-chunk", "--speculative-algorithm EAGLE", "--enable-single-batch-overlap",
        "--device xpu", "--device cuda --nnodes 2 --tp-size 2 --dist-init-addr localhost:5000",
        "--device cuda --tp-size 2", "--device cuda --enable-two-batch-overlap",
        "--device cuda --expert-distribution-recorder-mode per_pass",
        "--device cuda --expert-distribution-recorder-mode per_token",
        "--device cuda --enable-expert-distribution-metrics"}) {
    ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " " + flags);
    EXPECT_TRUE(outcome.faults.empty()) << flags << ": " << joined(outcome.faults);
    EXPECT_FALSE(outcome.config.refusals.empty()) << flags;
  }
  // Experts move on GPUs, too.
  ResolveOutcome moves = resolve_line("--model-path " + kTiny +
                                      " --device cuda --tp-size 2 --dp-size 2 --enable-dp-attention --enable-eplb"
                                      " --enable-eplb-rebalance-async --ep-num-redundant-experts 8");
  EXPECT_TRUE(moves.faults.empty() && moves.config.refusals.empty()) << joined(moves.config.refusals);
  EXPECT_EQ(moves.config.experts.spare_slots, 8);
  // The same flags with their default values change nothing and are not refused.
  ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " --tp 1 --init-expert-location trivial --nnodes 1");
  EXPECT_TRUE(outcome.config.refusals.empty()) << joined(outcome.config.refusals);
}

TEST(Resolve, CudaGraphsHaveSglangsSizesUpToTheLargestBatch) {
  using Sizes = std::vector<int32_t>;
  const auto recorded = [](const std::string& flags, int32_t max_running) {
    const ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " --device cuda " + flags);
    EXPECT_TRUE(outcome.faults.empty()) << flags << ": " << joined(outcome.faults);
    return decode_recording(outcome.config, max_running);
  };
  EXPECT_EQ(recorded("", 30).batch_sizes, (Sizes{1, 2, 4, 8, 12, 16, 24, 30}));
  EXPECT_EQ(recorded("--cuda-graph-max-bs 20", 64).batch_sizes, (Sizes{1, 2, 4, 8, 12, 16, 20}));
  EXPECT_EQ(recorded("", 4096).batch_sizes.back(), 256);
  EXPECT_EQ(recorded("--cuda-graph-bs 7 3 100", 64).batch_sizes, (Sizes{3, 7}));
  EXPECT_FALSE(recorded("--disable-cuda-graph-padding", 8).fills_up);
  EXPECT_TRUE(recorded("--disable-cuda-graph", 8).batch_sizes.empty());
  EXPECT_TRUE(recorded("--disaggregation-mode prefill", 8).batch_sizes.empty());
  const ResolveOutcome cpu = resolve_line("--model-path " + kTiny + " --cuda-graph-bs 4 --base-gpu-id 1");
  EXPECT_TRUE(decode_recording(cpu.config, 8).batch_sizes.empty());
  EXPECT_NE(joined(cpu.config.warnings).find("nothing to do here: --base-gpu-id --cuda-graph-bs"), std::string::npos)
      << joined(cpu.config.warnings);
}

TEST(Resolve, RecorderModesAndMetricsReachTheRecorder) {
  const std::string model = "--model-path " + kTiny + " ";
  const auto recorder = [&](const std::string& flags) { return *resolve_line(model + flags).config.balancer; };
  EXPECT_EQ(recorder("").recorder_mode, engine::RecorderMode::kStat);
  EXPECT_FALSE(recorder("").records_at_start);
  const std::string mode = "--expert-distribution-recorder-mode ";
  EXPECT_EQ(recorder(mode + "stat_approx").recorder_mode, engine::RecorderMode::kStat);
  EXPECT_EQ(recorder(mode + "per_pass").recorder_mode, engine::RecorderMode::kPerPass);
  EXPECT_EQ(recorder(mode + "per_token").recorder_mode, engine::RecorderMode::kPerToken);
  EXPECT_EQ(recorder(mode + "per_token").experts_per_token, 6);
  const auto measured = recorder("--enable-expert-distribution-metrics --expert-distribution-recorder-buffer-size -1");
  EXPECT_TRUE(measured.logs_balancedness);
  EXPECT_TRUE(measured.records_at_start);
  EXPECT_LT(measured.recorder_steps, 0);
  const ResolveOutcome empty = resolve_line(model + "--expert-distribution-recorder-buffer-size 0");
  EXPECT_NE(joined(empty.faults).find("--expert-distribution-recorder-buffer-size 0"), std::string::npos);
}

TEST(Resolve, RanksBeyondDataParallelOnesShareRequests) {
  ResolveOutcome outcome = resolve_line("--model-path " + kTiny +
                                        " --tp-size 8 --dp-size 4 --enable-dp-attention --enable-deepep-moe "
                                        "--moe-dense-tp-size 1 --enable-dp-lm-head --max-running-requests 1200");
  EXPECT_TRUE(outcome.faults.empty()) << joined(outcome.faults);
  EXPECT_TRUE(outcome.config.refusals.empty()) << joined(outcome.config.refusals);
  EXPECT_EQ(outcome.config.attn_tp_size, 2);
  EXPECT_EQ(outcome.config.engine.attn_tp_size, 2);
  EXPECT_EQ(outcome.config.num_ranks, 8);
  EXPECT_EQ(outcome.config.engine.max_running_requests, 300);
  EXPECT_EQ(outcome.config.max_dispatch_tokens_per_rank, 150) << "a rank dispatches its share of the group's batch";
  const ResolvedConfig plain = resolve_line("--model-path " + kTiny + " --tp-size 4").config;
  EXPECT_EQ(plain.dp_size, 1);
  EXPECT_EQ(plain.attn_tp_size, 4);
  EXPECT_TRUE(plain.refusals.empty()) << joined(plain.refusals);
}

TEST(Resolve, AnAttentionGroupOverNodesIsRefused) {
  const ResolvedConfig config =
      resolve_line("--model-path " + kTiny + " --tp-size 4 --nnodes 2 --dist-init-addr a:1").config;
  ASSERT_EQ(config.refusals.size(), 1u);
  EXPECT_EQ(config.refusals[0],
            "an attention tensor-parallel group of 4 ranks (--tp-size / --dp-size) over several nodes of 2");
}

TEST(Resolve, AGpuRunsInF32UnlessTensorCoresAreAskedFor) {
  const std::string model = "--model-path " + kTiny + " ";
  const ResolveOutcome exact = resolve_line(model + "--device cuda");
  EXPECT_TRUE(exact.config.refusals.empty()) << joined(exact.config.refusals);
  EXPECT_EQ(exact.config.backend, kernels::Backend::kCudaF32);
  EXPECT_EQ(exact.config.kv_dtype, device::DType::kF32);
  const ResolveOutcome fast = resolve_line(model + "--device cuda --kernel-backend tensor");
  EXPECT_TRUE(fast.faults.empty()) << joined(fast.faults);
  EXPECT_EQ(fast.config.backend, kernels::Backend::kCuda);
  EXPECT_EQ(fast.config.kv_dtype, device::DType::kBF16);
  EXPECT_EQ(fast.config.engine.block_tokens, 64);
  EXPECT_FALSE(resolve_line(model + "--device cuda --kernel-backend tensor --page-size 1").faults.empty());
  EXPECT_FALSE(resolve_line(model + "--device cuda --kernel-backend ref").faults.empty());
  EXPECT_FALSE(resolve_line(model + "--kernel-backend tensor").faults.empty());
}

TEST(Resolve, TheKeyIsNotPrinted) {
  ResolveOutcome outcome = resolve_line("--model-path " + kTiny + " --api-key hunter2 --admin-api-key hunter3");
  EXPECT_EQ(json::dump(describe(outcome.config)).find("hunter"), std::string::npos);
}

TEST(Resolve, PrioritiesNeedAnOrderThatTheyCanChange) {
  const std::string model = "--model-path " + kTiny + " ";
  ResolveOutcome plain =
      resolve_line(model + "--enable-priority-scheduling --priority-scheduling-preemption-threshold 3");
  EXPECT_TRUE(plain.faults.empty()) << joined(plain.faults);
  EXPECT_TRUE(plain.config.refusals.empty()) << joined(plain.config.refusals);
  EXPECT_TRUE(plain.config.engine.priority_scheduling);
  EXPECT_EQ(plain.config.engine.preemption_threshold, 3);
  EXPECT_TRUE(resolve_line(model + "--schedule-policy priority").config.engine.priority_scheduling);
  EXPECT_FALSE(resolve_line(model).config.engine.priority_scheduling);
  EXPECT_EQ(resolve_line(model + "--enable-priority-scheduling --schedule-policy lpm").faults.size(), 1u);
  EXPECT_EQ(resolve_line(model + "--schedule-low-priority-values-first").faults.size(), 1u);
  EXPECT_EQ(resolve_line(model + "--log-requests-level 4").faults.size(), 1u);
}

}  // namespace
}  // namespace tandem::app
