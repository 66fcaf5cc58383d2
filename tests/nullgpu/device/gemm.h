// cuBLAS and cuBLASLt: what a product is, how it is written to the log, and when fp8 is refused.
#pragma once
#include "device.h"

#include <cstring>
#include <map>
// The half types' own headers need a library of headers that NVIDIA's wheels leave out.
#define __CUDA_FP16_H__ 1
#define __CUDA_BF16_H__ 1
struct __half { unsigned short x; };
struct __half2 { unsigned x; };
struct __nv_bfloat16 { unsigned short x; };
struct __nv_bfloat162 { unsigned x; };
#include <cublasLt.h>
#include <cublas_v2.h>

static const char *type_name(int type) {
  switch (type) {
    case CUDA_R_64F: return "f64";
    case CUDA_R_32F: return "f32";
    case CUDA_R_16BF: return "bf16";
    case CUDA_R_16F: return "f16";
    case CUDA_R_8I: return "i8";
    case CUDA_R_32I: return "i32";
    case CUDA_R_8F_E4M3: return "e4m3";
    case CUDA_R_8F_E5M2: return "e5m2";
    default: return "?";
  }
}

// gemm, function, layout, "m n k batch", "a b c" types, compute type, other facts
static void log_gemm(const char *function, int turn_a, int turn_b, long m, long n, long k, long batch, int a, int b,
                     int c, int compute, const char *facts) {
  null_log("gemm\t%s\t%s%s\t%ld %ld %ld %ld\t%s %s %s\t%d\t%s\n", function, turn_a ? "T" : "N", turn_b ? "T" : "N", m,
           n, k, batch ? batch : 1, type_name(a), type_name(b), type_name(c), compute, facts);
}
