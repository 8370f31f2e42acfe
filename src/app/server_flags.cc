#include "app/server_flags.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr const char* kIsaNames = "auto|avx2|avx512|avx512_bf16";
constexpr const char* kAttention =
    "triton|torch_native|flex_attention|nsa|cutlass_mla|fa3|fa4|flashinfer|flashmla|trtllm_mla|trtllm_mha|aiter|ascend";

constexpr Flag kFlags[] = {
    // Model and tokenizer.
    {"--model-path,--model", kString, nullptr, nullptr, kWorks, "Hugging Face directory (default: the embedded model)"},
    {"--tokenizer-path", kString, nullptr, nullptr, kWorks, "directory of tokenizer.json (default: the model's)"},
    {"--tokenizer-mode", kString, "auto", "auto|slow", kHarmless, "there is one tokenizer"},
    {"--load-format", kString, "auto",
     "auto|safetensors|dummy|pt|npcache|sharded_state|gguf|bitsandbytes|layered|remote", kWorks,
     "auto and safetensors read the checkpoint, dummy invents weights by seed"},
    {"--json-model-override-args", kString, "{}", nullptr, kWorks, "JSON object whose keys replace config.json's"},
    {"--trust-remote-code", kSwitch, nullptr, nullptr, kHarmless, "no code is ever loaded from a model directory"},
    {"--skip-tokenizer-init", kSwitch, nullptr, nullptr, kWorks, "token ids in and out, no text"},
    {"--skip-server-warmup", kSwitch, nullptr, nullptr, kWorks, "say ready without the warm-up request"},
    {"--context-length", kInt, nullptr, nullptr, kWorks, "tokens of one sequence (default: the model's)"},
    {"--served-model-name", kString, nullptr, nullptr, kWorks, "name in /v1/models (default: the model path)"},
    {"--dtype", kString, "auto", "auto|half|float16|bfloat16|float|float32", kWorks, "auto or bfloat16"},
    {"--quantization", kString, nullptr,
     "fp8|awq|gptq|marlin|gptq_marlin|awq_marlin|bitsandbytes|gguf|modelopt|modelopt_fp8|modelopt_fp4|w8a8_int8|"
     "w8a8_fp8|moe_wna16|qoq|w4afp8|mxfp4",
     kWorks, "read from config.json; only fp8 may be named"},
    {"--kv-cache-dtype", kString, "auto", "auto|fp8_e5m2|fp8_e4m3|bf16|bfloat16|float32|fp4_e2m1", kWorks,
     "auto and float32 keep the reference's choices; bf16 takes half of the memory, fp8_e4m3 a quarter"},
    {"--random-seed", kInt, nullptr, nullptr, kWorks, "seed of dummy weights, policies and unseeded sampling"},
    {"--sampling-defaults", kString, "model", "model|openai", kWorks, "where chat sampling defaults come from"},
    // HTTP.
    {"--host", kString, "127.0.0.1", nullptr, kWorks, "address of the HTTP server and of the KV port"},
    {"--port", kInt, "30000", nullptr, kWorks, "port of the HTTP server"},
    {"--api-key", kString, nullptr, nullptr, kWorks, "ask for Authorization: Bearer KEY"},
    {"--admin-api-key", kString, nullptr, nullptr, kWorks, "the key of endpoints that change the server"},
    {"--deployment-secret-file", kString, nullptr, nullptr, kWorks,
     "file of the secret that KV, bootstrap and node ports ask of peers (else TANDEM_DEPLOYMENT_SECRET)"},
    {"--stream-interval", kInt, "1", nullptr, kWorks, "tokens per streamed event"},
    {"--stream-output", kSwitch, nullptr, nullptr, kWorks, "streamed output_ids are new ones only"},
    {"--allow-auto-truncate", kSwitch, nullptr, nullptr, kWorks, "cut prompts that are too long instead of a 400"},
    {"--enable-cache-report", kSwitch, nullptr, nullptr, kWorks, "cached tokens in OpenAI usage"},
    {"--enable-metrics", kSwitch, nullptr, nullptr, kWorks, "serve /metrics"},
    {"--enable-metrics-for-all-schedulers", kSwitch, nullptr, nullptr, kHarmless, "every rank is counted anyway"},
    // Logs.
    {"--log-level", kString, "info", "debug|info|warning|error|critical", kWorks, "lowest level that is logged"},
    {"--log-level-http", kString, nullptr, "debug|info|warning|error|critical", kWorks, "level of access-log lines"},
    {"--log-requests", kSwitch, nullptr, nullptr, kWorks, "log each request: Receive and Finish lines"},
    {"--log-requests-level", kInt, "2", nullptr, kWorks,
     "0: names and counts, 1: sampling, 2: beginnings of texts, 3: all"},
    {"--decode-log-interval", kInt, "40", nullptr, kWorks, "decode steps between Decode batch lines"},
    {"--enable-request-time-stats-logging", kSwitch, nullptr, nullptr, kWorks, "Req Time Stats lines"},
    {"--watchdog-timeout", kFloat, "300", nullptr, kWorks, "seconds without progress before the server ends itself"},
    {"--dist-timeout", kInt, "300", nullptr, kWorks, "seconds to wait for the other nodes at start"},
    // Memory and scheduling.
    {"--mem-fraction-static", kFloat, nullptr, nullptr, kWorks, "share of memory for weights and KV pool"},
    {"--max-running-requests", kInt, nullptr, nullptr, kWorks, "of the server; divided by dp-size"},
    {"--max-queued-requests", kInt, nullptr, nullptr, kWorks, "waiting requests before 503 (not with PD)"},
    {"--max-total-tokens", kInt, nullptr, nullptr, kWorks, "tokens in the KV pool of a rank"},
    {"--chunked-prefill-size", kInt, nullptr, nullptr, kWorks, "tokens per prefill chunk, divided by dp-size; -1: off"},
    {"--max-prefill-tokens", kInt, "16384", nullptr, kWorks, "new tokens of one prefill batch"},
    {"--schedule-policy", kString, "fcfs", "lpm|random|fcfs|dfs-weight|lof|priority", kWorks,
     "order of waiting requests"},
    {"--schedule-conservativeness", kFloat, "1.0", nullptr, kWorks, "higher: reserve more for running requests"},
    {"--enable-priority-scheduling", kSwitch, nullptr, nullptr, kWorks, "requests of higher priority go first"},
    {"--schedule-low-priority-values-first", kSwitch, nullptr, nullptr, kWorks, "the lower value is more urgent"},
    {"--priority-scheduling-preemption-threshold", kInt, "10", nullptr, kWorks,
     "combined: difference of priority beyond which running requests give way"},
    {"--page-size", kInt, "1", nullptr, kWorks, "tokens per KV block"},
    {"--disable-radix-cache", kSwitch, nullptr, nullptr, kWorks, "no prefix cache (always so on decode)"},
    {"--num-reserved-decode-tokens", kInt, "512", nullptr, kWorks, "decode: tokens kept free per request at admission"},
    {"--enable-mixed-chunk", kSwitch, nullptr, nullptr, kLater,
     "decodes ride in prefill batches (docs/decisions/0006)"},
    {"--disable-overlap-schedule", kSwitch, nullptr, nullptr, kHarmless, "steps run strictly one after another here"},
    {"--num-continuous-decode-steps", kInt, "1", nullptr, kHarmless, "parsed and unused, as in SGLang"},
    {"--scheduler-recv-interval", kInt, "1", nullptr, kHarmless, "commands are taken every turn"},
    {"--sleep-on-idle", kSwitch, nullptr, nullptr, kHarmless, "an idle engine always parks"},
    {"--disable-shared-experts-fusion", kSwitch, nullptr, nullptr, kHarmless, "shared experts are never fused"},
    {"--enable-deterministic-inference", kSwitch, nullptr, nullptr, kHarmless, "always deterministic"},
    // Ranks and nodes.
    {"--tp-size,--tensor-parallel-size", kInt, "1", nullptr, kWorks, "ranks of the server, of all nodes together"},
    {"--dp-size,--data-parallel-size", kInt, "1", nullptr, kWorks, "attention data-parallel groups"},
    {"--ep-size,--expert-parallel-size,--ep", kInt, "1", nullptr, kWorks, "expert-parallel ranks"},
    {"--pp-size,--pipeline-parallel-size", kInt, "1", nullptr, kLater, "pipeline stages"},
    {"--nnodes", kInt, "1", nullptr, kWorks, "nodes of the server, one process each"},
    {"--node-rank", kInt, "0", nullptr, kWorks, "this node"},
    {"--dist-init-addr,--nccl-init-addr", kString, nullptr, nullptr, kWorks, "host:port where nodes meet"},
    {"--slurm", kSwitch, nullptr, nullptr, kWorks,
     "take --nnodes, --node-rank and --dist-init-addr from srun's step; listen on all addresses"},
    {"--base-gpu-id", kInt, "0", nullptr, kWorks, "GPU of the node's first rank"},
    {"--gpu-id-step", kInt, "1", nullptr, kWorks, "from one rank's GPU to the next one's"},
    {"--enable-dp-attention", kSwitch, nullptr, nullptr, kWorks, "data-parallel attention (off at dp-size 1)"},
    {"--enable-dp-lm-head", kSwitch, nullptr, nullptr, kWorks, "data-parallel LM head (off at dp-size 1)"},
    {"--moe-dense-tp-size", kInt, nullptr, nullptr, kHarmless, "1 or unset"},
    {"--load-balance-method", kString, "round_robin", "round_robin|shortest_queue|minimum_tokens", kWorks,
     "how requests choose a DP rank"},
    {"--load-watch-interval", kFloat, "0.1", nullptr, kHarmless, "seconds between load polls for shortest_queue"},
    {"--prefill-round-robin-balance", kSwitch, nullptr, nullptr, kHarmless, "decode: prefill uses round_robin"},
    // Experts.
    {"--moe-a2a-backend", kString, "none", "none|deepep|mooncake|ascend_fuseep", kWorks, "exchange of expert tokens"},
    {"--enable-deepep-moe", kSwitch, nullptr, nullptr, kWorks, "old name of --moe-a2a-backend deepep"},
    {"--moe-runner-backend", kString, "auto",
     "auto|deep_gemm|triton|triton_kernel|flashinfer_trtllm|flashinfer_cutlass|flashinfer_mxfp4|flashinfer_cutedsl|"
     "cutlass",
     kHarmless, "the grouped GEMM is chosen by measurement"},
    {"--deepep-mode", kString, "auto", "auto|normal|low_latency", kWorks, "form of the expert exchange"},
    {"--deepep-dispatch-dtype", kString, "auto", "auto|bf16|fp8", kWorks,
     "rows on their way to experts: bf16 leaves them as they are; auto is fp8 where that changes no result"},
    {"--deepep-config", kString, nullptr, nullptr, kLater, "tuning of the exchange"},
    {"--ep-num-redundant-experts", kInt, "0", nullptr, kWorks, "expert copies beyond one each"},
    {"--ep-dispatch-algorithm", kString, nullptr, "static|dynamic|fake|weighted", kWorks, "choice among copies"},
    {"--init-expert-location", kString, "trivial", nullptr, kWorks, "placement at start: trivial, JSON, .json or .pt"},
    {"--enable-eplb", kSwitch, nullptr, nullptr, kWorks, "rebalance experts while serving"},
    {"--eplb-algorithm", kString, "auto",
     "auto|deepseek|deepseek_hierarchical|deepseek_vec|deepseek_vec_hierarchical|elasticity_aware|tandem", kWorks,
     "how a placement is computed"},
    {"--eplb-rebalance-num-iterations", kInt, "1000", nullptr, kWorks, "steps between rebalances"},
    {"--eplb-rebalance-layers-per-chunk", kInt, nullptr, nullptr, kWorks, "layers moved per step"},
    {"--eplb-min-rebalancing-utilization-threshold", kFloat, "1.0", nullptr, kWorks, "skip when balanced better"},
    {"--enable-eplb-rebalance-async", kSwitch, nullptr, nullptr, kWorks, "plan and move in the background"},
    {"--expert-distribution-recorder-mode", kString, nullptr, "stat|stat_approx|per_pass|per_token", kWorks,
     "what is recorded of expert hits"},
    {"--expert-distribution-recorder-buffer-size", kInt, nullptr, nullptr, kWorks, "passes kept; -1: all"},
    {"--enable-expert-distribution-metrics", kSwitch, nullptr, nullptr, kWorks,
     "a line and gauges of how evenly each pass loaded the ranks"},
    {"--enable-two-batch-overlap", kSwitch, nullptr, nullptr, kWorks, "overlap exchange with compute"},
    {"--enable-single-batch-overlap", kSwitch, nullptr, nullptr, kLater, "overlap within one batch"},
    {"--tbo-token-distribution-threshold", kFloat, "0.48", nullptr, kWorks, "at most 0.5; 0: no two-chunk split"},
    // CUDA graphs and kernels.
    {"--disable-cuda-graph", kSwitch, nullptr, nullptr, kWorks, "GPU: send decode steps op by op"},
    {"--disable-cuda-graph-padding", kSwitch, nullptr, nullptr, kWorks, "GPU: graphs for just their batch sizes"},
    {"--cuda-graph-max-bs", kInt, nullptr, nullptr, kWorks, "GPU: largest decode batch with a graph"},
    {"--cuda-graph-bs", kIntList, nullptr, nullptr, kWorks, "GPU: the decode batches with graphs"},
    {"--attention-backend", kString, nullptr, kAttention, kHarmless, "there is one per device"},
    {"--prefill-attention-backend", kString, nullptr, kAttention, kHarmless, "there is one per device"},
    {"--decode-attention-backend", kString, nullptr, kAttention, kHarmless, "there is one per device"},
    {"--device", kString, "auto", "auto|cpu|cuda|xpu|hpu|npu", kWorks, "cuda: needs a build with the preset cuda"},
    // Speculative decoding.
    {"--speculative-algorithm", kString, nullptr, "EAGLE|EAGLE3|NEXTN|STANDALONE|NGRAM", kLater, "speculation"},
    {"--speculative-draft-model-path,--speculative-draft-model", kString, nullptr, nullptr, kLater, "draft model"},
    {"--speculative-num-steps", kInt, nullptr, nullptr, kLater, "draft steps"},
    {"--speculative-eagle-topk", kInt, nullptr, nullptr, kLater, "branches per step"},
    {"--speculative-num-draft-tokens", kInt, nullptr, nullptr, kLater, "tokens verified per step"},
    // Prefill and decode apart.
    {"--disaggregation-mode", kString, "null", "null|prefill|decode", kWorks, "role of this server"},
    {"--disaggregation-transfer-backend", kString, "mooncake", "mooncake|nixl|ascend|fake|ucx", kWorks,
     "mooncake, nixl and ucx: UCX serves all three; fake: no transfer"},
    {"--disaggregation-bootstrap-port", kInt, "8998", nullptr, kWorks, "prefill: KV port; decode: the default one"},
    {"--disaggregation-ib-device", kString, nullptr, nullptr, kWorks,
     "network devices of all transfers: NICs or interfaces, a JSON map of lists or its file (default: all)"},
    {"--disaggregation-decode-tp", kInt, nullptr, nullptr, kWorks, "prefill: ranks of the decode side"},
    {"--disaggregation-decode-dp", kInt, nullptr, nullptr, kWorks, "prefill: DP size of the decode side"},
    {"--disaggregation-prefill-pp", kInt, "1", nullptr, kLater, "decode: pipeline stages of the prefill side"},
    {"--disaggregation-decode-polling-interval", kInt, "1", nullptr, kHarmless, "arrivals wake the engine"},
    {"--disaggregation-decode-enable-offload-kvcache", kSwitch, nullptr, nullptr, kLater, "offload KV to the host"},
    // Ours.
    {"--config", kString, nullptr, nullptr, kWorks, "YAML file of flags; the command line wins"},
    {"--check-config", kSwitch, nullptr, nullptr, kWorks, "print the resolved configuration as JSON and exit"},
    {"--num-threads", kInt, nullptr, nullptr, kWorks, "CPU threads of the rank (default: all cores)"},
    {"--kernel-backend", kString, "auto", "auto|cpu|ref|f32|tensor", kWorks,
     "ref: the plain f32 oracle; --device cuda: f32 throughout, or tensor cores"},
    {"--cpu-isa", kString, "auto", kIsaNames, kWorks, "instruction set of the CPU kernels"},
    {"--eplb-spare-slots", kInt, nullptr, nullptr, kWorks,
     "expert places per rank kept free for moves (--enable-eplb: 8)"},
    {"--eplb-bytes-per-step", kInt, "8388608", nullptr, kWorks, "expert bytes moved per step in background mode"},
    {"--eplb-target", kFloat, "0.97", nullptr, kWorks,
     "balancedness at which --eplb-algorithm tandem leaves a layer alone"},
    {"--kv-digest-sample-rate", kFloat, "0.01", nullptr, kWorks, "share of handovers whose bytes are compared"},
#ifdef TANDEM_FAULTS
    {"--kv-read-fault", kString, nullptr, nullptr, kWorks,
     "flip|other|stale|twice:SHARE: spoils that share of the frames that bring reads"},
#endif
    {"--flight-recorder-dir", kString, nullptr, nullptr, kWorks,
     "where the ranks' flight recordings go and stay (default: a temporary directory; none: nothing is recorded)"},
    {"--drain-timeout", kFloat, "4", nullptr, kWorks, "seconds that running requests get after SIGINT or SIGTERM"},
};

}  // namespace

std::span<const Flag> server_flags() { return kFlags; }

json::Object printable(const FlagValues& flags) {
  json::Object all = flags.all();
  for (const char* key : {"api_key", "admin_api_key"}) {
    if (all.contains(key) && !all[key].is_null()) all[key] = "********";
  }
  return all;
}

}  // namespace tandem::app
