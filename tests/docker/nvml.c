/* A driver library for containers without a GPU: answers what the kit's preflight asks.
   COUNT GPUs, a driver that serves CUDA, PROCESSES other processes on each. */
#include <stdio.h>
#include <string.h>

#define OK 0
#define NOT_SUPPORTED 3

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (void *)(size_t)(index + 1);
  return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = CUDA; return OK; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  snprintf(text, size, "550.54.14");
  return OK;
}
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
  snprintf(text, size, "NVIDIA GeForce RTX 4090");
  return OK;
}
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
  memory->total = 25757220864ULL;
  memory->used = 400000000ULL;
  memory->free = memory->total - memory->used;
  return OK;
}
struct process { unsigned pid; unsigned long long used; unsigned gpu, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *list) {
  unsigned room = *count;
  *count = PROCESSES;
  if (room < PROCESSES) return 7; /* insufficient size */
  memset(list, 0, room * sizeof *list);
  for (unsigned i = 0; i < PROCESSES; i++) list[i].pid = 100000 + i;
  return OK;
}
