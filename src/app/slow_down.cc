// tandem slow_down: /slow_down to decode instances, named or found at a router.
#include <fmt/format.h>

#include <algorithm>

#include "app/commands.h"
#include "app/flags.h"
#include "app/instances.h"
#include "net/http_client.h"

namespace tandem::app {
namespace {

using enum FlagKind;
using enum FlagSupport;

constexpr Flag kFlags[] = {
    {"--url", kStringList, nullptr, nullptr, kWorks, "servers to slow down"},
    {"--router", kString, nullptr, nullptr, kWorks, "a router whose decode servers are slowed down"},
    {"--sleep", kString, nullptr, nullptr, kWorks, "seconds before each step; null: full speed again"},
    {"--api-key", kString, nullptr, nullptr, kWorks, "sent to router and servers"},
    {"--timeout", kFloat, "30", nullptr, kWorks, "seconds that a server may take to answer"},
};

struct Order {
  std::vector<std::string> urls;
  std::string body, words;
  InstanceAccess access;
};

Result<Order> read_order(const FlagValues& flags) {
  Order order;
  if (!flags.has("sleep")) return invalid_input("argument --sleep is required: seconds or null");
  const std::string sleep = flags.text("sleep");
  double seconds = 0;
  if (sleep != "null") {
    const Result<json::Document> number = json::Document::parse(sleep, "--sleep");
    if (!number || number->root().get(seconds) != simdjson::SUCCESS || !(seconds >= 0)) {
      return invalid_input(fmt::format("argument --sleep: '{}' is neither a number of seconds nor null", sleep));
    }
  }
  order.body = fmt::format(R"({{"forward_sleep_time": {}}})", sleep);
  order.words = seconds > 0 ? fmt::format("sleeps {} s before each step", sleep) : "runs at full speed";
  if (flags.has("api_key")) order.access.api_key = flags.text("api_key");
  if (!(flags.number("timeout") > 0)) return invalid_input("argument --timeout: should be more than 0");
  order.access.timeout = from_seconds(flags.number("timeout"));
  if (flags.has("url")) order.urls = flags.texts("url");
  if (flags.has("router")) {
    ASSIGN_OR_RETURN(const std::vector<std::string> found, decode_instances(flags.text("router"), order.access));
    order.urls.insert(order.urls.end(), found.begin(), found.end());
  }
  if (order.urls.empty()) return invalid_input("which servers? --url URL ... or --router URL");
  return order;
}

// Every server is told, also after one that did not take it.
int give(const Order& order) {
  int status = 0;
  for (const std::string& url : order.urls) {
    const Result<std::string> answer = ask_instance("POST", url, "/slow_down", order.body, order.access);
    fmt::print(answer ? stdout : stderr, "{}  {}\n", url, answer ? order.words : "failed: " + answer.error().message);
    if (!answer) status = 1;
  }
  return status;
}

}  // namespace

int run_slow_down(Args args) {
  Result<ParseOutcome> parsed =
      parse_flags("slow_down", "Makes servers sleep before each step, so that requests collect.", kFlags, args);
  if (parsed && parsed->help_shown) return 0;
  const Result<Order> order = parsed ? read_order(parsed->values) : Result<Order>(parsed.error());
  if (order) return give(*order);
  fmt::print(stderr, "tandem slow_down: error: {}\n", order.error().message);
  return 2;
}

}  // namespace tandem::app
