#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/io/hdf5_attribute.h>
#include <diffusion/io/hdf5_file.h>

#include <algorithm>

namespace memsieve::diffusion {

int64_t Hdf5Array::bytes() const {
  int64_t count = static_cast<int64_t>(c10::elementSize(dtype_));
  for (const int64_t n : shape_) count *= n;
  return count;
}

at::Tensor Hdf5Array::read() const {
  silence_hdf5();
  at::Tensor values = at::empty(shape_, at::TensorOptions().dtype(dtype_));
  chunks_->check(id_.get(), 0, shape_[0], where_);
  if (H5Dread(id_.get(), memory_type_.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data_ptr()) < 0)
    throw DataError(where_ + ": cannot be read; the file is damaged, make it anew");
  return values;
}

at::Tensor Hdf5Array::read_rows(const std::vector<int64_t>& ids) const {
  silence_hdf5();
  // Read in the order of the file, each row once: rows that lie side by side in one call, and rows of one chunk one
  // after the other, so that the chunk is read and inflated once.
  std::vector<int64_t> sorted(ids);
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  std::vector<int64_t> shape = shape_;
  shape[0] = static_cast<int64_t>(sorted.size());
  at::Tensor values = at::empty(shape, at::TensorOptions().dtype(dtype_));
  const int64_t row_bytes = sorted.empty() ? 0 : static_cast<int64_t>(values.nbytes()) / shape[0];
  auto* out = static_cast<char*>(values.data_ptr());
  for (size_t first = 0, last; first < sorted.size(); first = last) {
    last = first + 1;
    while (last < sorted.size() && sorted[last] == sorted[last - 1] + 1) ++last;
    const auto count = static_cast<int64_t>(last - first);
    read_run(sorted[first], count, out);
    out += count * row_bytes;
  }
  if (sorted == ids) return values;
  std::vector<int64_t> places;
  places.reserve(ids.size());
  for (const int64_t id : ids) places.push_back(std::lower_bound(sorted.begin(), sorted.end(), id) - sorted.begin());
  return values.index_select(0, at::tensor(places, at::kLong));
}

void Hdf5Array::read_run(int64_t first, int64_t rows, void* out) const {
  chunks_->check(id_.get(), first, rows, where_);
  std::vector<hsize_t> start(shape_.size(), 0), count(shape_.begin(), shape_.end());
  start[0] = static_cast<hsize_t>(first);
  count[0] = static_cast<hsize_t>(rows);
  const Hdf5Handle from(H5Dget_space(id_.get()), H5Sclose);
  const Hdf5Handle to(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr), H5Sclose);
  H5Sselect_hyperslab(from.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
  if (H5Dread(id_.get(), memory_type_.get(), to.get(), from.get(), H5P_DEFAULT, out) >= 0) return;
  const std::string what = rows == 1 ? "row " + std::to_string(first)
                                     : "rows " + std::to_string(first) + " to " + std::to_string(first + rows - 1);
  throw DataError(where_ + ": " + what + " cannot be read; the file is damaged, make it anew");
}

at::Tensor Hdf5Array::read_range(int64_t first, int64_t count) const {
  silence_hdf5();
  std::vector<int64_t> shape = shape_;
  shape[0] = count;
  at::Tensor values = at::empty(shape, at::TensorOptions().dtype(dtype_));
  if (values.numel() > 0) read_run(first, count, values.data_ptr());
  return values;
}

std::vector<double> Hdf5Array::attribute(const std::string& name, int64_t count) const {
  return hdf5_number_attribute(id_.get(), name, count, where_ + ": attribute '" + name + "'");
}

double Hdf5Array::attribute_or(const std::string& name, double otherwise) const {
  silence_hdf5();
  return H5Aexists(id_.get(), name.c_str()) > 0 ? attribute(name, 1)[0] : otherwise;
}

std::vector<std::string> Hdf5Strings::read_rows(const std::vector<int64_t>& ids) const {
  silence_hdf5();
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const int64_t id : ids) texts.push_back(id_ ? read_variable_row(id) : read_row(id));
  return texts;
}

std::string Hdf5Strings::read_row(int64_t id) const {
  const at::Tensor ends = offsets_.read_range(id, 2);
  const int64_t first = ends.const_data_ptr<int64_t>()[0], end = ends.const_data_ptr<int64_t>()[1];
  if (first < 0 || first > end || end > bytes_.shape()[0])
    throw DataError(offsets_.where() + ": row " + std::to_string(id) + " runs from " + std::to_string(first) + " to " +
                    std::to_string(end) + " of " + std::to_string(bytes_.shape()[0]) +
                    " bytes; the file is damaged, make it anew");
  const at::Tensor text = bytes_.read_range(first, end - first);
  return {static_cast<const char*>(text.const_data_ptr()), static_cast<size_t>(end - first)};
}

std::string Hdf5Strings::read_variable_row(int64_t id) const {
  chunks_->check(id_.get(), id, 1, where_);
  const Hdf5Handle from(H5Dget_space(id_.get()), H5Sclose), one(H5Screate(H5S_SCALAR), H5Sclose);
  const hsize_t start = static_cast<hsize_t>(id), count = 1;
  H5Sselect_hyperslab(from.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr);
  const auto reference = [&](hid_t type, void* out) {
    return H5Dread(id_.get(), type, one.get(), from.get(), H5P_DEFAULT, out) >= 0;
  };
  return reader_.read(reference, where_ + ": row " + std::to_string(id));
}

}  // namespace memsieve::diffusion
