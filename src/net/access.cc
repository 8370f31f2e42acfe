#include "net/access.h"

#include <string_view>

#include "base/constant_time.h"

namespace tandem::net {

bool is_authorized(const AccessKeys& keys, const HttpRequest& request, Access access) {
  const bool wants_admin = access == Access::kControl && !keys.admin.empty();
  if (!wants_admin && keys.api.empty()) return true;
  if (request.method == "OPTIONS") return true;
  const std::string* header = request.header("authorization");
  if (header == nullptr) return false;
  // Both are compared whatever comes first, so that the time does not say which key was nearly right.
  const bool is_api = !keys.api.empty() && same_in_constant_time(*header, "Bearer " + keys.api);
  const bool is_admin = !keys.admin.empty() && same_in_constant_time(*header, "Bearer " + keys.admin);
  return is_admin || (is_api && !wants_admin);
}

}  // namespace tandem::net
