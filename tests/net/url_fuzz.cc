// Any text as a URL: a host, a port and a path that can stand in a request line, or an error.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "net/http_client.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto url = tandem::net::parse_url({reinterpret_cast<const char*>(data), size});
  if (!url) return 0;
  CHECK(!url->host.empty());
  CHECK(url->port != 0);
  CHECK(url->path.starts_with('/'));
  for (const std::string& part : {url->host, url->path}) {
    for (const char c : part) CHECK(static_cast<unsigned char>(c) > ' ');
  }
  const auto again = tandem::net::parse_url(url->origin());
  CHECK(!again || again->origin() == url->origin());
  return 0;
}
