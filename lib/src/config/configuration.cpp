#include "config/configuration.h"

namespace memsieve {

Schema sieve_schema(const FilterRegistry& filters) {
  Schema ledger, sieve;
  ledger.integer("flush_every", RecordOptions{}.flush_every, 1, INT64_MAX / 2,
                 "optimiser steps between writes of the ledger to disk");
  sieve.texts("plugins", {}, "shared objects with further filters; their names and options join `filters`")
      .incidental()
      .boolean("plugins_of_anyone", false,
               "`false`: refuse plug-ins that somebody else than root and you owns or can change, in their file or in "
               "the folders it lies in")
      .incidental()
      .section("filters", filters_schema(filters), "filters in use; the evidence of several is added")
      .section("standardise", StandardiseOptions::schema(), "how scores at different timesteps are made comparable")
      .section("reference", ReferenceOptions::schema(), "what counts as easy rather than memorised")
      .section("evidence", EvidenceOptions::schema(), "what a verdict rests on")
      .section("threshold", ThresholdOptions::schema(), "when the evidence is too much")
      .section("action", ActionOptions::schema(), "what happens to a memorised sample")
      .section("probe", ProbeOptions::schema(), "where the additional forward passes are spent")
      .integer("block_rows", JudgeOptions{}.block_rows, 0, 1000000,
               "probe budget and drop cap hold for each block of this many consecutive rows; a divisor of the "
               "micro-batch makes decisions independent of the number of ranks; 0 = the whole micro-batch")
      .section("held_out", HeldOutOptions::schema(), "rows that are scored but never trained on")
      .section("revisit", RevisitOptions::schema(), "looks at samples that the loop passes over")
      .section("ledger", ledger, "the record of all visits")
      .choice("on_nonfinite", "fail", {"fail", "skip"},
              "a NaN or Inf in a signal or a loss: stop all ranks naming the sample, or skip the update and count it");
  return sieve;
}

Configuration Configuration::read(const Settings& sieve, const Setup& setup) {
  Configuration c;
  c.channels = read_channels(sieve, setup.filters, setup.num_timesteps);
  c.judge = JudgeOptions::read(sieve, setup, c.channels);
  for (const auto& channel : c.channels) c.record.channels.push_back(channel.name);
  c.record.flush_every = sieve.integer("ledger.flush_every");
  c.record.fail_on_nonfinite = sieve.text("on_nonfinite") == "fail";
  return c;
}

}  // namespace memsieve
