/* Vectors of sixteen, for processors with AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq")
#endif
#define LANES 16
#define ACCUMULATORS 16
#define TABLE fma_avx512

/* The larger; the second where either is NaN. */
static inline __attribute__((always_inline)) __m512 greater(__m512 a,
                                                            __m512 b) {
  return _mm512_max_ps(a, b);
}

/* `value` where x is at least `bound`, or NaN; else 0. */
static inline __attribute__((always_inline)) __m512
not_below(__m512 x, float bound, __m512 value) {
  __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_NLT_UQ);
  return _mm512_maskz_mov_ps(kept, value);
}

#include "tile.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fma_no_avx512;
#endif
