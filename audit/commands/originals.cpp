#include <ATen/ATen.h>
#include <audit/commands/inputs.h>
#include <audit/commands/originals.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>

#include <algorithm>
#include <set>

namespace memsieve::audit {

namespace {

/// Latents that are decoded at once.
constexpr int64_t kDecodedAtOnce = 8;

}  // namespace

Originals::Originals(const Prompts& prompts, const std::vector<int64_t>& rows, const Prompts& pictures)
    : pictures_(&pictures) {
  if (!pictures.has_pictures())
    throw DataError(pictures.data().path() +
                    ": holds no pictures that drawings could be compared with; name a data set of the pictures with "
                    "their captions by --originals (`memsieve prepare`)");
  std::map<uint64_t, int64_t> place_of;
  std::map<std::string, std::vector<int64_t>> of_caption;
  const auto hashes = picture_hashes(pictures);
  const auto captions = captions_of(pictures);
  std::set<std::string> asked;
  const auto of_prompts = captions_of(prompts);
  for (const int64_t row : rows) asked.insert(of_prompts[static_cast<size_t>(row)]);
  for (size_t row = 0; row < captions.size(); ++row) {
    if (asked.count(captions[row]) == 0) continue;
    const auto [found, is_new] = place_of.try_emplace(hashes[row], size());
    if (is_new) rows_.push_back(static_cast<int64_t>(row));
    auto& places = of_caption[captions[row]];
    if (std::count(places.begin(), places.end(), found->second) == 0) places.push_back(found->second);
  }
  for (const int64_t row : rows) {
    const std::string& caption = of_prompts[static_cast<size_t>(row)];
    const auto found = of_caption.find(caption);
    if (found == of_caption.end())
      throw DataError(pictures.data().path() + ": has no picture of prompt " + std::to_string(row) + " of " +
                      prompts.data().path() + " (" + detail::in_quotes(caption) +
                      "); trigger prompts need the picture that they are known to reproduce, under the same caption");
    of_[row] = found->second;
  }
}

at::Tensor Originals::shown(PictureDecoder* decoder, c10::Device device) const {
  std::vector<at::Tensor> parts;
  for (size_t begin = 0; begin < rows_.size(); begin += kDecodedAtOnce) {
    const size_t end = std::min(rows_.size(), begin + kDecodedAtOnce);
    const std::vector<int64_t> some(rows_.begin() + static_cast<int64_t>(begin),
                                    rows_.begin() + static_cast<int64_t>(end));
    parts.push_back(decoder != nullptr ? own_pictures(*pictures_, some, *decoder, device)
                                       : pictures_->data().load(some).latents);
  }
  return at::cat(parts);
}

std::vector<int64_t> distinct_prompts(const Prompts& prompts) {
  const auto captions = captions_of(prompts);
  std::set<std::string> seen;
  std::vector<int64_t> rows;
  for (size_t row = 0; row < captions.size(); ++row)
    if (seen.insert(captions[row]).second) rows.push_back(static_cast<int64_t>(row));
  return rows;
}

}  // namespace memsieve::audit
