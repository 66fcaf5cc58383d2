// libcudart.so.13: memory, copies, streams, events, and launches of the kernels built into PyTorch.
#include "device.h"

#include <cstdio>
#include <cstring>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <unordered_map>

namespace {
thread_local cudaError_t last_error = cudaSuccess;
struct Launch { dim3 grid, block; size_t shared; void *stream; };
thread_local Launch pending[8];
thread_local int pending_count = 0;
struct Event { double ms; };
char streams[1024];
int stream_count = 0;

std::unordered_map<const void *, const char *> &kernel_names() {
  static auto *names = new std::unordered_map<const void *, const char *>;
  return *names;
}

const char *name_of(const void *function) {
  auto found = kernel_names().find(function);
  return found == kernel_names().end() ? "?" : found->second;
}

cudaError_t failed(cudaError_t error) {
  last_error = error;
  return error;
}

cudaError_t launch(const void *function, dim3 grid, dim3 block, size_t shared) {
  const unsigned g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
  null_log_launch(name_of(function), g, b, shared);
  const size_t threads = (size_t)block.x * block.y * block.z;
  if (shared > (size_t)null_card()->shared_per_block || !threads || threads > 1024 || grid.y > 65535 ||
      grid.z > 65535 || !grid.x || !grid.y || !grid.z) {
    null_log("refused\tgrid %u,%u,%u of %zu threads, shared %zu\t%s\n", grid.x, grid.y, grid.z, threads, shared,
             name_of(function));
    return failed(cudaErrorInvalidConfiguration);
  }
  return cudaSuccess;
}

cudaStream_t new_stream() { return (cudaStream_t)&streams[++stream_count & 1023]; }
}  // namespace

#define DONE { return cudaSuccess; }
extern "C" {
// What nvcc's start-up code calls: here the names of kernels are learnt.
void **__cudaRegisterFatBinary(void *) { static void *handle[1]; return handle; }
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) { kernel_names()[host] = name; }
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
char __cudaInitModule(void **) { return 1; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  pending[pending_count++ & 7] = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  const Launch &call = pending[--pending_count & 7];
  *grid = call.grid;
  *block = call.block;
  *shared = call.shared;
  *(void **)stream = call.stream;
  DONE
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { *kernel = (cudaKernel_t)function; DONE }
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **, size_t shared, cudaStream_t) {
  return launch((const void *)kernel, grid, block, shared);
}
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **, size_t shared, cudaStream_t) {
  return launch(function, grid, block, shared);
}
cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **, size_t shared,
                                        cudaStream_t) { return launch(function, grid, block, shared); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *function, void **) {
  return launch(function, how->gridDim, how->blockDim, how->dynamicSmemBytes);
}

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; DONE }
cudaError_t cudaGetDevice(int *device) { *device = 0; DONE }
cudaError_t cudaSetDevice(int device) { return device ? failed(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; DONE }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; DONE }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = null_attribute(attribute);
  DONE
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int) { snprintf(text, size, "0000:01:00.0"); DONE }
cudaError_t cudaDeviceGetStreamPriorityRange(int *lowest, int *highest) { *lowest = 0; *highest = -5; DONE }
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; DONE }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *found, int) {
  const Card &card = *null_card();
  memset(found, 0, sizeof *found);
  snprintf(found->name, sizeof found->name, "%s", card.name);
  found->totalGlobalMem = card.memory_bytes;
  found->sharedMemPerBlock = 49152;
  found->regsPerBlock = found->regsPerMultiprocessor = found->totalConstMem = 65536;
  found->warpSize = 32;
  found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->major = card.major;
  found->minor = card.minor;
  found->textureAlignment = 512;
  found->multiProcessorCount = card.multiprocessors;
  found->canMapHostMemory = found->concurrentKernels = found->unifiedAddressing = 1;
  found->managedMemory = found->cooperativeLaunch = found->streamPrioritiesSupported = 1;
  found->pciBusID = 1;
  found->asyncEngineCount = 2;
  found->memoryBusWidth = card.bus_bits;
  found->l2CacheSize = card.l2_bytes;
  found->maxThreadsPerMultiProcessor = card.threads_per_multiprocessor;
  found->sharedMemPerMultiprocessor = card.shared_per_multiprocessor;
  found->sharedMemPerBlockOptin = card.shared_per_block;
  found->maxBlocksPerMultiProcessor = card.major >= 9 ? 32 : 24;
  found->reservedSharedMemPerBlock = 1024;
  DONE
}

