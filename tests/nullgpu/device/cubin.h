// What a kernel of a compiled module needs, read from its ELF file.
#pragma once
#include <map>
#include <string>

struct Kernel {
  std::string name;
  int registers = 0, stack_bytes = 0, static_shared = 0;
  int dynamic_shared = 49152;  // the limit in force: more has to be asked for
};

struct Module {
  int architecture = 0;  // 89 for sm_89
  std::map<std::string, Kernel> kernels;
};

Module *read_cubin(const void *image);  // null pointer: not an ELF file
