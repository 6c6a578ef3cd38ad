// What is read of a plug-in's file before it is opened: the stamp in its section, whatever the file holds.
#include <elf.h>
#include <memsieve/plugin.h>

#include <bit>
#include <catch2/catch.hpp>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "config/plugin_file.h"

namespace of_test_plugin_file {

using namespace memsieve;

namespace {

const MemsieveStamp kStamp = MEMSIEVE_STAMP_INITIALIZER;

/// A shared object of three sections: none, the stamp, the names.
std::string shared_object() {
  const std::string names = std::string(1, '\0') + MEMSIEVE_STAMP_SECTION + '\0';
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = std::endian::native == std::endian::little ? ELFDATA2LSB : ELFDATA2MSB;
  header.e_type = ET_DYN;
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = 3;
  header.e_shstrndx = 2;
  header.e_shoff = sizeof header + sizeof kStamp + names.size();
  std::vector<Elf64_Shdr> sections(3);
  sections[1].sh_name = 1;
  sections[1].sh_type = SHT_PROGBITS;
  sections[1].sh_offset = sizeof header;
  sections[1].sh_size = sizeof kStamp;
  sections[2].sh_type = SHT_STRTAB;
  sections[2].sh_offset = sizeof header + sizeof kStamp;
  sections[2].sh_size = names.size();
  std::string file(reinterpret_cast<const char*>(&header), sizeof header);
  file.append(reinterpret_cast<const char*>(&kStamp), sizeof kStamp).append(names);
  return file.append(reinterpret_cast<const char*>(sections.data()), sections.size() * sizeof sections[0]);
}

std::optional<MemsieveStamp> stamp_in(const std::string& file) {
  return find_stamp([&](uint64_t offset, uint64_t size, void* to) {
    if (offset > file.size() || size > file.size() - offset) return false;
    std::memcpy(to, file.data() + offset, size);
    return true;
  });
}

}  // namespace

TEST_CASE("the stamp is found in its section") {
  const auto stamp = stamp_in(shared_object());
  REQUIRE(stamp.has_value());
  CHECK(std::memcmp(&*stamp, &kStamp, sizeof kStamp) == 0);
}

TEST_CASE("a file that is cut anywhere has no stamp") {
  const std::string file = shared_object();
  for (size_t size = 0; size < file.size(); ++size) REQUIRE_FALSE(stamp_in(file.substr(0, size)).has_value());
}

TEST_CASE("every byte of the file may be anything") {
  const std::string file = shared_object();
  const auto look = [](const std::string& damaged) {
    const auto stamp = stamp_in(damaged);
    if (!stamp) return;
    const std::string bytes(reinterpret_cast<const char*>(&*stamp), sizeof *stamp);
    REQUIRE(damaged.find(bytes) != std::string::npos);  // never anything but what the file holds
  };
  std::mt19937 random(1);
  for (size_t at = 0; at < file.size(); ++at) {
    for (const int value : {0, 1, 0x7f, 0xff}) {
      std::string damaged = file;
      damaged[at] = static_cast<char>(value);
      look(damaged);
      for (int more = 0; more < 3; ++more) damaged[random() % file.size()] = static_cast<char>(random());
      look(damaged);
    }
  }
}

TEST_CASE("a section of another name or size is no stamp") {
  std::string renamed = shared_object();
  renamed[renamed.find(MEMSIEVE_STAMP_SECTION) + 1] = 'M';
  CHECK_FALSE(stamp_in(renamed).has_value());
  std::string shorter = shared_object();
  auto* const size = shorter.data() + shorter.size() - 2 * sizeof(Elf64_Shdr) + offsetof(Elf64_Shdr, sh_size);
  const uint64_t less = sizeof kStamp - 1;
  std::memcpy(size, &less, sizeof less);
  CHECK_FALSE(stamp_in(shorter).has_value());
}

}  // namespace of_test_plugin_file
