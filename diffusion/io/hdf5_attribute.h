#pragma once
// Attributes of an HDF5 object, read only after their type and size are known to be what is asked for: HDF5 writes as
// many values as the file says, whatever room there is.

#include <hdf5.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Attributes `name` of `object`; `what` begins the messages. DataError if missing, or not of that kind: exactly
/// `count` numbers, integers or floating-point; one integer of at most 64 bits; one string of at most 64 KiB.
std::vector<double> hdf5_number_attribute(hid_t object, const std::string& name, int64_t count,
                                          const std::string& what);
int64_t hdf5_integer_attribute(hid_t object, const std::string& name, const std::string& what);
std::string hdf5_text_attribute(hid_t object, const std::string& name, const std::string& what);

}  // namespace memsieve::diffusion
