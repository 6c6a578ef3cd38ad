#include "judge/revisit.h"

#include "config/read.h"

namespace memsieve {

Schema RevisitOptions::schema() {
  const RevisitOptions d;
  Schema s;
  s.integer(
       "rows", d.rows, 0, 1000000,
       "flagged samples that are looked at again in a step, over all ranks, without training on them (Sieve::looks); "
       "0 = never, so that nothing that was passed over comes back")
      .integer("every", d.every, 1, 1000000, "optimiser steps from one look to the next");
  return s;
}

RevisitOptions RevisitOptions::read(const Settings& sieve) {
  return {sieve.integer("revisit.rows"), sieve.integer("revisit.every")};
}

void RevisitOptions::check(const Settings& sieve, const ActionOptions& action) const {
  if (rows > 0 && !action.pass_over)
    refuse(sieve, "revisit.rows", "needs `action.pass_over: true`; samples that stay in the batch are visited anyway");
}

}  // namespace memsieve
