#pragma once
// Ledgers with known rows, and the steps that one holds.

#include <hdf5.h>
#include <support/files.h>

#include <string>
#include <vector>

#include "record/ledger.h"

#include <catch2/catch.hpp>

namespace toy {

using memsieve::LedgerHeader;
using memsieve::LedgerRow;

inline const LedgerHeader kHeader{"run-1", {"magnitude", "prediction_error"}, "seed: 1"};

inline std::vector<LedgerRow> rows(uint64_t from, uint64_t to) {
  std::vector<LedgerRow> list;
  for (uint64_t i = from; i < to; ++i) {
    LedgerRow row;
    row.step = i;
    row.sample = static_cast<int64_t>(i) * 10;
    row.raw = {static_cast<float>(i), -1.F};
    row.z = {0.5F, 0.25F};
    list.push_back(row);
  }
  return list;
}

inline std::vector<uint64_t> steps_in(const std::string& path) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, H5P_DEFAULT);
  REQUIRE(file >= 0);
  const hid_t visits = H5Dopen2(file, "visits", H5P_DEFAULT), space = H5Dget_space(visits);
  std::vector<uint64_t> steps(H5Sget_simple_extent_npoints(space));
  const hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(uint64_t));
  H5Tinsert(type, "step", 0, H5T_NATIVE_UINT64);
  if (!steps.empty()) REQUIRE(H5Dread(visits, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, steps.data()) >= 0);
  H5Tclose(type);
  H5Sclose(space);
  H5Dclose(visits);
  H5Fclose(file);
  return steps;
}

}  // namespace toy
