/* Small things that several files need: conversions, hash, versions. */
#include <string.h>

#include "fma.h"

int fma_abi(void) { return FMA_ABI; }

int fma_best_isa(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    return FMA_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return FMA_AVX2;
#endif
  return FMA_PORTABLE;
}

/* The public-domain 32-bit finaliser of MurmurHash3, as in dropout.py. */
uint32_t fma_mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x85EBCA6Bu;
  x ^= x >> 13;
  x *= 0xC2B2AE35u;
  return x ^ (x >> 16);
}

void fma_to_float(int dtype, const void *from, int64_t count, float *to) {
  if (dtype == FMA_FLOAT32) {
    memcpy(to, from, count * sizeof *to);
    return;
  }
  const uint16_t *half = from;
  if (dtype == FMA_BFLOAT16) {
    for (int64_t i = 0; i < count; i++) {
      uint32_t bits = (uint32_t)half[i] << 16;
      memcpy(&to[i], &bits, sizeof bits);
    }
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    /* Exponents move by 112: a product does so, for subnormals too. */
    uint32_t bits = (uint32_t)(half[i] & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, sizeof x);
    x *= 0x1p112f;
    memcpy(&bits, &x, sizeof x);
    /* Infinities and NaN */
    bits |= (half[i] & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
    bits |= (uint32_t)(half[i] & 0x8000) << 16;
    memcpy(&to[i], &bits, sizeof bits);
  }
}
