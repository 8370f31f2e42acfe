// A running deployment as the workflow talks to it: a router for requests and figures, and the instances behind it for
// control. Blocking; not from a loop's thread. Any thread may sample() while another one controls.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"
#include "workflow/samples.h"

namespace tandem::workflow {

struct Instance {
  Role role = Role::kCombined;
  std::string url;  // "http://host:port"
};

class Deployment {
 public:
  // url: where requests go (a router, or one combined server). authorization: header value, or empty. zero: times of
  // samples count from there.
  Deployment(std::string url, std::vector<Instance> instances, std::string authorization, const Clock& clock,
             TimePoint zero);

  const std::string& url() const { return url_; }
  const std::string& authorization() const { return authorization_; }
  const std::vector<Instance>& instances() const { return instances_; }
  std::vector<Instance> of_role(Role role) const;

  double seconds_now() const { return seconds(clock_.now() - zero_); }
  Result<Sample> sample() const;
  // One request to one server; the body of a 200. Errors carry the path, the status and the server's words.
  Result<std::string> ask(const std::string& origin, const char* method, std::string_view path, std::string body,
                          Duration timeout) const;
  // POST to every instance of a role, in turn; the first error ends it.
  Status post(Role role, std::string_view path, const std::string& body, Duration timeout) const;

 private:
  const std::string url_;
  const std::vector<Instance> instances_;
  const std::string authorization_;
  const Clock& clock_;
  const TimePoint zero_;
};

}  // namespace tandem::workflow
