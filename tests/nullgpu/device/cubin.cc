#include "cubin.h"

#include <cstring>
#include <elf.h>

namespace {
// Records of section .nv.info: a byte of format, a byte of attribute, then for format 4 the size of the
// value and the value, which begins with the number of a symbol.
const unsigned char SIZED_VALUE = 4, FRAME_SIZE = 0x11, REGISTER_COUNT = 0x2f;

bool begins(const std::string &text, const char *prefix) { return text.rfind(prefix, 0) == 0; }
}  // namespace

Module *read_cubin(const void *image) {
  const auto *bytes = (const unsigned char *)image;
  if (memcmp(bytes, ELFMAG, SELFMAG)) return nullptr;
  const auto *header = (const Elf64_Ehdr *)bytes;
  const auto *sections = (const Elf64_Shdr *)(bytes + header->e_shoff);
  const char *names = (const char *)bytes + sections[header->e_shstrndx].sh_offset;
  auto *module = new Module;
  // The architecture lies in bits 0 to 7 of the flags, since ABI version 8 in bits 8 to 15.
  const bool newer = header->e_ident[EI_ABIVERSION] >= 8 || !(header->e_flags & 0xff);
  module->architecture = (header->e_flags >> (newer ? 8 : 0)) & 0xff;

  const Elf64_Sym *symbols = nullptr;
  const char *symbol_names = nullptr;
  size_t symbol_count = 0;
  for (int i = 0; i < header->e_shnum; i++) {
    const std::string name = names + sections[i].sh_name;
    if (sections[i].sh_type == SHT_SYMTAB) {
      symbols = (const Elf64_Sym *)(bytes + sections[i].sh_offset);
      symbol_count = sections[i].sh_size / sizeof(Elf64_Sym);
      symbol_names = (const char *)bytes + sections[sections[i].sh_link].sh_offset;
    } else if (begins(name, ".text.")) {
      module->kernels[name.substr(6)].name = name.substr(6);
    } else if (begins(name, ".nv.shared.") && name.find("reserved") == std::string::npos) {
      module->kernels[name.substr(11)].static_shared = sections[i].sh_size;
    }
  }
  for (int i = 0; i < header->e_shnum && symbols; i++) {
    if (strcmp(names + sections[i].sh_name, ".nv.info")) continue;
    const unsigned char *at = bytes + sections[i].sh_offset, *end = at + sections[i].sh_size;
    while (at + 4 <= end) {
      const unsigned char format = at[0], attribute = at[1];
      const unsigned size = at[2] | at[3] << 8;
      at += 4;
      if (format != SIZED_VALUE) continue;
      if (size >= 8) {
        unsigned symbol, value;
        memcpy(&symbol, at, 4);
        memcpy(&value, at + 4, 4);
        if (symbol < symbol_count) {
          auto kernel = module->kernels.find(symbol_names + symbols[symbol].st_name);
          if (kernel != module->kernels.end()) {
            if (attribute == REGISTER_COUNT) kernel->second.registers = value & 0xffff;
            if (attribute == FRAME_SIZE) kernel->second.stack_bytes = value;
          }
        }
      }
      at += size;
    }
  }
  return module;
}
