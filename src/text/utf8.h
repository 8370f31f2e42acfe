// UTF-8 at its edges: bytes that are not text become U+FFFD, one for each maximal subpart (Unicode 15, 3.9, table
// 3-11), as the WHATWG decoder, Rust's from_utf8_lossy and Python's errors="replace" do. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tandem::text {

bool is_valid_utf8(std::string_view bytes);

// Appends bytes to out, invalid sequences replaced. Stops before a sequence at the end that more bytes could complete,
// unless final is set (then it becomes one U+FFFD). Returns the number of bytes consumed: all but at most 3.
size_t append_lossy(std::string_view bytes, bool final, std::string& out);

// The whole of bytes, replaced where needed.
std::string to_valid_utf8(std::string_view bytes);

// Bytes of the character that starts with this lead byte of valid UTF-8: 1 to 4.
inline size_t char_length(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

// Where the character that ends before `end` begins. text: valid UTF-8; end: not 0.
size_t char_before(std::string_view text, size_t end);

// The character at text[at...] of valid UTF-8.
uint32_t char_at(std::string_view text, size_t at);

void append_char(uint32_t code_point, std::string& out);

}  // namespace tandem::text
