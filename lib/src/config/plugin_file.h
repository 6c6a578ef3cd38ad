#pragma once
// What can be told of a plug-in's file before any of its code runs. Private to the library.

#include <memsieve/plugin.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace memsieve {

/// Reads `size` bytes at `offset` of a file to `to`; false if the file has no such bytes.
using ReadBytes = std::function<bool(uint64_t offset, uint64_t size, void* to)>;

/// The stamp in the section MEMSIEVE_STAMP_SECTION of a 64-bit ELF file (System V ABI, chapter 4); nullopt if the file
/// is none, is damaged, or has no such section. Never throws.
std::optional<MemsieveStamp> find_stamp(const ReadBytes& read);

/// The same for a file on disk. Throws ConfigError if it cannot be read.
std::optional<MemsieveStamp> find_stamp(const std::string& path);

/// Why a regular file is not to be trusted with code of ours: it, or a folder on the way to it, belongs to somebody
/// else than root and this user, or others can write to it. "" = nothing is wrong. A group that is the user's own does
/// not count as others, nor, for the folders above the file's own, do those who can write to a sticky one, as /tmp is.
/// `path` must be absolute and free of links.
std::string why_untrusted(const std::string& path);

}  // namespace memsieve
