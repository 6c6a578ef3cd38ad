#pragma once
// What is asked of an HDF5 file before anything of it is read: files come from strangers, too.

#include <hdf5.h>
#include <memsieve/detail/hdf5_handle.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Opens the file at `path` read-only, by HDF5's plain driver; `descriptor` is then the file's. DataError if it is not
/// HDF5, truncated or damaged.
detail::Hdf5Handle open_hdf5(const std::string& path, int& descriptor);

/// Opens dataset `name` of `file`, with room for one of its chunks if they have filters, for none if not. `where`
/// begins the messages. DataError if it is missing or no dataset, if its values lie in another file (an external link,
/// external storage, a virtual dataset), if it is compressed with anything but deflate, or if its chunks are far larger
/// than itself.
detail::Hdf5Handle open_hdf5_dataset(hid_t file, const std::string& name, const std::string& where);

/// IEEE 754 binary16, for which HDF5 1.10 has no name.
detail::Hdf5Handle hdf5_half_type();

/// The filters of a dataset's creation property list, in the order in which they were applied.
std::vector<H5Z_filter_t> hdf5_filters(hid_t created);

/// Sizes of a dataset's dimensions.
std::vector<int64_t> hdf5_shape(hid_t dataset);

/// DataError if a dataset of this shape cannot be in the file: its size overflows, a row has more than 1 GiB, or the
/// file is too short for it, however well it is compressed. `or_nothing`: the last does not count for a dataset that
/// was never written, which reads as zeros.
void require_hdf5_size(hid_t file, hid_t dataset, const std::vector<int64_t>& shape, bool or_nothing,
                       const std::string& where);

/// "[6, 3, 64]".
std::string hdf5_shape_text(const std::vector<int64_t>& shape);

}  // namespace memsieve::diffusion
