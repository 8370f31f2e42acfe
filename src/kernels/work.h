// What an operator's span says about its work; private to this room. Bytes are the least that have to move: every
// operand once.
#pragma once

#include "kernels/attention.h"
#include "kernels/context.h"

namespace tandem::kernels {

inline double bytes_of(const device::TensorView& view) {
  return view.data() == nullptr ? 0 : double(view.num_elements()) * double(size_of(view.dtype()));
}
template <class... Views>
double bytes_of(const device::TensorView& first, const Views&... others) {
  return bytes_of(first) + bytes_of(others...);
}

// Rows with their width, and a few operations on each element.
inline void note_rows(profile::OpSpan& span, const device::TensorView& y, double operations_each, double bytes) {
  const int64_t rows = y.dim(0), width = rows > 0 ? y.num_elements() / rows : 0;
  span.work({rows, width}, operations_each * double(y.num_elements()), bytes);
}

// Keys of all sequences are read once each.
void note_attention(profile::OpSpan& span, const MlaShape& shape, const PagedCache& cache,
                    std::span<const SequenceSpan> sequences, bool is_absorbed, double operand_bytes);

}  // namespace tandem::kernels
