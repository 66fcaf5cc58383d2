// libcupti.so.13: refuses, as it does in a container without the rights to profile.
#include <cupti.h>

extern "C" {
CUptiResult cuptiGetResultString(CUptiResult, const char **text) { *text = "CUPTI is refused"; return CUPTI_SUCCESS; }
CUptiResult cuptiGetVersion(uint32_t *version) { *version = 130000; return CUPTI_SUCCESS; }
CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *, CUpti_CallbackFunc, void *) {
  return CUPTI_ERROR_INSUFFICIENT_PRIVILEGES;
}
CUptiResult cuptiActivityEnable(CUpti_ActivityKind) { return CUPTI_ERROR_INSUFFICIENT_PRIVILEGES; }
}
