/* Vectors of eight, for processors with AVX2 and FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define ACCUMULATORS 8
#define TABLE fma_avx2

/* The larger; the second where either is NaN. */
static inline __attribute__((always_inline)) __m256 greater(__m256 a,
                                                            __m256 b) {
  return _mm256_max_ps(a, b);
}

/* `value` where x is at least `bound`, or NaN; else 0. */
static inline __attribute__((always_inline)) __m256
not_below(__m256 x, float bound, __m256 value) {
  __m256 kept = _mm256_cmp_ps(x, _mm256_set1_ps(bound), _CMP_NLT_UQ);
  return _mm256_and_ps(kept, value);
}

#include "tile.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fma_no_avx2;
#endif
