// The arguments of row_stats, as both devices take them.
#pragma once

#include <tuple>

#include "common/score.h"
#include "stable_abi.h"

namespace wuskern {

inline Score score_named(const std::string& name) {
  STD_TORCH_CHECK(name == "l1" || name == "l2", "score: expected l1 or l2, got ", name);
  return name == "l1" ? Score::l1 : Score::l2;
}

template <std::tuple<Tensor, Tensor> (*row_stats)(Tensor, int64_t, Score)>
void boxed_row_stats(StableIValue* stack, uint64_t, uint64_t) {
  Tensor dy = torch::stable::detail::to<Tensor>(stack[0]);
  const int64_t dim = torch::stable::detail::to<int64_t>(stack[1]);
  const auto [bias, scores] = row_stats(std::move(dy), dim, score_named(take_string(stack[2])));
  stack[0] = torch::stable::detail::from(bias);
  stack[1] = torch::stable::detail::from(scores);
}

// A bias gradient and scores for dy, not yet written.
inline std::tuple<Tensor, Tensor> new_row_stats(const Tensor& dy, int64_t dim) {
  const bool wide = dy.scalar_type() == ScalarType::Double;
  return {new_vector(dy, dy.size(dim)), new_vector(dy, dy.size(dim), wide ? ScalarType::Double : ScalarType::Float)};
}

}  // namespace wuskern
