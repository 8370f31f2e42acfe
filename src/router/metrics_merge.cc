#include "router/metrics_merge.h"

#include <map>

namespace tandem::router {

namespace {

struct Family {
  std::string help, type, samples;
};

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == ':';
}

// Samples of a histogram or summary belong to the family without their suffix.
std::string_view family_name(std::string_view sample, const std::map<std::string, Family, std::less<>>& families) {
  for (std::string_view suffix : {"_bucket", "_count", "_sum"}) {
    if (!sample.ends_with(suffix)) continue;
    std::string_view base = sample.substr(0, sample.size() - suffix.size());
    auto family = families.find(base);
    if (family != families.end() &&
        (family->second.type.ends_with("histogram") || family->second.type.ends_with("summary"))) {
      return base;
    }
  }
  return sample;
}

std::string escaped_label(std::string_view value) {
  std::string out;
  for (char c : value) {
    if (c == '\\' || c == '"') out.push_back('\\');
    out += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return out;
}

}  // namespace

std::string merge_metrics(const std::vector<std::pair<std::string, std::string_view>>& pages) {
  std::map<std::string, Family, std::less<>> families;
  std::vector<std::string> order;
  auto family = [&](std::string_view name) -> Family& {
    auto [entry, is_new] = families.try_emplace(std::string(name));
    if (is_new) order.emplace_back(name);
    return entry->second;
  };
  for (const auto& [address, page] : pages) {
    const std::string label = "worker_addr=\"" + escaped_label(address) + "\"";
    for (size_t at = 0; at < page.size();) {
      size_t end = std::min(page.find('\n', at), page.size());
      std::string_view line = page.substr(at, end - at);
      at = end + 1;
      const bool help = line.starts_with("# HELP "), type = line.starts_with("# TYPE ");
      if (help || type) {
        std::string_view name = line.substr(7, line.find(' ', 7) - 7);
        std::string& text = help ? family(name).help : family(name).type;
        if (text.empty()) text = line;
        continue;
      }
      size_t name_size = 0;
      while (name_size < line.size() && is_name_char(line[name_size])) ++name_size;
      if (name_size == 0 || name_size == line.size()) continue;
      std::string_view name = line.substr(0, name_size), rest = line.substr(name_size);
      std::string& samples = family(family_name(name, families)).samples;
      samples.append(name).append("{").append(label);
      if (rest[0] == '{') {
        rest.remove_prefix(1);
        samples.append(rest.starts_with('}') ? "" : ",").append(rest);
      } else {
        samples.append("}").append(rest);
      }
      samples.push_back('\n');
    }
  }
  std::string out;
  for (const std::string& name : order) {
    const Family& f = families[name];
    if (f.samples.empty()) continue;
    if (!f.help.empty()) out.append(f.help).push_back('\n');
    if (!f.type.empty()) out.append(f.type).push_back('\n');
    out.append(f.samples);
  }
  return out;
}

}  // namespace tandem::router
