// The null device: an NVIDIA GPU whose memory, limits and refusals are real and whose kernels do nothing.
#pragma once
#include <cstddef>
#include <cstdint>

struct Card {
  const char *name;
  int major, minor;              // compute capability
  int multiprocessors;
  int shared_per_block;          // bytes that a kernel may opt in to
  int shared_per_multiprocessor;
  int l2_bytes, bus_bits, memory_khz, clock_khz, threads_per_multiprocessor, cores;
  size_t memory_bytes;           // as cudaGetDeviceProperties reports it
  size_t context_bytes;          // taken by CUDA's context before the first allocation
};

extern "C" {
const Card *null_card(void);     // NULLGPU=4090 (default) or h200
size_t null_taken_bytes(void);   // CUDA_NULL_TAKEN_MIB: what a desktop holds of the card's memory

void *null_malloc(size_t bytes); // null pointer when the card is full
int null_free(void *pointer);    // 1: not a device pointer
int null_is_device(const void *pointer);
void *null_host_alloc(size_t bytes);
void null_host_free(void *pointer);
int null_is_host(const void *pointer);
size_t null_free_bytes(void);

// Device memory holds nothing: what is copied to the host is zeros, or 1 for a single flag or count.
void null_copy(void *to, const void *from, size_t bytes);
void null_fill(void *to, int value, size_t bytes);

// One line for each event, tab-separated: launch, gemm, copy, sync, malloc, oom, refused, answered.
// With CUDA_NULL_BRIEF a process writes an event only if its first two fields are new.
void null_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
void null_log_launch(const char *name, const unsigned grid[3], const unsigned block[3], size_t shared);
void null_flush(void);
void null_answered(const char *function);  // a function that nobody wrote out and that answered 0
double null_now_ms(void);
int null_attribute(int attribute);  // CUdevice_attribute and cudaDeviceAttr share their numbers
}
