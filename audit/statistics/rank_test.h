#pragma once
// Was a canary trained on? One of K variants, chosen at random before training, was planted and the others were kept
// back. A model that never saw it cannot tell it from them, whatever the model is: its rank among all K is uniform.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace memsieve::audit {

/// 1 = the smallest error of all `variants`.
struct Rank {
  int64_t rank = 1, variants = 1;
};

/// The rank of the variant `planted` among all by its error (smaller = better known). Those with the same error count
/// as smaller, which can only make the test more careful. Throws DataError for a place outside the list and for a NaN.
Rank rank_of(const std::vector<double>& errors, size_t planted);

/// P(rank <= this one) had it not been trained on: rank / variants.
double p_value(const Rank& rank);

/// P(sum of the ranks <= this sum) had none been trained on: exact, from the distribution of sums of independent
/// uniform ranks. Each canary must have been chosen by itself; one with more variants weighs more. Throws DataError for
/// an empty list and for a rank outside 1..variants.
double combined_p_value(const std::vector<Rank>& ranks);

}  // namespace memsieve::audit
