#pragma once
// How a ledger lies in its HDF5 file: columns, chunks, attributes. Private to the library; docs/ledger_format.md tells
// it to others.

#include <memsieve/detail/hdf5_handle.h>
#include <memsieve/error.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve {

/// Rows of the run that the file lacks: `rows` of them before its row `before`.
struct LedgerGap {
  int64_t before = 0, rows = 0;
  bool operator==(const LedgerGap&) const = default;
};

namespace ledger {

using detail::Hdf5Handle;

/// Rows in a chunk.
inline constexpr hsize_t kChunk = 4096;

/// Throw DataError with `what` where HDF5 failed.
inline void check(herr_t status, const std::string& what) {
  if (status < 0) throw DataError(what);
}
inline Hdf5Handle must(hid_t id, Hdf5Handle::Close close, const std::string& what) {
  Hdf5Handle handle(id, close);
  if (!handle) throw DataError(what);
  return handle;
}

/// The compound type of a row of `row_size` bytes.
Hdf5Handle row_type(const std::vector<std::string>& channels, size_t& row_size);
/// The creation list of the dataset with the rows.
Hdf5Handle row_layout();
/// Whether a dataset was made with row_layout(), so that what else HDF5 can do need not be thought of.
bool is_laid_out_like_ours(const Hdf5Handle& visits);
/// Whether the chunk with this row, as it is stored, has the bytes of a chunk: HDF5 reads past the end of a short one.
bool chunk_is_whole(const Hdf5Handle& visits, uint64_t row, size_t row_size);

void write_text(const Hdf5Handle& object, const char* name, const std::string& text);
void write_int(const Hdf5Handle& object, const char* name, int64_t value);

/// The attribute `gaps`, which a file without any lacks. Reading throws DataError, beginning with `damaged`, for what
/// write_gaps() cannot have written.
void write_gaps(const Hdf5Handle& file, const std::vector<LedgerGap>& gaps);
std::vector<LedgerGap> read_gaps(const Hdf5Handle& file, const std::string& damaged);

}  // namespace ledger

}  // namespace memsieve
