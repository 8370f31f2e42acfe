#include <fmt/format.h>

#include <charconv>

#include "net/http_client.h"

namespace tandem::net {

std::string Url::origin() const {
  if (host.find(':') != std::string::npos) return fmt::format("http://[{}]:{}", host, port);
  return fmt::format("http://{}:{}", host, port);
}

Result<Url> parse_url(std::string_view text) {
  auto bad = [&](std::string_view why) { return invalid_input(fmt::format("URL '{}': {}", text, why)); };
  std::string_view rest = text;
  for (char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f) return bad("has a space or a control character");
  }
  if (size_t scheme = rest.find("://"); scheme != std::string_view::npos) {
    std::string_view name = rest.substr(0, scheme);
    if (name == "https") return bad("https is not supported, put a TLS proxy in front or use http");
    if (name != "http") return bad("the scheme is not http");
    rest.remove_prefix(scheme + 3);
  }
  Url url;
  size_t slash = rest.find_first_of("/?#");
  std::string_view authority = rest.substr(0, slash);
  if (slash != std::string_view::npos) {
    std::string_view path = rest.substr(slash);
    path = path.substr(0, path.find('#'));
    url.path = path.starts_with('/') ? std::string(path) : "/" + std::string(path);
  }
  if (authority.find('@') != std::string_view::npos) return bad("user names in URLs are not supported");
  std::string_view port;
  if (authority.starts_with('[')) {
    size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad("'[' without ']'");
    url.host = authority.substr(1, close - 1);
    port = authority.substr(close + 1);
    if (!port.empty() && port[0] != ':') return bad("wanted ':PORT' after ']'");
  } else {
    size_t colon = authority.find(':');
    url.host = authority.substr(0, colon);
    if (colon != std::string_view::npos) port = authority.substr(colon);
  }
  if (url.host.empty()) return bad("no host");
  if (!port.empty()) {
    port.remove_prefix(1);
    auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
    if (error != std::errc() || end != port.data() + port.size() || url.port == 0) {
      return bad("the port is not a number from 1 to 65535");
    }
  }
  return url;
}

}  // namespace tandem::net
