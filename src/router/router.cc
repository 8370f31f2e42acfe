#include "router/router.h"

#include <fmt/format.h>

#include "api/bootstrap.h"
#include "api/error.h"
#include "base/log.h"
#include "router/admission.h"
#include "router/endpoints.h"
#include "router/fleet.h"
#include "router/prober.h"
#include "router/relay.h"
#include "router/retry.h"

namespace tandem::router {

struct Router::Impl {
  Impl(net::EventLoop& loop, RouterConfig config, const Clock& clock, uint64_t seed, profile::Metrics& metrics)
      : fleet(std::make_shared<Fleet>(loop, std::move(config), clock, seed, metrics)),
        prober(*fleet),
        admission(fleet->config.max_concurrent_requests, fleet->config.queue_size) {}

  void handle(net::HttpRequest request, Writer writer);
  void generate(net::HttpRequest request, Writer writer);
  void enqueue(std::shared_ptr<Relay> relay, api::BodyKind kind, Writer writer);
  void update_gauges();

  std::shared_ptr<Fleet> fleet;  // shared with the relays
  Prober prober;
  Admission admission;
  bool draining = false;
  std::shared_ptr<bool> alive = std::make_shared<bool>(true);  // for what is posted before the router goes
};

namespace {

api::BodyKind kind_of(std::string_view path) {
  if (path == "/v1/completions") return api::BodyKind::kCompletions;
  if (path == "/v1/chat/completions") return api::BodyKind::kChat;
  return api::BodyKind::kGenerate;
}

void refuse(const Writer& writer, api::BodyKind kind, int status, std::string_view message) {
  net::HttpResponse response;
  response.status = status;
  response.body =
      kind == api::BodyKind::kGenerate ? api::native_error_body(message) : api::openai_error_body(message, status);
  response.headers = retry_after();
  writer->send(std::move(response));
}

}  // namespace

void Router::Impl::handle(net::HttpRequest request, Writer writer) {
  if (!authorized(*fleet, request, writer)) return;
  if (serve_endpoint(*fleet, request, writer)) return;
  generate(std::move(request), std::move(writer));
}

void Router::Impl::generate(net::HttpRequest request, Writer writer) {
  const api::BodyKind kind = kind_of(request.path);
  fleet->metrics.requests(request.path).add();
  if (draining) return refuse(writer, kind, 503, "the router is shutting down");
  RelayRequest relayed;
  relayed.kind = kind;
  relayed.path = request.target;
  relayed.headers = forwarded_headers(request);
  auto body = std::make_shared<std::string>(std::move(request.body));
  auto routed = api::prepare_routed_body(kind, *body);
  if (!routed) return send_json(writer, 400, api::validation_error_body(routed.error().message));
  relayed.routed = std::move(routed).value();
  relayed.body = std::move(body);
  auto relay = std::make_shared<Relay>(fleet, std::move(relayed), writer, [this] {
    admission.leave();
    update_gauges();
  });
  enqueue(std::move(relay), kind, std::move(writer));
}

void Router::Impl::enqueue(std::shared_ptr<Relay> relay, api::BodyKind kind, Writer writer) {
  // The timer's handle lives exactly as long as the request waits.
  auto deadline = std::make_shared<std::shared_ptr<net::EventLoop::Timer>>();
  auto start = [relay, deadline] {
    deadline->reset();
    relay->start();
  };
  uint64_t ticket = 0;
  const auto entry = admission.enter(start, ticket);
  if (entry == Admission::Entry::kFull) {
    fleet->metrics.errors("queue_full").add();
    relay->shut_down();
    return refuse(writer, kind, 429,
                  fmt::format("{} requests are running and {} are waiting: the queue is full", admission.running(),
                              admission.waiting()));
  }
  if (entry == Admission::Entry::kWaiting) {
    *deadline = fleet->loop.after(fleet->config.queue_timeout, [this, kind, writer, ticket] {
      if (!admission.forget(ticket)) return;
      fleet->metrics.errors("queue_timeout").add();
      refuse(writer, kind, 408, fmt::format("no free place within {:.0f} s", seconds(fleet->config.queue_timeout)));
      update_gauges();
    });
    writer->on_closed([this, ticket, weak = std::weak_ptr<bool>(alive)] {
      if (weak.lock() && admission.forget(ticket)) update_gauges();
    });
  }
  update_gauges();
}

void Router::Impl::update_gauges() {
  fleet->metrics.running.set(static_cast<double>(admission.running()));
  fleet->metrics.queued.set(static_cast<double>(admission.waiting()));
}

Result<std::unique_ptr<Router>> Router::create(net::EventLoop& loop, RouterConfig config, const Clock& clock,
                                               uint64_t seed, profile::Metrics& metrics) {
  RETURN_IF_ERROR(config.validate());
  auto impl = std::make_unique<Impl>(loop, std::move(config), clock, seed, metrics);
  for (const auto& address : impl->fleet->config.instances) {
    auto added = impl->fleet->table.add(address, clock.now());
    if (!added) return added.error();
  }
  loop.post([raw = impl.get(), weak = std::weak_ptr<bool>(impl->alive)] {
    if (weak.lock()) raw->prober.start();
  });
  return std::unique_ptr<Router>(new Router(std::move(impl)));
}

Router::Router(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Router::~Router() {
  impl_->alive.reset();
  Fleet& fleet = *impl_->fleet;
  while (!fleet.relays.empty()) {
    Relay* first = *fleet.relays.begin();
    auto relay = first->weak_from_this().lock();
    fleet.relays.erase(first);
    if (relay) relay->shut_down();
  }
  fleet.client.reset();
}

net::HttpHandler Router::handler() {
  return [impl = impl_.get(), weak = std::weak_ptr<bool>(impl_->alive)](net::HttpRequest request, Writer writer) {
    if (!weak.lock()) return writer->send({503, "text/plain; charset=utf-8", "the router is gone", {}});
    impl->handle(std::move(request), std::move(writer));
  };
}

void Router::drain() { impl_->draining = true; }
size_t Router::running() const { return impl_->admission.running() + impl_->admission.waiting(); }
bool Router::ready() const { return impl_->fleet->ready(); }

}  // namespace tandem::router
