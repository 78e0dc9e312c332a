/* Vectors of four, as every 64-bit processor has them (SSE2, NEON). */
#define LANES 4
#define ACCUMULATORS 8
#define TABLE fma_portable
#define greater greater_portable
#define not_below not_below_portable
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#include <stdint.h>
typedef float four __attribute__((vector_size(16)));
typedef int32_t four_int __attribute__((vector_size(16)));

/* The larger; the second where either is NaN. */
static inline __attribute__((always_inline)) four greater(four a, four b) {
#if defined(__SSE2__)
  return (four)_mm_max_ps((__m128)a, (__m128)b);
#else
  four_int first = a > b;
  return (four)((first & (four_int)a) | (~first & (four_int)b));
#endif
}

/* `value` where x is at least `bound`, or NaN; else 0. */
static inline __attribute__((always_inline)) four
not_below(four x, float bound, four value) {
  return (four)((four_int)value & ~(four_int)(x < bound));
}

#include "tile.h"
