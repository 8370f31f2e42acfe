// One small question to an instance (health, info, metrics), with a deadline. The loop's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "router/fleet.h"

namespace tandem::router {

struct Question {
  std::string method = "GET";
  std::string path;
  std::shared_ptr<const std::string> body;
  net::Headers headers;
  Duration timeout = std::chrono::seconds(5);
};

struct Reply {
  std::shared_ptr<Instance> instance;
  int status = 0;  // 0: none came
  std::string content_type;
  std::string body;     // at most 64 MiB
  std::string failure;  // why none, or none complete
  bool ok() const { return failure.empty() && status >= 200 && status < 300; }
};

// on_reply is called exactly once, unless the fleet goes before. Carries the router's API key.
void ask(Fleet& fleet, std::shared_ptr<Instance> instance, Question question, std::function<void(Reply)> on_reply);

// The same to many at once; replies in the order of `instances`, when the last one is there.
void ask_all(Fleet& fleet, std::vector<std::shared_ptr<Instance>> instances, Question question,
             std::function<void(std::vector<Reply>)> on_replies);

}  // namespace tandem::router
