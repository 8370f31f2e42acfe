#include "api/parse/bootstrap.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace tandem::api {
namespace {

constexpr size_t kMaxHostBytes = 255;  // of a name in DNS
constexpr int64_t kMaxRoom = std::numeric_limits<int64_t>::max();

// What may be a name or an address at all: it gets into logs and to the resolver.
Result<std::string> read_host(Element value, std::string_view path) {
  ASSIGN_OR_RETURN(std::string host, to_string(value, path));
  if (host.size() > kMaxHostBytes) return corrupt(fmt::format("{}: longer than {} bytes", path, kMaxHostBytes));
  const auto is_odd = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == '\x7f'; };
  if (std::any_of(host.begin(), host.end(), is_odd)) return corrupt(fmt::format("{}: is not a host", path));
  return host;
}

Result<std::optional<uint16_t>> read_port(Element value, std::string_view path) {
  if (value.is_null()) return std::optional<uint16_t>();
  ASSIGN_OR_RETURN(int64_t port, to_int(value, path, 0, 65535));
  return std::optional<uint16_t>(static_cast<uint16_t>(port));
}

Result<std::optional<uint64_t>> read_room(Element value, std::string_view path) {
  if (value.is_null()) return std::optional<uint64_t>();
  ASSIGN_OR_RETURN(int64_t room, to_int(value, path, 0, kMaxRoom));
  return std::optional<uint64_t>(static_cast<uint64_t>(room));
}

}  // namespace

Result<bool> BootstrapFields::read(const std::string& key, Element value) {
  if (key == "bootstrap_host") {
    RETURN_IF_ERROR(read_one_or_many(value, key, host, read_host));
  } else if (key == "bootstrap_port") {
    RETURN_IF_ERROR(read_one_or_many(value, key, port, read_port));
  } else if (key == "bootstrap_room") {
    RETURN_IF_ERROR(read_one_or_many(value, key, room, read_room));
  } else {
    return false;
  }
  return true;
}

void BootstrapFields::spread(Call& call) const {
  size_t prompts = call.items.size(), n = static_cast<size_t>(std::max(1, call.n));
  auto wrong_length = [&](std::string_view name, size_t length) {
    call.refuse(fmt::format("The length of {} ({}) should be equal to the batch size ({}).", name, length, prompts));
  };
  if (!fits(host, prompts, n)) return wrong_length("bootstrap_host", host.values.size());
  if (!fits(port, prompts, n)) return wrong_length("bootstrap_port", port.values.size());
  if (!fits(room, prompts, n)) return wrong_length("bootstrap_room", room.values.size());
  // Where item i's entries begin: both legs get the same lists, so both take the same ones.
  auto at = [&](const auto& field, size_t i, auto fallback) {
    return field.at(field.values.size() == prompts ? i : i * n, fallback);
  };
  for (size_t i = 0; i < prompts; ++i) {
    BootstrapInfo& info = call.items[i].bootstrap;
    info.host = at(host, i, std::string());
    info.port = at(port, i, std::optional<uint16_t>());
    info.room = at(room, i, std::optional<uint64_t>());
    if (info.room && !room.is_list) info.room = (*info.room + i) & static_cast<uint64_t>(kMaxRoom);
  }
}

}  // namespace tandem::api
