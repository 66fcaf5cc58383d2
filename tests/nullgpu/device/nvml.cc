// libnvidia-ml.so.1: what fingerprint, telemetry, preflight and the one-GPU check ask of the card.
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
const int OK = 0, NOT_SUPPORTED = 3, INVALID_ARGUMENT = 2;
struct Memory { unsigned long long total, free, used; };
struct Utilization { unsigned gpu, memory; };
struct PciInfo {
  char legacy[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
};
}  // namespace

extern "C" {
int nvmlInitWithFlags(unsigned) { return OK; }
int nvmlInit_v2(void) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code ? "Not Supported" : "Success"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "580.95.05"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (void *)1;
  return index ? INVALID_ARGUMENT : OK;
}
// PyTorch asks the next three when memory runs out, to tell who holds it.
int nvmlDeviceGetHandleByPciBusId_v2(const char *, void **device) { *device = (void *)1; return OK; }
int nvmlDeviceGetComputeRunningProcesses(void *, unsigned *count, void *) { *count = 0; return OK; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void *, unsigned, unsigned *) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *, unsigned, PciInfo *) { return NOT_SUPPORTED; }
int nvmlDeviceGetName(void *, char *text, unsigned size) { snprintf(text, size, "%s", null_card()->name); return OK; }
int nvmlDeviceGetUUID(void *, char *text, unsigned size) {
  snprintf(text, size, "GPU-00000000-0000-0000-0000-000000004090");
  return OK;
}
int nvmlDeviceGetVbiosVersion(void *, char *text, unsigned size) { snprintf(text, size, "95.02.3C.00.01"); return OK; }
int nvmlDeviceGetMemoryInfo(void *, Memory *memory) {
  memory->total = null_card()->memory_bytes;
  memory->used = null_taken_bytes() + (300ull << 20);
  memory->free = memory->total - memory->used;
  return OK;
}
int nvmlDeviceGetBAR1MemoryInfo(void *, Memory *memory) {
  memory->total = 32ull << 30;
  memory->used = 4ull << 20;
  memory->free = memory->total - memory->used;
  return OK;
}
int nvmlDeviceGetArchitecture(void *, unsigned *value) { *value = null_card()->major == 9 ? 9 : 8; return OK; }
int nvmlDeviceGetCudaComputeCapability(void *, int *major, int *minor) {
  *major = null_card()->major;
  *minor = null_card()->minor;
  return OK;
}
int nvmlDeviceGetNumGpuCores(void *, unsigned *value) { *value = null_card()->cores; return OK; }
int nvmlDeviceGetMemoryBusWidth(void *, unsigned *value) { *value = null_card()->bus_bits; return OK; }
int nvmlDeviceGetMaxClockInfo(void *, unsigned kind, unsigned *value) {
  *value = kind == 2 ? null_card()->memory_khz / 1000 : null_card()->clock_khz / 1000;
  return OK;
}
int nvmlDeviceGetClockInfo(void *device, unsigned kind, unsigned *value) {
  return nvmlDeviceGetMaxClockInfo(device, kind, value);
}
int nvmlDeviceGetTemperature(void *, unsigned, unsigned *value) { *value = 40; return OK; }
int nvmlDeviceGetPowerUsage(void *, unsigned *value) { *value = 60000; return OK; }
int nvmlDeviceGetPowerManagementLimit(void *, unsigned *value) { *value = 450000; return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *, unsigned *value) { *value = 450000; return OK; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *, unsigned *least, unsigned *most) {
  *least = 150000;
  *most = 600000;
  return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(void *, unsigned long long *value) {
  *value = (unsigned long long)(60 * null_now_ms());  // millijoules at the 60 W above
  return OK;
}
int nvmlDeviceGetUtilizationRates(void *, Utilization *rates) { rates->gpu = rates->memory = 0; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(void *, unsigned long long *value) { *value = 1; return OK; }
int nvmlDeviceGetCurrPcieLinkGeneration(void *, unsigned *value) { *value = 4; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(void *, unsigned *value) { *value = 16; return OK; }
int nvmlDeviceGetDisplayActive(void *, unsigned *value) { *value = null_taken_bytes() != 0; return OK; }
int nvmlDeviceGetEccMode(void *, unsigned *, unsigned *) { return NOT_SUPPORTED; }
int nvmlDeviceGetMigMode(void *, unsigned *, unsigned *) { return NOT_SUPPORTED; }
int nvmlDeviceGetGpcClkVfOffset(void *, int *value) { *value = 0; return OK; }
int nvmlDeviceGetMemClkVfOffset(void *, int *value) { *value = 0; return OK; }
int nvmlDeviceGetPciInfo_v3(void *, PciInfo *info) {
  memset(info, 0, sizeof *info);
  info->bus = 1;
  info->device_id = null_card()->major == 9 ? 0x233510DE : 0x268410DE;
  snprintf(info->legacy, sizeof info->legacy, "0000:01:00.0");
  snprintf(info->bus_id, sizeof info->bus_id, "00000000:01:00.0");
  return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *, unsigned *count, void *) { *count = 0; return OK; }
}
