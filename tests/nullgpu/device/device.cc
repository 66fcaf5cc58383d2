#include "device.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <cuda.h>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>

namespace {
const Card RTX_4090 = {"NVIDIA GeForce RTX 4090", 8, 9, 128, 101376, 102400, 75497472, 384, 10501000,
                       2520000, 1536, 16384, 25386352640, 480ul << 20};
const Card H200 = {"NVIDIA H200", 9, 0, 132, 232448, 233472, 62914560, 6144, 3201000,
                   1980000, 2048, 16896, 150121545728, 520ul << 20};
const size_t PAGE = 2ul << 20;      // the driver hands out memory in pieces of this size

struct State {
  std::recursive_mutex mutex;
  std::map<uintptr_t, size_t> device, host;  // address -> bytes
  size_t used = 0;
  FILE *log = nullptr;
  bool brief = false;  // write each kind of event once, at once
  std::set<std::string> answered, seen;
};

State &state() {
  static State *made = [] {
    auto *fresh = new State;  // never freed: threads may still log while the process ends
    if (const char *path = getenv("CUDA_NULL_LOG")) fresh->log = fopen(path, "a");
    fresh->brief = getenv("CUDA_NULL_BRIEF") != nullptr;
    return fresh;
  }();
  return *made;
}

using Guard = std::lock_guard<std::recursive_mutex>;

bool contains(const std::map<uintptr_t, size_t> &pieces, const void *pointer) {
  auto next = pieces.upper_bound((uintptr_t)pointer);
  if (next == pieces.begin()) return false;
  --next;
  return (uintptr_t)pointer < next->first + next->second;
}

// Whether no event with the same two first fields was written; refusals and marks are always written.
bool first_of_its_kind(const char *line) {
  if (!strncmp(line, "refused", 7) || !strncmp(line, "oom", 3) || !strncmp(line, "mark", 4)) return true;
  const char *end = strchr(line, '\t');
  end = end ? strpbrk(end + 1, "\t\n") : nullptr;
  return state().seen.insert(end ? std::string(line, end) : std::string(line)).second;
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
}  // namespace

extern "C" {
const Card *null_card(void) {
  static const Card *card = [] {
    const char *wanted = getenv("CUDA_NULL_CARD");
    return wanted && !strcmp(wanted, "h200") ? &H200 : &RTX_4090;
  }();
  return card;
}

size_t null_taken_bytes(void) {
  const char *text = getenv("CUDA_NULL_TAKEN_MIB");
  return text ? strtoul(text, nullptr, 10) << 20 : 0;
}

size_t null_free_bytes(void) {
  Guard guard(state().mutex);
  const size_t gone = state().used + null_card()->context_bytes + null_taken_bytes();
  return gone < null_card()->memory_bytes ? null_card()->memory_bytes - gone : 0;
}

void *null_malloc(size_t bytes) {
  Guard guard(state().mutex);
  const size_t size = round_up(bytes ? bytes : 1, PAGE);
  if (size > null_free_bytes()) {
    null_log("oom\t%zu\tused %zu\n", bytes, state().used);
    return nullptr;
  }
  // Pages of the host that appear when they are touched, which kernels that do nothing never do.
  void *pointer = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pointer == MAP_FAILED) return nullptr;
  state().device[(uintptr_t)pointer] = size;
  state().used += size;
  null_log("malloc\t%zu\tused %zu\n", bytes, state().used);
  return pointer;
}

int null_free(void *pointer) {
  Guard guard(state().mutex);
  if (!pointer) return 0;
  auto piece = state().device.find((uintptr_t)pointer);
  if (piece == state().device.end()) return 1;
  munmap(pointer, piece->second);
  state().used -= piece->second;
  state().device.erase(piece);
  return 0;
}

int null_is_device(const void *pointer) {
  Guard guard(state().mutex);
  return contains(state().device, pointer);
}

void *null_host_alloc(size_t bytes) {
  Guard guard(state().mutex);
  const size_t size = round_up(bytes ? bytes : 1, 4096);
  void *pointer = aligned_alloc(4096, size);
  if (pointer) state().host[(uintptr_t)pointer] = size;
  return pointer;
}

void null_host_free(void *pointer) {
  Guard guard(state().mutex);
  state().host.erase((uintptr_t)pointer);
  free(pointer);
}

int null_is_host(const void *pointer) {
  Guard guard(state().mutex);
  return contains(state().host, pointer);
}

void null_copy(void *to, const void *from, size_t bytes) {
  const bool to_device = null_is_device(to), from_device = null_is_device(from);
  null_log("copy\t%s\t%zu\n", to_device ? from_device ? "DtoD" : "HtoD" : from_device ? "DtoH" : "HtoH", bytes);
  if (to_device) return;  // kernels that do nothing read nothing
  if (!from_device) {
    memmove(to, from, bytes);
    return;
  }
  memset(to, 0, bytes);
  // A single number that the program reads is 0 if it has the size of a float: losses and errors are
  // finite, and two results do not differ. A byte or eight bytes are a flag or a count and read as 1.
  if (bytes == 1 || bytes == 8) *(char *)to = 1;
}

void null_fill(void *, int, size_t bytes) { null_log("fill\t%zu\n", bytes); }

void null_log(const char *format, ...) {
  if (!state().log) return;
  Guard guard(state().mutex);
  char line[4096];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (state().brief && !first_of_its_kind(line)) return;
  fputs(line, state().log);
  if (state().brief) fflush(state().log);  // a stage may end without the handlers of exit
}

void null_log_launch(const char *name, const unsigned grid[3], const unsigned block[3], size_t shared) {
  null_log("launch\t%s\t%u,%u,%u\t%u,%u,%u\t%zu\n", name, grid[0], grid[1], grid[2], block[0], block[1],
           block[2], shared);
}

void null_flush(void) {
  if (state().log) fflush(state().log);
}

void null_answered(const char *function) {
  Guard guard(state().mutex);
  if (state().answered.insert(function).second) null_log("answered\t%s\n", function);
}

double null_now_ms(void) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
}

int null_attribute(int attribute) {
  const Card &card = *null_card();
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return card.clock_khz;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card.multiprocessors;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return card.memory_khz;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card.bus_bits;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return card.l2_bytes;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card.threads_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 2;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card.major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card.minor;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return card.shared_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return card.shared_per_block;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card.major >= 9 ? 32 : 24;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH: return card.major >= 9;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
    default: return 0;
  }
}
}
