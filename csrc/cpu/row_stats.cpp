// row_stats on the CPU: the sum of dY over everything but dimension c, and that of |dY| or dY * dY, in one read of dY
// (channel_sums.h).
#include <tuple>

#include "channel_sums.h"

namespace wuskern {
namespace {

Score score_named(const std::string& name) {
  STD_TORCH_CHECK(name == "l1" || name == "l2", "score: expected l1 or l2, got ", name);
  return name == "l1" ? Score::l1 : Score::l2;
}

std::tuple<Tensor, Tensor> row_stats(Tensor dy, int64_t dim, Score score) {
  dim = front_dim(dy, dim);
  const bool wide = dy.scalar_type() == ScalarType::Double;
  Tensor bias = new_vector(dy, dy.size(dim));
  Tensor scores = new_vector(dy, dy.size(dim), wide ? ScalarType::Double : ScalarType::Float);
  if (dy.numel() == 0) return {torch::stable::zero_(bias), torch::stable::zero_(scores)};

  const Layout layout = foldable(dy, dim);
  const void* const src = dy.const_data_ptr();
  void* const sums_out = bias.mutable_data_ptr();
  void* const scores_out = scores.mutable_data_ptr();
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    using ScoreSum = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const Targets<T, ScoreSum> out{score, static_cast<T*>(sums_out), static_cast<ScoreSum*>(scores_out)};
    sum_channels(static_cast<const T*>(src), layout, out);
  });
  return {bias, scores};
}

void boxed_row_stats(StableIValue* stack, uint64_t, uint64_t) {
  Tensor dy = torch::stable::detail::to<Tensor>(stack[0]);
  const int64_t dim = torch::stable::detail::to<int64_t>(stack[1]);
  const auto [bias, scores] = row_stats(std::move(dy), dim, score_named(take_string(stack[2])));
  stack[0] = torch::stable::detail::from(bias);
  stack[1] = torch::stable::detail::from(scores);
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("row_stats", &wuskern::boxed_row_stats); }
