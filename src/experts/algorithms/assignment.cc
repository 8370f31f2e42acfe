#include "experts/algorithms/assignment.h"

#include <limits>

#include "base/check.h"

namespace tandem::experts {
namespace {

// Rows are added one by one; each finds a cheapest alternating path to a free column under reduced costs.
class Assignment {
 public:
  Assignment(std::span<const int64_t> gain, int32_t size)
      : gain_(gain),
        size_(size),
        row_price_(size_t(size), 0),
        column_price_(size_t(size), 0),
        row_of_(size_t(size), -1) {}

  void add_row(int32_t row) {
    std::vector<int64_t> distance(size_t(size_), std::numeric_limits<int64_t>::max());
    std::vector<int32_t> previous(size_t(size_), -1);  // column before this one on the path, -1: the new row
    std::vector<bool> done(size_t(size_), false);
    int32_t current_row = row, current_column = -1;
    int64_t reached = 0;
    while (true) {
      const int32_t column = relax(current_row, current_column, reached, distance, previous, done);
      done[size_t(column)] = true;
      reached = distance[size_t(column)];
      current_column = column;
      current_row = row_of_[size_t(column)];
      if (current_row < 0) break;
    }
    row_price_[size_t(row)] += reached;
    for (int32_t column = 0; column < size_; ++column) {
      if (!done[size_t(column)] || column == current_column) continue;
      const int64_t slack = reached - distance[size_t(column)];
      column_price_[size_t(column)] -= slack;
      row_price_[size_t(row_of_[size_t(column)])] += slack;
    }
    for (int32_t column = current_column; column >= 0;) {
      const int32_t before = previous[size_t(column)];
      row_of_[size_t(column)] = before < 0 ? row : row_of_[size_t(before)];
      column = before;
    }
  }

  std::vector<int32_t> columns() const {
    std::vector<int32_t> result(size_t(size_), -1);
    for (int32_t column = 0; column < size_; ++column) result[size_t(row_of_[size_t(column)])] = column;
    return result;
  }

 private:
  // Updates the distances over `row`, which was reached through `from`, and returns the nearest column not done.
  int32_t relax(int32_t row, int32_t from, int64_t reached, std::vector<int64_t>& distance,
                std::vector<int32_t>& previous, const std::vector<bool>& done) const {
    int32_t nearest = -1;
    for (int32_t column = 0; column < size_; ++column) {
      if (done[size_t(column)]) continue;
      const int64_t cost = -gain_[size_t(row) * size_t(size_) + size_t(column)];
      const int64_t path = reached + cost - row_price_[size_t(row)] - column_price_[size_t(column)];
      if (path < distance[size_t(column)]) {
        distance[size_t(column)] = path;
        previous[size_t(column)] = from;
      }
      if (nearest < 0 || distance[size_t(column)] < distance[size_t(nearest)]) nearest = column;
    }
    return nearest;
  }

  std::span<const int64_t> gain_;
  int32_t size_;
  std::vector<int64_t> row_price_, column_price_;
  std::vector<int32_t> row_of_;  // of each column, -1: free
};

}  // namespace

std::vector<int32_t> best_assignment(std::span<const int64_t> gain, int32_t size) {
  CHECK(gain.size() == size_t(size) * size_t(size));
  Assignment assignment(gain, size);
  for (int32_t row = 0; row < size; ++row) assignment.add_row(row);
  return assignment.columns();
}

}  // namespace tandem::experts
