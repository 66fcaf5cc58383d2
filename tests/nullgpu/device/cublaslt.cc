// libcublasLt.so.13: products of 8 bits, and the rules of its manual for them.
#include "gemm.h"

#include <cstdio>

namespace {
char handle[64];

struct Product {
  int compute, scale;
  std::map<int, long> attributes;
  long of(int attribute) const {
    auto found = attributes.find(attribute);
    return found == attributes.end() ? 0 : found->second;
  }
};
struct Layout {
  int type;
  long rows, columns, leading;
  long batch = 1;
};

bool is_fp8(int type) { return type == CUDA_R_8F_E4M3 || type == CUDA_R_8F_E5M2; }

// Why cuBLASLt refuses a product of fp8 factors on compute capability 8.9 and 9.0; null pointer: it does not.
const char *refusal(const Product &product, const Layout &a, const Layout &b, const Layout &d) {
  if (!is_fp8(a.type) && !is_fp8(b.type)) return nullptr;
  if (!is_fp8(a.type) || !is_fp8(b.type)) return "only one factor is fp8";
  if (a.type == CUDA_R_8F_E5M2 && b.type == CUDA_R_8F_E5M2) return "e5m2 times e5m2";
  if (product.of(CUBLASLT_MATMUL_DESC_TRANSA) != CUBLAS_OP_T || product.of(CUBLASLT_MATMUL_DESC_TRANSB) != CUBLAS_OP_N)
    return "the layout is not TN";
  if (product.compute != CUBLAS_COMPUTE_32F) return "the compute type is not fp32";
  if (a.rows % 16 || a.columns % 16 || b.rows % 16 || b.columns % 16 || a.leading % 16 || b.leading % 16 ||
      d.leading % 8)
    return "a size is not a multiple of 16";
  for (int attribute : {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER})
    if (!null_is_device((void *)product.of(attribute))) return "a scale is not on the device";
  if (d.type != CUDA_R_16BF && d.type != CUDA_R_16F && d.type != CUDA_R_32F && !is_fp8(d.type))
    return "the result's type";
  return nullptr;
}

long as_number(const void *value, size_t bytes) {
  long number = 0;
  memcpy(&number, value, bytes < 8 ? bytes : 8);
  return number;
}
}  // namespace

#define DONE { return CUBLAS_STATUS_SUCCESS; }
extern "C" {
cublasStatus_t cublasLtCreate(cublasLtHandle_t *made) { *made = (cublasLtHandle_t)handle; DONE }
size_t cublasLtGetVersion(void) { return 130101; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, cublasComputeType_t compute, cudaDataType scale) {
  *made = (cublasLtMatmulDesc_t) new Product{(int)compute, (int)scale, {}};
  DONE
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) { delete (Product *)product; DONE }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
  ((Product *)product)->attributes[attribute] = as_number(value, bytes);
  DONE
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t leading) {
  *made = (cublasLtMatrixLayout_t) new Layout{(int)type, (long)rows, (long)columns, (long)leading};
  DONE
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { delete (Layout *)layout; DONE }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t bytes) {
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) ((Layout *)layout)->batch = (int)as_number(value, bytes);
  DONE
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made) {
  *made = (cublasLtMatmulPreference_t) new char[64]();
  DONE
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete[] (char *)preference;
  DONE
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t found[], int *count) {
  const char *why = refusal(*(Product *)product, *(Layout *)a, *(Layout *)b, *(Layout *)d);
  *count = 0;
  if (why) {
    null_log("refused\tcuBLASLt fp8: %s\t-\n", why);
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  memset(found, 0, sizeof *found);
  found->state = CUBLAS_STATUS_SUCCESS;
  found->wavesCount = 1;
  *count = 1;
  DONE
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product_, const void *, const void *,
                              cublasLtMatrixLayout_t a_, const void *, cublasLtMatrixLayout_t b_, const void *,
                              const void *, cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t d_,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t) {
  const Product &product = *(Product *)product_;
  const Layout &a = *(Layout *)a_, &b = *(Layout *)b_, &d = *(Layout *)d_;
  if (const char *why = refusal(product, a, b, d)) {
    null_log("refused\tcuBLASLt fp8: %s\t-\n", why);
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const long ta = product.of(CUBLASLT_MATMUL_DESC_TRANSA), tb = product.of(CUBLASLT_MATMUL_DESC_TRANSB);
  char facts[64];
  snprintf(facts, sizeof facts, "fast %ld", product.of(CUBLASLT_MATMUL_DESC_FAST_ACCUM) & 0xff);
  log_gemm("LtMatmul", ta, tb, d.rows, d.columns, ta ? a.rows : a.columns, a.batch, a.type, b.type, d.type,
           product.compute, facts);
  DONE
}
}