cudaError_t cudaGetLastError(void) {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "error of the null device";
  }
}
const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : error ? "cudaErrorUnknown" : "cudaSuccess";
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
  *pointer = null_malloc(bytes);
  return *pointer ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFree(void *pointer) { null_free(pointer); DONE }
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { null_free(pointer); DONE }
cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
  *pointer = null_host_alloc(bytes);
  return *pointer ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *pointer) { null_host_free(pointer); DONE }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = null_free_bytes();
  *total = null_card()->memory_bytes;
  DONE
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  null_log("sync\tcudaMemcpy\n");
  null_copy(to, from, bytes);
  DONE
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  null_copy(to, from, bytes);
  DONE
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < height; i++)
    null_copy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
  DONE
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) { null_fill(to, value, bytes); DONE }
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) { null_fill(to, value, bytes); DONE }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *found, const void *pointer) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeUnregistered;
  if (null_is_device(pointer)) {
    found->type = cudaMemoryTypeDevice;
    found->devicePointer = (void *)pointer;
  } else if (null_is_host(pointer)) {
    found->type = cudaMemoryTypeHost;
    found->hostPointer = found->devicePointer = (void *)pointer;
  }
  DONE
}

// Waits of the host for the device. Nothing is waited for, and each is written down.
cudaError_t cudaDeviceSynchronize(void) { null_log("sync\tcudaDeviceSynchronize\n"); DONE }
cudaError_t cudaStreamSynchronize(cudaStream_t) { null_log("sync\tcudaStreamSynchronize\n"); DONE }
cudaError_t cudaEventSynchronize(cudaEvent_t) { null_log("sync\tcudaEventSynchronize\n"); DONE }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = (cudaEvent_t) new Event{null_now_ms()};
  DONE
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { delete (Event *)event; DONE }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) { ((Event *)event)->ms = null_now_ms(); DONE }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = (float)(((Event *)to)->ms - ((Event *)from)->ms);
  DONE
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) { *stream = new_stream(); DONE }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { *stream = new_stream(); DONE }
cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = new_stream(); DONE }
cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) { *priority = 0; DONE }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  DONE
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **, const cudaGraphEdgeData **,
                                     size_t *count) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (graph) *graph = nullptr;
  if (count) *count = 0;
  DONE
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *found, const void *) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 64;
  found->binaryVersion = found->ptxVersion = null_card()->major * 10;
  found->maxDynamicSharedSizeBytes = 49152;
  DONE
}
cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > null_card()->shared_per_block) {
    null_log("refused\tshared memory %d asked for\t%s\n", value, name_of(function));
    return failed(cudaErrorInvalidValue);
  }
  DONE
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *, int, size_t) { *count = 2; DONE }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *, int, size_t, unsigned) {
  *count = 2;
  DONE
}
cudaError_t cudaGetSymbolAddress(void **pointer, const void *) {
  static void *variables = null_malloc(1 << 20);
  *pointer = variables;
  DONE
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
  static void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  char second[256];
  snprintf(second, sizeof second, "%s_v2", name);
  *function = nullptr;
  if (driver && !(*function = dlsym(driver, second))) *function = dlsym(driver, name);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  DONE
}
cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult *result) {
  return cudaGetDriverEntryPointByVersion(name, function, 13000, flags, result);
}
}
