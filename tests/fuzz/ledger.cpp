// Ledgers that a run goes on with. An input is a plan of what becomes of a sound one: HDF5's own functions change it,
// then bytes of the file are lost or changed. Whatever is left, the run goes on, and its ledger is sound from then on.
#include <hdf5.h>
#include <memsieve/error.h>
#include <support/files.h>
#include <zlib.h>

#include <algorithm>
#include <vector>

#include "fuzz_input.h"
#include "record/ledger_file.h"

using memsieve::LedgerFile;
using memsieve::LedgerHeader;
using memsieve::LedgerRow;
using memsieve::detail::Hdf5Handle;
using namespace memsieve::testing;

namespace {

constexpr int64_t kRows = 4200;  // more than one chunk

const LedgerHeader kHeader{"run", {"magnitude"}, "seed: 1\n"};

std::vector<LedgerRow> rows(int64_t count) {
  std::vector<LedgerRow> list(static_cast<size_t>(count));
  for (size_t i = 0; i < list.size(); ++i) {
    list[i].step = i;
    list[i].raw = list[i].z = {static_cast<float>(i % 7)};
  }
  return list;
}

std::string sound(const std::string& path, int64_t count) {
  std::filesystem::remove(path);
  LedgerFile::create(path, kHeader).write(rows(count));
  return read_file(path);
}

void change_gaps(fuzz::Input& input, hid_t file) {
  H5Adelete(file, "gaps");
  const hsize_t shape[] = {input.ConsumeIntegralInRange<hsize_t>(0, 5), input.ConsumeIntegralInRange<hsize_t>(0, 3)};
  const hid_t types[] = {H5T_NATIVE_INT64, H5T_NATIVE_INT64, H5T_NATIVE_INT32, H5T_NATIVE_DOUBLE, H5T_STD_I64BE};
  const hid_t type = input.PickValueInArray(types);
  const Hdf5Handle space(H5Screate_simple(input.ConsumeIntegralInRange(1, 2), shape, nullptr), H5Sclose);
  const Hdf5Handle gaps(H5Acreate2(file, "gaps", type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  std::vector<int64_t> values(15);
  for (auto& value : values)
    value = input.ConsumeBool() ? input.ConsumeIntegral<int64_t>() : input.ConsumeIntegralInRange<int64_t>(-9, 5000);
  H5Awrite(gaps.get(), type, values.data());
}

/// Bytes put in a chunk's place as they are: deflated, of any length, or of any content.
void change_chunk(fuzz::Input& input, hid_t visits) {
  const size_t size = input.ConsumeIntegralInRange<size_t>(0, 300000);
  std::vector<unsigned char> inner(size, 1), stored(compressBound(size));
  uLongf count = stored.size();
  compress(stored.data(), &count, inner.data(), inner.size());
  stored.resize(count);
  if (input.ConsumeBool()) stored = input.ConsumeBytes<unsigned char>(64);
  const hsize_t place = input.ConsumeBool() ? 4096 : 0;
  const Hdf5Handle space(H5Dget_space(visits), H5Sclose);
  if (static_cast<hsize_t>(H5Sget_simple_extent_npoints(space.get())) <= place) return;  // HDF5 1.10 itself would crash
  H5Dwrite_chunk(visits, H5P_DEFAULT, input.ConsumeIntegralInRange(0U, 3U), &place, stored.size(), stored.data());
}

void change(fuzz::Input& input, const std::string& path) {
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, access.get()), H5Fclose);
  Hdf5Handle visits(H5Dopen2(file.get(), "visits", H5P_DEFAULT), H5Dclose);
  switch (input.ConsumeIntegralInRange(0, 4)) {
    case 0:
      return change_gaps(input, file.get());
    case 1:
      return change_chunk(input, visits.get());
    case 2: {
      const hsize_t size =
          input.ConsumeBool() ? input.ConsumeIntegral<hsize_t>() : input.ConsumeIntegralInRange<hsize_t>(0, 9000);
      H5Dset_extent(visits.get(), &size);
      return;
    }
    case 3:
      visits = {};
      H5Ldelete(file.get(), "visits", H5P_DEFAULT);
      if (input.ConsumeBool()) H5Gclose(H5Gcreate2(file.get(), "visits", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
      if (input.ConsumeBool())
        H5Lcreate_external("ledger.h5", "/visits", file.get(), "visits", H5P_DEFAULT, H5P_DEFAULT);
      return;
    default:
      return;
  }
}

void damage(fuzz::Input& input, const std::string& path) {
  std::string bytes = read_file(path);
  for (int left = input.ConsumeIntegralInRange(0, 4); left > 0 && !bytes.empty(); --left) {
    // Half of them in the first kilobytes, where HDF5 keeps what the rest hangs on.
    const size_t most = std::min<size_t>(bytes.size() - 1, input.ConsumeBool() ? 2048 : bytes.size());
    const auto at = input.ConsumeIntegralInRange<size_t>(0, most);
    if (input.ConsumeBool()) {
      bytes[at] = static_cast<char>(input.ConsumeIntegral<uint8_t>());
    } else if (input.ConsumeBool()) {
      std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), std::min<size_t>(bytes.size() - at, 4096), '\0');
    } else {
      bytes.resize(at);
    }
  }
  write_file(path, bytes);
}

void clear(const TemporaryFolder& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) std::filesystem::remove(entry.path());
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  memsieve::detail::silence_hdf5();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TemporaryFolder folder;
  const std::string path = folder.file("ledger.h5");
  static const std::string whole[] = {sound(path, kRows), sound(path, 0), sound(path, 10)};
  fuzz::Input input(data, size);
  clear(folder);
  write_file(path, whole[input.ConsumeIntegralInRange<size_t>(0, 2)]);
  const int64_t counted = input.ConsumeIntegralInRange<int64_t>(0, 2 * kRows);
  const bool changed = input.ConsumeBool();
  if (changed) change(input, path);
  damage(input, path);
  std::string note;
  {
    LedgerFile ledger = LedgerFile::resume(path, kHeader, counted, note);
    if (!note.empty()) fuzz::require_one_line(note);
    ledger.write(rows(3));
    ledger.sync();
  }
  note.clear();
  LedgerFile::resume(path, kHeader, counted + 3, note);
  fuzz::require(note.empty(), "a ledger that was continued is sound: " + note);
  return 0;
}
