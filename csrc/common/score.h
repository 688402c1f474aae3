// What row_stats sums beside the elements.
#pragma once

namespace wuskern {

enum class Score { none, l1, l2 };  // nothing, |x|, x * x

}  // namespace wuskern
