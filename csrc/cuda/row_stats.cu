// row_stats on NVIDIA GPUs: the sum of dY over everything but dimension c, and that of |dY| or dY * dY, in one read of
// dY (channel_sums.h). And top_rows, which has the last block choose the rows of the largest scores behind that.
#include "../torch/row_stats.h"
#include "channel_sums.h"

namespace wuskern {
namespace {

// Writes both, and the rows where they are asked for and can be chosen in the same launch; returns whether they were.
template <Score score, typename T>
bool write_stats(const Context& context, const Tensor& dy, const Layout& layout, Tensor& bias, Tensor& scores,
                 const Chosen<Accumulator<T>>& chosen) {
  const Targets<T, Accumulator<T>> out{data_of<T>(bias), data_of<Accumulator<T>>(scores)};
  return sum_channels<score>(context, const_data_of<T>(dy), layout, out, chosen);
}

struct Choice {
  int64_t k, block, groups;
};

// `rows` is null, or becomes those of the choice.
std::tuple<Tensor, Tensor> stats(Tensor dy, int64_t dim, Score score, const Choice& choice, Tensor* rows) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  const Context context(dy);
  auto [bias, scores] = new_row_stats(dy, dim);
  bool chosen = false;
  if (rows) check_choice(scores, choice.k, choice.block, choice.groups);
  if (dy.numel() == 0) {
    torch::stable::zero_(bias);
    torch::stable::zero_(scores);
  } else {
    const Layout layout = foldable(dy, dim);
    for_dtype<__half, __nv_bfloat16>(
        dy.scalar_type(), [&, &bias = bias, &scores = scores]<typename T>(std::type_identity<T>) {
          using Acc = Accumulator<T>;
          Chosen<Acc> asked;
          const auto [k, block, groups] = choice;
          if (rows && dy.size(dim) / (block * groups) * kKeyBytes<Acc> <= kKeptBytes) {
            *rows = new_tensor(dy, {k}, ScalarType::Long);
            asked = {data_of<int64_t>(*rows), dy.size(dim) / (block * groups), k / (block * groups), block,
                     static_cast<int>(groups)};
          }
          const auto write = score == Score::l1 ? write_stats<Score::l1, T> : write_stats<Score::l2, T>;
          chosen = write(context, dy, layout, bias, scores, asked) && asked.rows != nullptr;
        });
  }
  if (rows && !chosen) *rows = select_rows(scores, choice.k, choice.block, choice.groups);
  return {bias, scores};
}

std::tuple<Tensor, Tensor> row_stats(Tensor dy, int64_t dim, Score score) {
  return stats(std::move(dy), dim, score, {}, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> top_rows(Tensor dy, int64_t dim, Score score, int64_t k, int64_t block,
                                            int64_t groups) {
  Tensor rows = new_tensor(dy, {0}, ScalarType::Long);
  const auto [bias, scores] = stats(std::move(dy), dim, score, {k, block, groups}, &rows);
  return {bias, scores, rows};
}

void boxed_top_rows(StableIValue* stack, uint64_t, uint64_t) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  Tensor dy = to<Tensor>(stack[0]);
  const Score score = checked_score(take_string(stack[2]));
  const auto [bias, scores, rows] = top_rows(std::move(dy), to<int64_t>(stack[1]), score, to<int64_t>(stack[3]),
                                             to<int64_t>(stack[4]), to<int64_t>(stack[5]));
  stack[0] = from(bias);
  stack[1] = from(scores);
  stack[2] = from(rows);
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("row_stats", &wuskern::boxed_row_stats<&wuskern::row_stats>);
  m.impl("top_rows", &wuskern::boxed_top_rows);
}
