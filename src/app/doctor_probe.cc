#include "app/doctor_probe.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "net/http_client.h"
#include "transport/transport.h"

namespace tandem::app {
namespace {

std::optional<uint64_t> limit_of(int which) {
  rlimit limit{};
  if (getrlimit(which, &limit) != 0) return std::nullopt;
  return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : uint64_t(limit.rlim_cur);
}

// "always [madvise] never": the one in brackets.
std::optional<std::string> chosen_in(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const size_t begin = line.find('['), end = line.find(']');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return std::nullopt;
  return line.substr(begin + 1, end - begin - 1);
}

std::string text_of(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address->sa_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof(text));
  } else if (address->sa_family == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text, sizeof(text));
  }
  return text;
}

std::string interface_with(const std::string& address) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return "";
  std::string name;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr != nullptr && text_of(one->ifa_addr) == address) name = one->ifa_name;
  }
  freeifaddrs(all);
  return name;
}

}  // namespace

MachineFacts machine_facts() {
  MachineFacts facts;
  struct statvfs shm {};
  if (statvfs("/dev/shm", &shm) == 0) facts.shm_bytes = uint64_t(shm.f_blocks) * shm.f_frsize;
  facts.memlock_bytes = limit_of(RLIMIT_MEMLOCK);
  facts.open_files = limit_of(RLIMIT_NOFILE);
  int64_t overcommit = 0;
  if (std::ifstream("/proc/sys/vm/overcommit_memory") >> overcommit) facts.overcommit = overcommit;
  facts.huge_pages = chosen_in("/sys/kernel/mm/transparent_hugepage/enabled");
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/class/infiniband", error)) {
    facts.rdma_nics.push_back(entry.path().filename().string());
  }
  std::sort(facts.rdma_nics.begin(), facts.rdma_nics.end());
  return facts;
}

Status try_bind(const std::string& host, uint16_t port) {
  ASSIGN_OR_RETURN(const transport::SocketAddress address, transport::resolve(host, port));
  const auto* where = reinterpret_cast<const sockaddr*>(address.bytes.data());
  const int tried = socket(where->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (tried < 0) return exhausted(fmt::format("socket: {}", std::strerror(errno)));
  // As the servers do, so that connections that linger from an earlier one do not count.
  const int yes = 1;
  setsockopt(tried, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  const bool bound = bind(tried, where, socklen_t(address.bytes.size())) == 0 && listen(tried, 1) == 0;
  const int reason = errno;
  close(tried);
  if (!bound) return exhausted(std::strerror(reason));
  return Ok{};
}

RouteFact route_to(const std::string& host) {
  RouteFact fact;
  fact.host = host;
  const auto ask = [&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(const transport::SocketAddress address, transport::resolve(host, 1));
    return transport::local_host_towards(address);
  };
  fact.own_address = ask();
  if (!fact.own_address) return fact;
  fact.interface = interface_with(*fact.own_address);
  std::ifstream("/sys/class/net/" + fact.interface + "/mtu") >> fact.mtu;
  return fact;
}

std::optional<int64_t> parse_http_date(const std::string& text) {
  std::tm parts{};
  const char* end = strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  if (end == nullptr || *end != '\0') return std::nullopt;
  return int64_t(timegm(&parts));
}

Result<InstanceFact> ask_instance(const std::string& url, Duration timeout) {
  net::ClientRequest request;
  request.method = "GET";
  ASSIGN_OR_RETURN(request.url, net::parse_url(url));
  request.url.path = "/health";
  const SystemClock clock;
  const double before_s = clock.unix_seconds();
  ASSIGN_OR_RETURN(const net::HttpResponse answer, net::fetch(std::move(request), timeout));
  InstanceFact fact;
  fact.status = answer.status;
  for (const auto& [name, value] : answer.headers) {
    std::string lower = name;
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
    const auto date = lower == "date" ? parse_http_date(value) : std::nullopt;
    // The header has whole seconds, cut: half a second is added for the mean.
    if (date) fact.skew_s = double(*date) + 0.5 - (before_s + clock.unix_seconds()) / 2;
  }
  return fact;
}

}  // namespace tandem::app
