#include "router/ask.h"

#include <fmt/format.h>

#include <utility>

namespace tandem::router {

namespace {

constexpr size_t kMaxReply = 64 << 20;

// Kept alive by the call's handlers until the reply is there.
struct Pending {
  Reply reply;
  std::function<void(Reply)> on_reply;
  std::shared_ptr<net::ClientCall> call;
  std::shared_ptr<net::EventLoop::Timer> deadline;

  void finish(std::string failure) {
    if (!on_reply) return;
    reply.failure = std::move(failure);
    auto tell = std::exchange(on_reply, nullptr);
    auto ended = std::exchange(call, nullptr);
    deadline.reset();
    tell(std::move(reply));
  }
};

}  // namespace

void ask(Fleet& fleet, std::shared_ptr<Instance> instance, Question question, std::function<void(Reply)> on_reply) {
  auto url = net::parse_url(instance->address.url);
  CHECK(url.has_value());  // it was made by parse_url
  net::ClientRequest request{.method = question.method, .url = std::move(url).value(), .headers = question.headers};
  request.url.path = question.path;
  request.body = question.body;
  request.connect_timeout = question.timeout;
  bool authorized = false;
  for (const auto& [name, value] : request.headers) {
    authorized = authorized || net::equals_ignoring_case(name, "authorization");
  }
  if (!authorized && !fleet.config.api_key.empty()) {
    request.headers.emplace_back("Authorization", "Bearer " + fleet.config.api_key);
  }
  auto pending = std::make_shared<Pending>();
  pending->reply.instance = std::move(instance);
  pending->on_reply = std::move(on_reply);
  net::ClientHandlers handlers;
  handlers.on_headers = [pending](int status, const net::Headers& headers) {
    pending->reply.status = status;
    for (const auto& [name, value] : headers) {
      if (net::equals_ignoring_case(name, "content-type")) pending->reply.content_type = value;
    }
  };
  handlers.on_body = [pending](std::string_view bytes) {
    if (pending->reply.body.size() + bytes.size() > kMaxReply) return pending->finish("the answer is too large");
    pending->reply.body.append(bytes);
  };
  handlers.on_done = [pending](Status status) { pending->finish(status ? "" : status.error().message); };
  pending->call = fleet.client->start(std::move(request), std::move(handlers));
  pending->deadline = fleet.loop.after(question.timeout, [weak = std::weak_ptr(pending), timeout = question.timeout] {
    if (auto p = weak.lock()) p->finish(fmt::format("no answer within {:.1f} s", seconds(timeout)));
  });
}

void ask_all(Fleet& fleet, std::vector<std::shared_ptr<Instance>> instances, Question question,
             std::function<void(std::vector<Reply>)> on_replies) {
  struct Gathered {
    std::vector<Reply> replies;
    size_t missing;
    std::function<void(std::vector<Reply>)> on_replies;
  };
  if (instances.empty()) return on_replies({});
  auto gathered = std::make_shared<Gathered>();
  gathered->replies.resize(instances.size());
  gathered->missing = instances.size();
  gathered->on_replies = std::move(on_replies);
  for (size_t i = 0; i < instances.size(); ++i) {
    ask(fleet, instances[i], question, [gathered, i](Reply reply) {
      gathered->replies[i] = std::move(reply);
      if (--gathered->missing == 0) gathered->on_replies(std::move(gathered->replies));
    });
  }
}

}  // namespace tandem::router
