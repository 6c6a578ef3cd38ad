#pragma once
// The prompts that a model is audited on: a data set (docs/data_format.md) with, besides, the words of its tokens.

#include <diffusion/data/dataset.h>
#include <diffusion/io/hdf5_file.h>
#include <audit/audit_rooms.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::audit {

/// Another wording of a prompt: a row behind the prompts themselves.
struct Variant {
  int64_t row = 0;
  /// "random tokens", "without WORD" or "rephrased"
  std::string kind;
};

class Prompts {
 public:
  /// DataError for a file that is no data set or whose tokens do not fit it.
  static Prompts open(const std::string& path);

  const Dataset& data() const { return data_; }
  /// Without variants, which are the last rows of data().
  int64_t size() const { return size_; }
  /// Of prompt `row`, in the order of the file; `kind` "" = all.
  std::vector<Variant> variants(int64_t row, const std::string& kind = "") const;
  /// Whether the file holds real pictures (or their latents), not only room for them.
  bool has_pictures() const { return has_pictures_; }

  bool has_tokens() const { return !end_token_.empty(); }
  /// DataError, saying how to make them, if there are none. `command` needs them.
  void require_tokens(const std::string& command) const;
  /// The words of prompt `row`'s tokens [L]; tokens come as the tokenizer prints them, an end of word as a space.
  /// Only if has_tokens().
  std::vector<std::string> tokens(int64_t row) const;
  /// Place of the first end token, from which on there is nothing of the caption; at most L. Only if has_tokens().
  int64_t end_token(int64_t row) const { return end_token_.at(static_cast<size_t>(row)); }

  /// [N, D] float32 with variants: what a CLIP model's text tower answers to each caption; undefined if the file
  /// holds none.
  const at::Tensor& clip_text() const { return clip_text_; }

  /// Of all captions and their states, their end tokens and what they are variants of.
  std::string identity() const;
  /// DataError unless `other` comes from the same text encoder and has the same shapes and the same empty caption.
  void check_comparable(const Prompts& other) const;

 private:
  explicit Prompts(Dataset data) : data_(std::move(data)) {}
  Dataset data_;
  void read_tokens(const Hdf5File& file);
  void read_variants(const Hdf5File& file);
  void read_clip_text(const Hdf5File& file);
  void look_for_pictures();

  int64_t size_ = 0;
  std::vector<std::string> words_;
  std::vector<int64_t> variant_of_;
  std::vector<std::string> variant_kinds_;
  std::vector<int64_t> end_token_;
  at::Tensor clip_text_;
  /// what the text encoder was, "" if the file does not say
  std::string encoder_;
  bool has_pictures_ = false;
};

}  // namespace memsieve::audit
