/* Small things that several files need: conversions, hash, versions. */
#include <math.h>
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

const struct fma_kernels *fma_kernels_for(int isa, int64_t queries) {
#if defined(__x86_64__)
  if (isa == FMA_AVX512 && queries > 8)
    return &fma_avx512;
  if (isa >= FMA_AVX2 && queries > 4)
    return &fma_avx2;
#endif
  (void)isa, (void)queries;
  return &fma_portable;
}

/* Not PyTorch's, which waits for its threads in a forked child. */
void fma_log2(int64_t count, const int64_t *mass, float *to) {
  for (int64_t i = 0; i < count; i++)
    to[i] = mass[i] ? log2f((float)mass[i]) : -INFINITY;
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

/* ------------------------------------------------------------ transposition
 * in squares of four, which every processor has vectors for.
 */
typedef float four __attribute__((vector_size(16)));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#else
typedef int32_t four_int __attribute__((vector_size(16)));
#define PICK(x, y, a, b, c, d) __builtin_shuffle(x, y, (four_int){a, b, c, d})
#endif

static inline four load(const float *from) {
  four x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void transpose(four x[4]) {
  four a = PICK(x[0], x[1], 0, 4, 1, 5), b = PICK(x[2], x[3], 0, 4, 1, 5);
  four c = PICK(x[0], x[1], 2, 6, 3, 7), d = PICK(x[2], x[3], 2, 6, 3, 7);
  x[0] = PICK(a, b, 0, 1, 4, 5);
  x[1] = PICK(a, b, 2, 3, 6, 7);
  x[2] = PICK(c, d, 0, 1, 4, 5);
  x[3] = PICK(c, d, 2, 3, 6, 7);
}

void fma_to_columns(const float *const *rows, int64_t count, int64_t dim,
                    float scale, int64_t width, float *to) {
  for (int64_t i = 0; i < count; i += 4) {
    int64_t c = 0;
    if (i + 4 <= count)
      for (; c + 4 <= dim; c += 4) {
        four x[4];
        for (int j = 0; j < 4; j++)
          x[j] = load(rows[i + j] + c) * scale;
        transpose(x);
        for (int j = 0; j < 4; j++)
          memcpy(to + (c + j) * width + i, &x[j], sizeof x[j]);
      }
    for (; c < dim; c++)
      for (int64_t j = i; j < i + 4 && j < count; j++)
        to[c * width + j] = rows[j][c] * scale;
  }
}

void fma_to_rows(const float *from, int64_t count, int64_t dim,
                 const float *scale, int64_t width, float *const *rows) {
  for (int64_t i = 0; i < count; i += 4) {
    int64_t c = 0;
    if (i + 4 <= count) {
      four factor = load(scale + i);
      for (; c + 4 <= dim; c += 4) {
        four x[4];
        for (int j = 0; j < 4; j++)
          x[j] = load(from + (c + j) * width + i) * factor;
        transpose(x);
        for (int j = 0; j < 4; j++)
          memcpy(rows[i + j] + c, &x[j], sizeof x[j]);
      }
    }
    for (; c < dim; c++)
      for (int64_t j = i; j < i + 4 && j < count; j++)
        rows[j][c] = from[c * width + j] * scale[j];
  }
}
