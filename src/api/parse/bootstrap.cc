#include "api/parse/bootstrap.h"

#include <fmt/format.h>

#include <limits>

namespace tandem::api {
namespace {

constexpr int64_t kMaxRoom = std::numeric_limits<int64_t>::max();

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
    RETURN_IF_ERROR(read_one_or_many(value, key, host, to_string));
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
  size_t prompts = call.items.size();
  auto wrong_length = [&](std::string_view name, size_t length) {
    call.refuse(fmt::format("The length of {} ({}) should be equal to the batch size ({}).", name, length, prompts));
  };
  if (!fits(host, prompts)) return wrong_length("bootstrap_host", host.values.size());
  if (!fits(port, prompts)) return wrong_length("bootstrap_port", port.values.size());
  if (!fits(room, prompts)) return wrong_length("bootstrap_room", room.values.size());
  for (size_t i = 0; i < prompts; ++i) {
    BootstrapInfo& info = call.items[i].bootstrap;
    info.host = host.at(i, "");
    info.port = port.at(i, std::nullopt);
    info.room = room.at(i, std::nullopt);
    if (info.room && !room.is_list) info.room = (*info.room + i) & static_cast<uint64_t>(kMaxRoom);
  }
}

}  // namespace tandem::api
