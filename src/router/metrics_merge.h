// Many instances' Prometheus pages as one: each sample gets a worker_addr label, each family is described once. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tandem::router {

// pages: (instance's address, its /metrics text). Lines that are no Prometheus text are dropped.
std::string merge_metrics(const std::vector<std::pair<std::string, std::string_view>>& pages);

}  // namespace tandem::router
