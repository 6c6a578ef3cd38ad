#pragma once
// Which held-out rows are observed when. Pure. Private to the library.

#include <memsieve/batch.h>

#include <vector>

namespace memsieve {

/// This rank's share of step `step`'s `rows` visits. Each cycle over the pseudo-rows is shuffled anew; pseudo-row p
/// shows picture p % pictures.
std::vector<HeldOutVisit> plan_held_out(int64_t step, int64_t rows, int64_t pictures, int64_t pseudo_rows, int64_t rank,
                                        int64_t rows_per_rank);

}  // namespace memsieve
