// tandem up: prefill server, decode server and router as child processes on this machine.
#include <dirent.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <netinet/in.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>
#include <tuple>

#include "app/bench.h"
#include "app/child_process.h"
#include "app/commands.h"
#include "app/embedded_model.h"
#include "app/flags.h"
#include "app/machine.h"
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
constexpr Duration kDrain = std::chrono::milliseconds(4800);  // Ctrl-C to the last process gone: under 5 s

bool port_is_free(uint16_t port, uint16_t* chosen) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(port);
  bool free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  socklen_t size = sizeof(address);
  if (free && chosen != nullptr && getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
    *chosen = ntohs(address.sin_port);
  }
  close(fd);
  return free;
}

uint16_t free_port() {
  uint16_t port = 0;
  CHECK(port_is_free(0, &port));
  return port;
}

struct Server {
  std::string name;
  std::string url;
  ChildProcess process;
};

class Fleet {
 public:
  explicit Fleet(const FlagValues& flags) : flags_(flags), host_(flags.text("host")) {}
  ~Fleet() {
    stop();
    if (remove_logs_) std::filesystem::remove_all(log_dir_);
  }

  Status start() {
    RETURN_IF_ERROR(prepare());
    const TimePoint begin = clock_.now();
    std::vector<std::string> router = {"router", "--pd-disaggregation", "--host",   host_,
                                       "--port", fmt::to_string(port_), "--policy", "round_robin"};
    for (const char* role : {"prefill", "decode"}) {
      int64_t count = flags_.integer(role == std::string("prefill") ? "num_prefill" : "num_decode");
      for (int64_t i = 0; i < count; ++i) {
        const uint16_t kv_port = free_port();
        ASSIGN_OR_RETURN(std::string url,
                         start_server(role, count > 1 ? fmt::format("{}-{}", role, i) : role, kv_port));
        router.insert(router.end(), {"--" + std::string(role), url});
        if (role == std::string("prefill")) router.push_back(fmt::to_string(kv_port));
      }
    }
    for (Server& server : servers_) RETURN_IF_ERROR(wait_ready(server, begin));
    ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::start(router, log_dir_ + "/router.log"));
    servers_.push_back({"router", fmt::format("http://{}:{}", host_, port_), std::move(process)});
    return wait_ready(servers_.back(), begin);
  }

  const std::string& url() const { return servers_.back().url; }
  const std::string& log_dir() const { return log_dir_; }
  const std::string& model() const { return model_; }
  void keep_logs() { remove_logs_ = false; }

  // The first server that has ended by itself.
  std::optional<std::string> dead() {
    for (Server& server : servers_) {
      if (std::optional<int> status = server.process.poll()) {
        return fmt::format("{} ended with status {}{}", server.name, *status, last_lines(server.process.log_path()));
      }
    }
    return std::nullopt;
  }

  // Router first, so that nothing new arrives, then the servers; whoever is left at the deadline is killed.
  bool stop() {
    const TimePoint deadline = clock_.now() + kDrain;
    bool clean = true;
    for (auto server = servers_.rbegin(); server != servers_.rend(); ++server) server->process.terminate();
    for (auto server = servers_.rbegin(); server != servers_.rend(); ++server) {
      while (!server->process.poll() && clock_.now() < deadline) std::this_thread::sleep_for(kPoll);
      if (!server->process.poll()) server->process.kill();
      clean = clean && server->process.poll() == 0;
    }
    servers_.clear();
    return clean;
  }

 private:
  Status prepare() {
    if (flags_.has("model_path")) {
      model_ = flags_.text("model_path");
    } else {
      ASSIGN_OR_RETURN(model_, embedded_model_directory());
    }
    if (flags_.has("log_dir")) {
      log_dir_ = flags_.text("log_dir");
      std::error_code error;
      std::filesystem::create_directories(log_dir_, error);
      if (error) return invalid_input(fmt::format("{}: cannot create: {}", log_dir_, error.message()));
    } else {
      std::string name = (std::filesystem::temp_directory_path() / "tandem-up-XXXXXX").string();
      if (mkdtemp(name.data()) == nullptr) return invalid_input(fmt::format("{}: cannot create", name));
      log_dir_ = name;
      remove_logs_ = true;
    }
    if (flags_.has("port")) {
      port_ = uint16_t(flags_.integer("port"));
      if (!port_is_free(port_, nullptr))
        return invalid_input(fmt::format("port {} is taken: give another --port", port_));
    } else {
      port_ = port_is_free(30000, nullptr) ? 30000 : free_port();
    }
    return Ok{};
  }

  Result<std::string> start_server(const std::string& role, const std::string& name, uint16_t kv_port) {
    const uint16_t port = free_port();
    const int64_t servers = flags_.integer("num_prefill") + flags_.integer("num_decode");
    const int64_t threads =
        flags_.has("num_threads") ? flags_.integer("num_threads") : std::max<int64_t>(1, num_usable_cpus() / servers);
    std::vector<std::string> args = {"launch_server",
                                     "--model-path",
                                     model_,
                                     "--disaggregation-mode",
                                     role,
                                     "--host",
                                     host_,
                                     "--port",
                                     fmt::to_string(port),
                                     "--disaggregation-bootstrap-port",
                                     fmt::to_string(kv_port),
                                     "--page-size",
                                     fmt::to_string(flags_.integer("page_size")),
                                     "--num-threads",
                                     fmt::to_string(threads),
                                     "--enable-metrics"};
    std::istringstream more(flags_.text("server_args"));
    for (std::string word; more >> word;) args.push_back(word);
    ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::start(args, fmt::format("{}/{}.log", log_dir_, name)));
    std::string url = fmt::format("http://{}:{}", host_, port);
    servers_.push_back({name, url, std::move(process)});
    fmt::print("{:<10} starting   {}   log {}/{}.log\n", name, url, log_dir_, name);
    std::fflush(stdout);
    return url;
  }

  Status wait_ready(Server& server, TimePoint begin) {
    const TimePoint deadline = begin + from_seconds(flags_.number("ready_timeout"));
    net::ClientRequest request;
    request.method = "GET";
    ASSIGN_OR_RETURN(request.url, net::parse_url(server.url + "/health"));
    request.connect_timeout = milliseconds(500);
    while (clock_.now() < deadline) {
      if (signals_seen() > 0) return cancelled("interrupted");
      if (std::optional<std::string> fault = dead()) return peer_lost(*fault);
      Result<net::HttpResponse> answer = net::fetch(request, std::chrono::seconds(2));
      if (answer && answer->status == 200) {
        fmt::print("{:<10} ready      {}   after {:.1f} s\n", server.name, server.url, seconds(clock_.now() - begin));
        std::fflush(stdout);
        return Ok{};
      }
      std::this_thread::sleep_for(kPoll);
    }
    return timed_out(fmt::format("{} was not ready after {} s{}", server.name, flags_.number("ready_timeout"),
                                 last_lines(server.process.log_path())));
  }

  static std::string last_lines(const std::string& path) {
    std::ifstream file(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    std::string text;
    for (size_t i = lines.size() > 5 ? lines.size() - 5 : 0; i < lines.size(); ++i) text += "\n  " + lines[i];
    return text;
  }

  const FlagValues& flags_;
  const SystemClock clock_;
  const std::string host_;
  std::string model_, log_dir_;
  bool remove_logs_ = false;
  uint16_t port_ = 0;
  std::vector<Server> servers_;
};

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
  Fleet fleet(flags);
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
