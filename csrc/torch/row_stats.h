// The arguments of row_stats and its outputs, as both devices take and give them.
#pragma once

#include <tuple>

#include "checks.h"
#include "tensors.h"

namespace wuskern {

template <std::tuple<Tensor, Tensor> (*row_stats)(Tensor, int64_t, Score)>
void boxed_row_stats(StableIValue* stack, uint64_t, uint64_t) {
  Tensor dy = torch::stable::detail::to<Tensor>(stack[0]);
  const int64_t dim = torch::stable::detail::to<int64_t>(stack[1]);
  const auto [bias, scores] = row_stats(std::move(dy), dim, checked_score(take_string(stack[2])));
  stack[0] = torch::stable::detail::from(bias);
  stack[1] = torch::stable::detail::from(scores);
}

// A bias gradient and scores for dy, not yet written.
inline std::tuple<Tensor, Tensor> new_row_stats(const Tensor& dy, int64_t dim) {
  const bool wide = dy.scalar_type() == ScalarType::Double;
  return {new_tensor(dy, {dy.size(dim)}),
          new_tensor(dy, {dy.size(dim)}, wide ? ScalarType::Double : ScalarType::Float)};
}

}  // namespace wuskern
