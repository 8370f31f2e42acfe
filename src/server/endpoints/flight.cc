// /flight_recorder: who waits for whom, from what this process's ranks have recorded. Answered on the loop's thread
// alone, so that it is answered while the engines are stuck.
#include "api/error.h"
#include "profile/flight_explain.h"
#include "server/endpoints/endpoints.h"

namespace tandem::server {

void get_flight_recorder(Core& core, net::HttpRequest request, const Writer& writer) {
  const auto& recorders = core.parts().flight;
  net::HttpResponse response;
  if (recorders.empty()) {
    response.status = 404;
    response.body = api::detail_body("Not Found: nothing is recorded");
  } else if (request.query == "raw=1") {
    response.content_type = "application/octet-stream";
    response.body = profile::copy_flights(recorders);
  } else {
    response.body = profile::explanation_json(profile::explain(profile::read_flights(recorders)));
  }
  writer->send(std::move(response));
}

}  // namespace tandem::server
