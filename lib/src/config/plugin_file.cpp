#include "config/plugin_file.h"

#include <elf.h>
#include <fcntl.h>
#include <grp.h>
#include <memsieve/error.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cstdio>
#include <cstring>
#include <filesystem>

namespace memsieve {

namespace {

constexpr unsigned char kByteOrder = std::endian::native == std::endian::little ? ELFDATA2LSB : ELFDATA2MSB;

bool is_shared_object(const Elf64_Ehdr& header) {
  return std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_ident[EI_CLASS] == ELFCLASS64 &&
         header.e_ident[EI_DATA] == kByteOrder && header.e_type == ET_DYN && header.e_shentsize == sizeof(Elf64_Shdr) &&
         header.e_shoff != 0 && header.e_shstrndx < header.e_shnum;
}

/// `index` is below 2^16, so that only the table's own place can overflow.
bool read_section(const ReadBytes& read, const Elf64_Ehdr& header, uint64_t index, Elf64_Shdr& section) {
  const uint64_t distance = index * sizeof section;
  return header.e_shoff <= UINT64_MAX - distance && read(header.e_shoff + distance, sizeof section, &section);
}

bool is_named(const ReadBytes& read, const Elf64_Shdr& names, const Elf64_Shdr& section) {
  char name[sizeof MEMSIEVE_STAMP_SECTION] = "";
  return names.sh_size >= sizeof name && section.sh_name <= names.sh_size - sizeof name &&
         names.sh_offset <= UINT64_MAX - section.sh_name &&
         read(names.sh_offset + section.sh_name, sizeof name, name) &&
         std::memcmp(name, MEMSIEVE_STAMP_SECTION, sizeof name) == 0;
}

/// The user's own group, of which nobody else is: where umask is 002, files are open to it.
bool is_private_group(gid_t group) {
  const passwd* user = getpwuid(geteuid());
  if (user == nullptr || user->pw_gid != group) return false;
  const std::string name = user->pw_name;
  const struct group* entry = getgrgid(group);
  return entry != nullptr && name == entry->gr_name && entry->gr_mem[0] == nullptr;
}

std::string octal(mode_t mode) {
  char text[16];
  std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode & 07777));
  return text;
}

std::string why_untrusted_itself(const std::string& path, bool sticky_is_safe) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return path + " cannot be looked at: " + std::strerror(errno);
  if (status.st_uid != 0 && status.st_uid != geteuid())
    return path + " belongs to user " + std::to_string(status.st_uid) + ", who is neither root nor you";
  if (sticky_is_safe && (status.st_mode & S_ISVTX) != 0) return "";
  const bool group = (status.st_mode & S_IWGRP) != 0 && !is_private_group(status.st_gid);
  if (group || (status.st_mode & S_IWOTH) != 0)
    return "others can write to " + path + " (mode " + octal(status.st_mode) + "); take that away with chmod go-w";
  return "";
}

}  // namespace

std::optional<MemsieveStamp> find_stamp(const ReadBytes& read) {
  Elf64_Ehdr header{};
  Elf64_Shdr names{}, section{};
  if (!read(0, sizeof header, &header) || !is_shared_object(header)) return std::nullopt;
  if (!read_section(read, header, header.e_shstrndx, names)) return std::nullopt;
  for (uint64_t index = 0; index < header.e_shnum; ++index) {
    if (!read_section(read, header, index, section)) return std::nullopt;
    if (section.sh_type != SHT_PROGBITS || !is_named(read, names, section)) continue;
    MemsieveStamp stamp{};
    if (section.sh_size != sizeof stamp || !read(section.sh_offset, sizeof stamp, &stamp)) return std::nullopt;
    return stamp;
  }
  return std::nullopt;
}

std::optional<MemsieveStamp> find_stamp(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw ConfigError("plug-in " + path + ": cannot be opened: " + std::strerror(errno));
  const auto stamp = find_stamp([file](uint64_t offset, uint64_t size, void* to) {
    return offset <= INT64_MAX && pread(file, to, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
  });
  close(file);
  return stamp;
}

std::string why_untrusted(const std::string& path) {
  std::filesystem::path place(path);
  if (auto why = why_untrusted_itself(place, false); !why.empty()) return why;
  for (bool above = false; place != place.root_path(); above = true) {
    place = place.parent_path();
    if (auto why = why_untrusted_itself(place, above); !why.empty()) return why;
  }
  return "";
}

}  // namespace memsieve
