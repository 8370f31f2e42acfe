// What Unicode says about characters, as far as normalizers need it. The only file that sees utf8proc is unicode.cc.
// Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tandem::text {

// Unicode's White_Space.
bool is_white_space(uint32_t code_point);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode Standard Annex 15. text: valid UTF-8. Linear in the text but for runs of combining marks, which are sorted.
std::string to_normal_form(std::string_view text, NormalForm form);

// Each character's own lower case, without regard to its neighbours (a sigma at the end of a word is one like any
// other). text: valid UTF-8.
std::string to_lower_case(std::string_view text);

}  // namespace tandem::text
