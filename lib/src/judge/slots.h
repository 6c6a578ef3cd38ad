#pragma once
// Where what is known of a row is kept. Private to the library.
//
// Training samples have a slot each, or one for each group; then come the pseudo-rows of the held-out pictures.

#include <memsieve/sieve.h>

#include "judge/held_out.h"

namespace memsieve {

/// Groups numbered in the order in which they first appear: the slot [dataset_size] of each sample when samples share
/// slots. `count` becomes the number of groups.
std::vector<int64_t> dense_groups(const std::vector<int64_t>& group_id, int64_t& count);

class Slots {
 public:
  Slots(const Setup& setup, const HeldOutOptions& held_out, bool pool_groups, int64_t ranks);

  int64_t training() const { return training_; }
  /// How many of them some sample has: fewer where ids leave gaps (Setup::samples).
  int64_t used() const { return used_; }
  int64_t pseudo_rows() const { return pseudo_rows_; }
  int64_t size() const { return training_ + pseudo_rows_; }
  /// ids [B] int64 of training samples, or of pseudo-rows -> [B]
  at::Tensor of(const at::Tensor& ids, bool held_out) const;
  /// The same -> which picture they show: held-out pictures come after the samples.
  at::Tensor picture(const at::Tensor& ids, bool held_out) const;

 private:
  int64_t dataset_size_, held_out_size_, training_, used_, pseudo_rows_ = 0;
  /// [dataset_size] when samples share slots
  at::Tensor slot_of_;
};

}  // namespace memsieve
