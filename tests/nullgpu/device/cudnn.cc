// libcudnn.so.9: there, and without any kernel: every graph is refused as one that is not supported.
#include <cudnn.h>

extern "C" {
size_t cudnnGetVersion(void) { return 92000; }
size_t cudnnGetCudartVersion(void) { return 13000; }
cudnnStatus_t cudnnGetProperty(libraryPropertyType type, int *value) {
  *value = type == MAJOR_VERSION ? 9 : type == MINOR_VERSION ? 20 : 0;
  return CUDNN_STATUS_SUCCESS;
}
const char *cudnnGetErrorString(cudnnStatus_t) { return "the null device has no cuDNN kernels"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t *made) {
  static char handle[64];
  *made = (cudnnHandle_t)handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *) {
  return CUDNN_STATUS_NOT_SUPPORTED;
}
}
