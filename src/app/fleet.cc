#include "app/fleet.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "app/embedded_model.h"
#include "app/machine.h"
#include "app/signals.h"
#include "base/check.h"
#include "net/http_client.h"

namespace tandem::app {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPoll{50};
constexpr Duration kDrain = milliseconds(4800);  // Ctrl-C to the last process gone: under 5 s

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

std::string last_lines(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  std::string text;
  for (size_t i = lines.size() > 5 ? lines.size() - 5 : 0; i < lines.size(); ++i) text += "\n  " + lines[i];
  return text;
}

}  // namespace

Fleet::Fleet(FleetConfig config) : config_(std::move(config)) {}

Fleet::~Fleet() {
  stop();
  if (remove_logs_) std::filesystem::remove_all(log_dir_);
}

Status Fleet::start() {
  RETURN_IF_ERROR(prepare());
  const TimePoint begin = clock_.now();
  std::vector<std::string> router = {"router", "--pd-disaggregation", "--host",   config_.host,
                                     "--port", fmt::to_string(port_), "--policy", "round_robin"};
  for (const std::string role : {"prefill", "decode"}) {
    const int64_t count = role == "prefill" ? config_.num_prefill : config_.num_decode;
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t kv_port = free_port();
      ASSIGN_OR_RETURN(std::string url, start_server(role, count > 1 ? fmt::format("{}-{}", role, i) : role, kv_port));
      router.insert(router.end(), {"--" + role, url});
      if (role == "prefill") router.push_back(fmt::to_string(kv_port));
    }
  }
  for (Server& server : servers_) RETURN_IF_ERROR(wait_ready(server, begin));
  RETURN_IF_ERROR(launch("router", fmt::format("http://{}:{}", config_.host, port_), router));
  return wait_ready(servers_.back(), begin);
}

const std::string& Fleet::url() const {
  CHECK(!servers_.empty());
  return servers_.back().url;
}

std::optional<std::string> Fleet::dead() {
  for (Server& server : servers_) {
    if (std::optional<int> status = server.process.poll()) {
      return fmt::format("{} ended with status {}{}", server.name, *status, last_lines(server.process.log_path()));
    }
  }
  return std::nullopt;
}

bool Fleet::stop() {
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

Status Fleet::prepare() {
  model_ = config_.model;
  if (model_.empty()) {
    ASSIGN_OR_RETURN(model_, embedded_model_directory());
  }
  if (!config_.log_dir.empty()) {
    log_dir_ = config_.log_dir;
    std::error_code error;
    std::filesystem::create_directories(log_dir_, error);
    if (error) return invalid_input(fmt::format("{}: cannot create: {}", log_dir_, error.message()));
  } else {
    std::string name = (std::filesystem::temp_directory_path() / "tandem-fleet-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) return invalid_input(fmt::format("{}: cannot create", name));
    log_dir_ = name;
    remove_logs_ = true;
  }
  if (config_.port) {
    port_ = *config_.port;
    if (!port_is_free(port_, nullptr)) return invalid_input(fmt::format("port {} is taken: give another", port_));
  } else {
    port_ = port_is_free(30000, nullptr) ? 30000 : free_port();
  }
  return Ok{};
}

Status Fleet::launch(const std::string& name, const std::string& url, const std::vector<std::string>& args) {
  ASSIGN_OR_RETURN(ChildProcess process, ChildProcess::start(args, fmt::format("{}/{}.log", log_dir_, name)));
  servers_.push_back({name, url, std::move(process)});
  commands_.push_back(fmt::format("tandem {}", fmt::join(args, " ")));
  if (!config_.quiet && name != "router") {
    fmt::print("{:<10} starting   {}   log {}/{}.log\n", name, url, log_dir_, name);
    std::fflush(stdout);
  }
  return Ok{};
}

Result<std::string> Fleet::start_server(const std::string& role, const std::string& name, uint16_t kv_port) {
  const uint16_t port = free_port();
  const int64_t servers = config_.num_prefill + config_.num_decode;
  const int64_t threads = config_.num_threads.value_or(std::max<int64_t>(1, num_usable_cpus() / servers));
  std::vector<std::string> args = {"launch_server",
                                   "--model-path",
                                   model_,
                                   "--disaggregation-mode",
                                   role,
                                   "--host",
                                   config_.host,
                                   "--port",
                                   fmt::to_string(port),
                                   "--disaggregation-bootstrap-port",
                                   fmt::to_string(kv_port),
                                   "--num-threads",
                                   fmt::to_string(threads),
                                   "--enable-metrics"};
  const std::vector<std::string>& more = role == "prefill" ? config_.prefill_args : config_.decode_args;
  args.insert(args.end(), config_.server_args.begin(), config_.server_args.end());
  args.insert(args.end(), more.begin(), more.end());
  std::string url = fmt::format("http://{}:{}", config_.host, port);
  RETURN_IF_ERROR(launch(name, url, args));
  return url;
}

Status Fleet::wait_ready(Server& server, TimePoint begin) {
  const TimePoint deadline = begin + config_.ready_timeout;
  net::ClientRequest request;
  request.method = "GET";
  ASSIGN_OR_RETURN(request.url, net::parse_url(server.url + "/health"));
  request.connect_timeout = milliseconds(500);
  while (clock_.now() < deadline) {
    if (signals_seen() > 0) return cancelled("interrupted");
    if (std::optional<std::string> fault = dead()) return peer_lost(*fault);
    Result<net::HttpResponse> answer = net::fetch(request, std::chrono::seconds(2));
    if (answer && answer->status == 200) {
      if (!config_.quiet) {
        fmt::print("{:<10} ready      {}   after {:.1f} s\n", server.name, server.url, seconds(clock_.now() - begin));
        std::fflush(stdout);
      }
      return Ok{};
    }
    std::this_thread::sleep_for(kPoll);
  }
  return timed_out(fmt::format("{} was not ready after {} s{}", server.name, seconds(config_.ready_timeout),
                               last_lines(server.process.log_path())));
}

}  // namespace tandem::app
