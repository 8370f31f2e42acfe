// Network devices by the names that people give them: UCX's own ("eth0", "mlx5_0:1") and an RDMA NIC's ("mlx5_0"),
// which over TCP means the network interfaces that belong to it.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "transport/ucx.h"

namespace tandem::transport {
namespace {

std::vector<std::string> interfaces_of_nic(const std::string& nic) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/class/infiniband/" + nic + "/device/net", error)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

}  // namespace

std::vector<std::string> ucx_names_of_device(const std::string& device) {
  std::vector<std::string> names = {device};
  const std::string nic = device.substr(0, device.find(':'));
  if (nic.empty() || nic.find('/') != std::string::npos || nic == "." || nic == "..") return names;
  const std::vector<std::string> interfaces = interfaces_of_nic(nic);
  if (device.find(':') == std::string::npos && !interfaces.empty()) names.push_back(device + ":1");
  names.insert(names.end(), interfaces.begin(), interfaces.end());
  return names;
}

// UCX 1.13 tells a context's resources in print only.
std::vector<NetworkDevice> devices_of_context(ucp_context_h ucp) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* stream = open_memstream(&text, &size);
  if (stream == nullptr) return {};
  ucp_context_print_info(ucp, stream);
  std::fclose(stream);
  const std::unique_ptr<char, decltype(&std::free)> owned(text, &std::free);
  std::vector<NetworkDevice> devices;
  std::string_view rest(text, size);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(rest.size(), end + 1));
    const size_t mark = line.find("-- ");
    const size_t slash = line.find('/', mark);
    if (mark == std::string_view::npos || slash == std::string_view::npos) continue;
    NetworkDevice device{std::string(line.substr(mark + 3, slash - mark - 3)), std::string(line.substr(slash + 1))};
    while (device.name.ends_with(' ')) device.name.pop_back();
    if (device.transport != "self") devices.push_back(std::move(device));
  }
  return devices;
}

std::string list_of(const std::vector<NetworkDevice>& devices) {
  std::string text;
  for (const NetworkDevice& device : devices) {
    text += fmt::format("{}{}/{}", text.empty() ? "" : ", ", device.transport, device.name);
  }
  return text.empty() ? "none" : text;
}

}  // namespace tandem::transport
