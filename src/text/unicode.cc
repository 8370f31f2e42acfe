#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "text/utf8.h"

namespace tandem::text {
namespace {

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

int combining_class(int32_t c) { return utf8proc_get_property(c)->combining_class; }

// Appends the full decomposition of one character.
void decompose(uint32_t c, utf8proc_option_t options, std::vector<int32_t>& out) {
  int boundary = 0;
  size_t begin = out.size();
  out.resize(begin + 32);  // the longest has 18
  auto room = static_cast<utf8proc_ssize_t>(out.size() - begin);
  auto length = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), out.data() + begin, room, options, &boundary);
  CHECK(length >= 0 && length <= room);
  out.resize(begin + static_cast<size_t>(length));
}

// Canonical ordering: each run of combining marks by class, equals as they stand. utf8proc's own takes quadratic time
// on a long run.
void order_marks(std::vector<int32_t>& text) {
  for (auto at = text.begin(); at != text.end();) {
    auto end = std::find_if(at, text.end(), [](int32_t c) { return combining_class(c) == 0; });
    if (end - at > 1) {
      std::stable_sort(at, end, [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
    }
    at = end == text.end() ? end : end + 1;
  }
}

// One stretch of text; scratch is reused from stretch to stretch.
void normalize_stretch(std::string_view text, NormalForm form, std::vector<int32_t>& scratch, std::string& out) {
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  scratch.clear();
  for (size_t at = 0; at < text.size(); at += char_length(static_cast<unsigned char>(text[at]))) {
    decompose(char_at(text, at), static_cast<utf8proc_option_t>(options), scratch);
  }
  order_marks(scratch);
  if (form == NormalForm::kNfc || form == NormalForm::kNfkc) {
    auto length = utf8proc_normalize_utf32(scratch.data(), static_cast<utf8proc_ssize_t>(scratch.size()),
                                           static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    CHECK(length >= 0);
    scratch.resize(static_cast<size_t>(length));
  }
  for (int32_t c : scratch) append_char(static_cast<uint32_t>(c), out);
}

}  // namespace

bool is_white_space(uint32_t c) {
  // Short, and settled since 2013.
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string to_normal_form(std::string_view text, NormalForm form) {
  std::string out;
  out.reserve(text.size());
  std::vector<int32_t> scratch;
  size_t done = 0;
  // ASCII stays as it is in every form, but marks behind its last character may join that one.
  for (auto at = text.begin(); (at = std::find_if_not(at, text.end(), is_ascii)) != text.end();) {
    size_t begin = static_cast<size_t>(at - text.begin());
    if (begin > done) --begin;
    at = std::find_if(at, text.end(), is_ascii);
    auto end = static_cast<size_t>(at - text.begin());
    out.append(text.substr(done, begin - done));
    normalize_stretch(text.substr(begin, end - begin), form, scratch, out);
    done = end;
  }
  out.append(text.substr(done));
  return out;
}

std::string to_lower_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size(); at += char_length(static_cast<unsigned char>(text[at]))) {
    uint32_t c = char_at(text, at);
    append_char(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
    // The one character whose lower case is two (SpecialCasing.txt): i with a dot above.
    if (c == 0x130) append_char(0x307, out);
  }
  return out;
}

}  // namespace tandem::text
