// libcublas.so.13: products of 16 and 32 bits.
#include "gemm.h"

#include <cstdio>

namespace {
char handle[64];
int pointer_mode = 0, math_mode = 0;

const char *math() {
  static thread_local char text[32];
  snprintf(text, sizeof text, "math %d", math_mode);
  return text;
}
}  // namespace

#define DONE { return CUBLAS_STATUS_SUCCESS; }
extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t *made) { *made = (cublasHandle_t)handle; DONE }
cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *version) { *version = 130101; DONE }
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t *mode) {
  *mode = (cublasPointerMode_t)pointer_mode;
  DONE
}
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t, cublasPointerMode_t mode) { pointer_mode = mode; DONE }
cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t *mode) { *mode = (cublasMath_t)math_mode; DONE }
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t mode) { math_mode = mode; DONE }
const char *cublasGetStatusString(cublasStatus_t) { return "status of the null device"; }

cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *, const void *, cudaDataType a, int, const void *, cudaDataType b, int,
                            const void *, void *, cudaDataType c, int, cublasComputeType_t compute, cublasGemmAlgo_t) {
  log_gemm("GemmEx", ta, tb, m, n, k, 1, a, b, c, compute, math());
  DONE
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                          int k, const void *, const void *, cudaDataType a, int, long long,
                                          const void *, cudaDataType b, int, long long, const void *, void *,
                                          cudaDataType c, int, long long, int batch, cublasComputeType_t compute,
                                          cublasGemmAlgo_t) {
  log_gemm("GemmStridedBatchedEx", ta, tb, m, n, k, batch, a, b, c, compute, math());
  DONE
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                              const float *, const float *, int, const float *, int, const float *, float *, int) {
  log_gemm("Sgemm", ta, tb, m, n, k, 1, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, math());
  DONE
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n,
                                         int k, const float *, const float *, int, long long, const float *, int,
                                         long long, const float *, float *, int, long long, int batch) {
  log_gemm("SgemmStridedBatched", ta, tb, m, n, k, batch, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, math());
  DONE
}
cublasStatus_t cublasDgemm_v2(cublasHandle_t, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                              const double *, const double *, int, const double *, int, const double *, double *, int) {
  log_gemm("Dgemm", ta, tb, m, n, k, 1, CUDA_R_64F, CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, math());
  DONE
}
}
