// libcuda.so.1: contexts, modules and launches. A launch is refused for the reasons a real driver has.
#include "cubin.h"
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <fstream>
#include <iterator>
#include <vector>

namespace {
const int REGISTERS = 65536, THREADS = 1024, GRID_LIMIT = 65535;
char context[64];

int rounded_registers(const Kernel &kernel) { return (kernel.registers + 7) / 8 * 8; }

CUresult launch(CUfunction function, const unsigned grid[3], const unsigned block[3], unsigned shared) {
  const Kernel &kernel = *(const Kernel *)function;
  const char *name = kernel.name.c_str();
  null_log_launch(name, grid, block, shared);
  const unsigned threads = block[0] * block[1] * block[2];
  if (!threads || !grid[0] || !grid[1] || !grid[2] || grid[1] > GRID_LIMIT || grid[2] > GRID_LIMIT) {
    null_log("refused\tgrid %u,%u,%u of %u threads\t%s\n", grid[0], grid[1], grid[2], threads, name);
    return CUDA_ERROR_INVALID_VALUE;
  }
  if ((int)shared > kernel.dynamic_shared || (int)shared + kernel.static_shared > null_card()->shared_per_block) {
    null_log("refused\tshared memory %u + %d, limit %d\t%s\n", shared, kernel.static_shared,
             kernel.dynamic_shared, name);
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (threads > THREADS || rounded_registers(kernel) * ((threads + 31) / 32 * 32) > REGISTERS) {
    null_log("refused\tregisters %d of %u threads\t%s\n", kernel.registers, threads, name);
    return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  }
  return CUDA_SUCCESS;
}
}  // namespace

// cuda.h renames these to their second versions; both names are defined here as written.
#undef cuDeviceTotalMem
#undef cuMemAlloc
#undef cuMemFree
#undef cuMemGetInfo

#define DONE { return CUDA_SUCCESS; }
extern "C" {
CUresult cuInit(unsigned) DONE
CUresult cuDriverGetVersion(int *version) { *version = 13000; DONE }
CUresult cuDeviceGetCount(int *count) { *count = 1; DONE }
CUresult cuDeviceGet(CUdevice *device, int index) {
  if (index) return CUDA_ERROR_INVALID_DEVICE;
  *device = 0;
  DONE
}
CUresult cuDeviceGetName(char *text, int size, CUdevice) { snprintf(text, size, "%s", null_card()->name); DONE }
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice) { memset(uuid, 7, sizeof *uuid); DONE }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
  *value = null_attribute(attribute);
  DONE
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) { *bytes = null_card()->memory_bytes; DONE }
CUresult cuDevicePrimaryCtxRetain(CUcontext *made, CUdevice) { *made = (CUcontext)context; DONE }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) { *flags = 0; *active = 1; DONE }
CUresult cuCtxGetCurrent(CUcontext *current) { *current = (CUcontext)context; DONE }
CUresult cuCtxSetCurrent(CUcontext) DONE
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; DONE }
CUresult cuCtxGetLimit(size_t *value, CUlimit) { *value = 8 << 20; DONE }
CUresult cuCtxSynchronize(void) { null_log("sync\tcuCtxSynchronize\n"); DONE }

CUresult cuGetErrorString(CUresult error, const char **text) {
  switch (error) {
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
    case CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: *text = "too many resources requested for launch"; break;
    case CUDA_ERROR_NO_BINARY_FOR_GPU: *text = "no kernel image is available for execution on the device"; break;
    default: *text = "error of the null device";
  }
  DONE
}
CUresult cuGetErrorName(CUresult, const char **text) { *text = "CUDA_ERROR_OF_THE_NULL_DEVICE"; DONE }

CUresult cuModuleLoadData(CUmodule *made, const void *image) {
  Module *module = read_cubin(image);
  if (!module) {
    null_log("refused\tmodule is not a cubin\t-\n");
    return CUDA_ERROR_INVALID_IMAGE;
  }
  const int device = null_card()->major * 10 + null_card()->minor;
  if (module->architecture / 10 != device / 10 || module->architecture > device) {
    null_log("refused\tcubin for sm_%d on sm_%d\t-\n", module->architecture, device);
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  for (const auto &[name, kernel] : module->kernels)
    null_log("cubin\t%s\tregisters %d\tstack %d\tshared %d\n", name.c_str(), kernel.registers,
             kernel.stack_bytes, kernel.static_shared);
  *made = (CUmodule)module;
  DONE
}
CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned, CUjit_option *, void **) {
  return cuModuleLoadData(made, image);
}
CUresult cuModuleLoad(CUmodule *made, const char *path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  return bytes.size() < 64 ? CUDA_ERROR_INVALID_IMAGE : cuModuleLoadData(made, bytes.data());
}
CUresult cuModuleUnload(CUmodule) DONE
CUresult cuModuleGetFunction(CUfunction *found, CUmodule module, const char *name) {
  auto &kernels = ((Module *)module)->kernels;
  auto kernel = kernels.find(name);
  if (kernel == kernels.end()) return CUDA_ERROR_NOT_FOUND;
  *found = (CUfunction)&kernel->second;
  DONE
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  const Kernel &kernel = *(const Kernel *)function;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: {
      const int threads = kernel.registers ? REGISTERS / rounded_registers(kernel) / 32 * 32 : THREADS;
      *value = threads < THREADS ? threads : THREADS;
      break;
    }
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = kernel.static_shared; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = kernel.stack_bytes; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = kernel.registers; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = kernel.dynamic_shared; break;
    default: *value = 0;
  }
  DONE
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  Kernel &kernel = *(Kernel *)function;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) DONE
  if (value + kernel.static_shared > null_card()->shared_per_block) {
    null_log("refused\tshared memory %d + %d asked for\t%s\n", value, kernel.static_shared, kernel.name.c_str());
    return CUDA_ERROR_INVALID_VALUE;
  }
  kernel.dynamic_shared = value;
  DONE
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) DONE
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream, void **, void **) {
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  return launch(function, grid, block, shared);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *how, CUfunction function, void **, void **) {
  const unsigned grid[3] = {how->gridDimX, how->gridDimY, how->gridDimZ};
  const unsigned block[3] = {how->blockDimX, how->blockDimY, how->blockDimZ};
  return launch(function, grid, block, how->sharedMemBytes);
}
CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned shared, CUstream, void **) {
  const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
  return launch(function, grid, block, shared);
}
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction, const CUlaunchConfig *) { *count = 16; DONE }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, CUfunction, int, size_t) { *count = 2; DONE }

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (!null_is_device((void *)pointer)) return CUDA_ERROR_INVALID_VALUE;
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)value = pointer;
  else *(int *)value = attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ? CU_MEMORYTYPE_DEVICE : 0;
  DONE
}
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
  *free = null_free_bytes();
  *total = null_card()->memory_bytes;
  DONE
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
  *pointer = (CUdeviceptr)null_malloc(bytes);
  return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFree_v2(CUdeviceptr pointer) { null_free((void *)pointer); DONE }
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer) {
  if (base) *base = pointer;
  if (bytes) *bytes = 1 << 20;
  DONE
}
CUresult cuStreamSynchronize(CUstream) { null_log("sync\tcuStreamSynchronize\n"); DONE }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  DONE
}
CUresult cuStreamGetCaptureInfo_v2(CUstream, CUstreamCaptureStatus *status, cuuint64_t *, CUgraph *,
                                   const CUgraphNode **, size_t *) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  DONE
}
}
