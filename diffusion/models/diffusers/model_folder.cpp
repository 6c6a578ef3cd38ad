#include <memsieve/error.h>
#include <diffusion/io/safetensors_index.h>
#include <diffusion/io/text_file.h>
#include <diffusion/models/diffusers/model_folder.h>

#include <filesystem>
#include <set>

namespace memsieve::diffusion {

namespace {

namespace fs = std::filesystem;

// What diffusers calls the weights, and the index of their shards; the second pair for variant="fp16".
const std::pair<const char*, const char*> names[] = {
    {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"},
    {"diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"}};

std::set<std::string> shards_of(const fs::path& index) {
  return parse_safetensors_index(read_text<DataError>(index.string()), index.string());
}

FolderWeights read_shards(const fs::path& folder, const fs::path& index) {
  FolderWeights weights{{}, index.string()};
  for (const std::string& name : shards_of(index))
    for (auto& [key, tensor] : load_safetensors((folder / name).string()))
      if (!weights.tensors.emplace(key, tensor).second)
        throw DataError((folder / name).string() + ": tensor " + in_quotes(key) + ": stands in another shard too");
  return weights;
}

std::string others(std::size_t count) {
  return count > 1 ? ", and so are " + std::to_string(count - 1) + " more" : "";
}

/// What stands in the folder in place of the weights, and how to make them of it; "" = nothing of theirs.
std::string instead_of_weights(const fs::path& folder) {
  if (fs::exists(folder / "diffusion_pytorch_model.bin"))
    return "; the folder holds a .bin file: save the model again with diffusers, safe_serialization=True";
  const std::string stem = "diffusion_pytorch_model.", kind = ".safetensors";
  std::set<std::string> variants;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.rfind(stem, 0) == 0 && entry->path().extension() == kind && name.size() > stem.size() + kind.size())
      variants.insert(name);
  }
  if (variants.empty()) return "";
  const std::string& first = *variants.begin();
  const std::string variant = first.substr(stem.size(), first.find_first_of(".-", stem.size()) - stem.size());
  return "; the folder holds the variant " + in_quotes(first) + ": save the model again with diffusers, " +
         "from_pretrained(FOLDER, variant=" + in_quotes(variant) + ").save_pretrained(FOLDER)";
}

}  // namespace

FolderWeights read_weights(const std::string& folder) {
  const fs::path in(folder);
  for (const auto& [whole, index] : names) {
    if (fs::exists(in / whole)) return {load_safetensors((in / whole).string()), (in / whole).string()};
    if (fs::exists(in / index)) return read_shards(in, in / index);
  }
  throw DataError(weights_path(folder) + ": cannot be opened" + instead_of_weights(in));
}

void fill_parameters(torch::nn::Module& model, FolderWeights&& weights) {
  auto& [tensors, where] = weights;
  std::vector<std::string> missing;
  for (auto& item : model.named_parameters()) {
    const auto found = tensors.find(item.key());
    if (found == tensors.end()) {
      missing.push_back(item.key());
      continue;
    }
    if (found->second.sizes() != item->sizes())
      throw DataError(where + ": tensor " + in_quotes(item.key()) + " is " + in_brackets(found->second.sizes()) +
                      ", config.json asks for " + in_brackets(item->sizes()));
    item->set_data(found->second.to(at::kFloat));
    tensors.erase(found);  // so that a file in half precision is never in memory twice
  }
  if (!missing.empty())
    throw DataError(where + ": tensor " + in_quotes(missing.front()) + " is missing" + others(missing.size()) +
                    "; config.json asks for it");
  if (!tensors.empty())
    throw DataError(where + ": tensor " + in_quotes(tensors.begin()->first) +
                    " has no place in the model of config.json" +
                    (tensors.size() > 1 ? ", nor have " + std::to_string(tensors.size() - 1) + " others" : ""));
}

std::string config_path(const std::string& folder) {
  return (fs::path(folder) / "config.json").string();
}

std::string weights_path(const std::string& folder) {
  return (fs::path(folder) / names[0].first).string();
}

}  // namespace memsieve::diffusion
