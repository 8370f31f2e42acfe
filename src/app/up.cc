// tandem up: prefill server, decode server and router as child processes on this machine.
#include <fmt/format.h>

#include <cstdio>
#include <sstream>
#include <thread>
#include <tuple>

#include "app/bench.h"
#include "app/commands.h"
#include "app/flags.h"
#include "app/fleet.h"
#include "app/signals.h"
#include "base/json.h"
#include "loadgen/bench_serving.h"
#include "net/http_client.h"
#include "net/sse.h"

namespace tandem::app {
namespace {

using std::chrono::milliseconds;
using enum FlagKind;
using enum FlagSupport;

constexpr Flag kFlags[] = {
    {"--model-path,--model", kString, nullptr, nullptr, kWorks, "Hugging Face directory (default: the embedded model)"},
    {"--host", kString, "127.0.0.1", nullptr, kWorks, "address of all servers"},
    {"--port", kInt, nullptr, nullptr, kWorks, "port of the router (default 30000, or a free one when that is taken)"},
    {"--num-prefill", kInt, "1", nullptr, kWorks, "prefill servers"},
    {"--num-decode", kInt, "1", nullptr, kWorks, "decode servers"},
    {"--num-threads", kInt, nullptr, nullptr, kWorks, "CPU threads per server (default: the cores shared out)"},
    {"--page-size", kInt, "16", nullptr, kWorks, "tokens per KV block"},
    {"--server-args", kString, "", nullptr, kWorks, "more launch_server flags, for every server"},
    {"--bench", kSwitch, nullptr, nullptr, kWorks, "stream one chat answer, run a short benchmark and exit"},
    {"--num-prompts", kInt, "64", nullptr, kWorks, "requests of that benchmark"},
    {"--max-concurrency", kInt, "16", nullptr, kWorks, "requests at a time of that benchmark"},
    {"--log-dir", kString, nullptr, nullptr, kWorks,
     "where the servers' logs go (default: a folder removed at the end)"},
    {"--ready-timeout", kFloat, "600", nullptr, kWorks, "seconds until every server must be ready"},
};

constexpr milliseconds kPoll{50};

FleetConfig fleet_config(const FlagValues& flags) {
  FleetConfig config;
  config.host = flags.text("host");
  if (flags.has("model_path")) config.model = flags.text("model_path");
  if (flags.has("port")) config.port = uint16_t(flags.integer("port"));
  config.num_prefill = flags.integer("num_prefill");
  config.num_decode = flags.integer("num_decode");
  if (flags.has("num_threads")) config.num_threads = flags.integer("num_threads");
  config.server_args = {"--page-size", fmt::to_string(flags.integer("page_size"))};
  std::istringstream more(flags.text("server_args"));
  for (std::string word; more >> word;) config.server_args.push_back(word);
  if (flags.has("log_dir")) config.log_dir = flags.text("log_dir");
  config.ready_timeout = from_seconds(flags.number("ready_timeout"));
  return config;
}

// Posts one chat request and prints the answer's text as it comes.
Status stream_chat(const std::string& url, const std::string& question) {
  json::Object message, body;
  message["role"] = "user";
  message["content"] = question;
  body["model"] = "default";
  body["messages"] = json::Array{message};
  body["stream"] = true;
  body["temperature"] = 0;
  body["max_tokens"] = 64;

  net::EventLoop loop;
  net::HttpClient client(loop);
  net::ClientRequest request;
  ASSIGN_OR_RETURN(request.url, net::parse_url(url + "/v1/chat/completions"));
  request.headers = {{"Content-Type", "application/json"}};
  request.body = std::make_shared<const std::string>(json::dump(body));
  request.idle_timeout = std::chrono::seconds(30);

  int status = 0;
  std::string refused;
  size_t printed = 0;
  Status outcome = timed_out("no answer");
  net::SseParser events;
  net::ClientHandlers handlers;
  handlers.on_headers = [&](int code, const net::Headers&) { status = code; };
  handlers.on_body = [&](std::string_view bytes) {
    if (status != 200) {
      refused.append(bytes);
      return;
    }
    events.feed(bytes, [&](std::string_view data) {
      if (data == "[DONE]") return;
      Result<json::Document> event = json::Document::parse(data, "event");
      std::string_view text;
      if (event && !event->root()["choices"].at(0)["delta"]["content"].get(text)) {
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
        printed += text.size();
      }
    });
  };
  handlers.on_done = [&](Status done) {
    outcome = std::move(done);
    loop.stop();
  };
  fmt::print("\nuser:      {}\nassistant: ", question);
  std::shared_ptr<net::ClientCall> call;
  loop.post([&] { call = client.start(std::move(request), std::move(handlers)); });
  loop.run();
  std::puts("\n");
  RETURN_IF_ERROR(outcome);
  if (status != 200) return peer_lost(fmt::format("the chat request got status {}: {}", status, refused));
  if (printed == 0) return peer_lost("the chat answer held no text");
  return Ok{};
}

Status run_short_bench(const Fleet& fleet, const FlagValues& flags) {
  loadgen::BenchConfig config;
  config.base_url = fleet.url();
  config.dataset_name = "random-ids";
  config.tokenizer = fleet.model();
  config.num_prompts = int32_t(flags.integer("num_prompts"));
  config.max_concurrency = int32_t(flags.integer("max_concurrency"));
  config.random_input_len = 256;
  config.random_output_len = 64;
  config.random_range_ratio = 1.0;
  config.save_results = false;
  return run_and_print(config);
}

void print_hints(const Fleet& fleet) {
  fmt::print(
      "\nServing at {0}. Try:\n"
      "  curl {0}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of Japan?\"}}], \"stream\": "
      "true}}'\n"
      "  curl {0}/generate -H 'Content-Type: application/json' \\\n"
      "    -d '{{\"text\": \"In the beginning\", \"sampling_params\": {{\"temperature\": 0, \"max_new_tokens\": "
      "32}}}}'\n"
      "  curl {0}/get_server_info\n"
      "Logs in {1}. Ctrl-C drains and stops.\n",
      fleet.url(), fleet.log_dir());
  std::fflush(stdout);
}

Status serve_until_signal(Fleet& fleet) {
  print_hints(fleet);
  while (signals_seen() == 0) {
    if (std::optional<std::string> fault = fleet.dead()) return peer_lost(*fault);
    std::this_thread::sleep_for(kPoll);
  }
  std::puts("\ndraining");
  return Ok{};
}

Status run_fleet(const FlagValues& flags) {
  Fleet fleet(fleet_config(flags));
  Status done = fleet.start();
  if (done && flags.enabled("bench")) {
    done = stream_chat(fleet.url(), "What is the capital of Japan?");
    if (done) done = run_short_bench(fleet, flags);
  } else if (done) {
    done = serve_until_signal(fleet);
  }
  const bool interrupted = signals_seen() > 0;
  if (!done && !interrupted) {
    fleet.keep_logs();
    return Error{done.error().code, fmt::format("{} (logs in {})", done.error().message, fleet.log_dir())};
  }
  if (!fleet.stop() && !interrupted) {
    fleet.keep_logs();
    return peer_lost(fmt::format("a server did not stop cleanly (logs in {})", fleet.log_dir()));
  }
  std::puts("stopped");
  return Ok{};
}

}  // namespace

int run_up(Args args) {
  Result<ParseOutcome> parsed =
      parse_flags("up", "Starts prefill server(s), decode server(s) and the router on this machine.", kFlags, args);
  if (!parsed) {
    fmt::print(stderr, "tandem up: error: {}\n", parsed.error().message);
    return 2;
  }
  if (parsed->help_shown) return 0;
  for (const auto& [field, low, high] : {std::tuple{"port", 1, 65535}, std::tuple{"num_prefill", 1, 64},
                                         std::tuple{"num_decode", 1, 64}, std::tuple{"num_threads", 1, 1024}}) {
    if (!parsed->values.has(field)) continue;
    const int64_t value = parsed->values.integer(field);
    if (value >= low && value <= high) continue;
    fmt::print(stderr, "tandem up: error: --{}: wanted {} to {}, got {}\n", field, low, high, value);
    return 2;
  }
  watch_signals();
  Status done = run_fleet(parsed->values);
  if (done) return 0;
  fmt::print(stderr, "tandem up: error: {}\n", done.error().message);
  return done.error().code == ErrorCode::kInvalidInput ? 2 : 1;
}

}  // namespace tandem::app
