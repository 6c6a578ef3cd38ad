#pragma once
// The pictures that prompts are known to reproduce.

#include <audit/data/prompts.h>
#include <diffusion/models/vae/picture_decoder.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace memsieve::audit {

class Originals {
 public:
  /// Of prompts `rows`: the pictures of those rows of `pictures`, the same file or another data set, that have the
  /// prompt's caption. A picture that stands there several times is held once. Throws DataError, naming the prompt, for
  /// one that has none.
  Originals(const Prompts& prompts, const std::vector<int64_t>& rows, const Prompts& pictures);

  /// Distinct pictures.
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  /// Places below size() of those of a prompt, at least one.
  const std::vector<int64_t>& of(int64_t prompt) const { return of_.at(prompt); }
  /// [size(), 3, H, W] uint8 on the CPU as a decoder shows them; null: the latents [size(), C, H, W] float32.
  at::Tensor shown(PictureDecoder* decoder, c10::Device device) const;

 private:
  const Prompts* pictures_;
  /// of pictures_, the first of each
  std::vector<int64_t> rows_;
  std::map<int64_t, std::vector<int64_t>> of_;
};

/// The first row of each caption among the prompts: rows with the same caption are one prompt.
std::vector<int64_t> distinct_prompts(const Prompts& prompts);

}  // namespace memsieve::audit
