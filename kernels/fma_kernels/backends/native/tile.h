/* One tile of queries against its list: the vector code.
 *
 * Included once per instruction set, which defines LANES (floats of a
 * vector), ACCUMULATORS (vectors that stay in registers), `greater`,
 * `not_below` and the name of its table. Queries lie across the lanes of a
 * vector, so that a key or a value is broadcast channel by channel, and the
 * softmax runs down the list, lane by lane. Gradients of keys and values lie
 * with their channels across the lanes.
 *
 * `vectors` is the number of vectors of queries, 1, 2 or 4: a constant
 * wherever these functions are inlined, and so are the loops over it.
 */
#include <string.h>

#include "fma.h"

#define INLINE static inline __attribute__((always_inline))
#define GROUP(vectors) \
  (ACCUMULATORS / (vectors) < FMA_GROUP ? ACCUMULATORS / (vectors) : FMA_GROUP)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *from) {
  vec x;
  memcpy(&x, from, sizeof x);
  return x;
}

INLINE void store(float *to, vec x) { memcpy(to, &x, sizeof x); }

INLINE ivec load_int(const void *from) {
  ivec x;
  memcpy(&x, from, sizeof x);
  return x;
}

INLINE vec all(float x) { return x - (vec){0}; }

/* `x` where a mask of -1 or 0 is set, else -inf. */
INLINE vec visible(ivec mask, vec x) {
  const ivec none = (ivec)all(-__builtin_inff());
  return (vec)((mask & (ivec)x) | (~mask & none));
}

/* 2 ** x for x up to about 0, to 1e-7; exactly 0 below -126. */
INLINE vec power(vec x) {
  /* Adding 1.5 * 2 ** 23 rounds x to an integer in the low bits. */
  vec rounded = x + 12582912.0f;
  vec f = x - (rounded - 12582912.0f);
  vec p = f * 0.001326472731307149f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
  return not_below(x, -126.0f, (vec)((uvec)p + ((uvec)rounded << 23)));
}

/* scores[key][query] = sum_c left[c][query] * rows[key][c] + bias[key] */
INLINE void scores_of(const int vectors, const int keys, int dim,
                      const float *left, const float *const *rows,
                      const float *bias, float *scores) {
  vec sum[FMA_GROUP][4];
  const float *row[FMA_GROUP];
  for (int j = 0; j < keys; j++) {
    row[j] = rows[j];
    for (int i = 0; i < vectors; i++)
      sum[j][i] = all(bias ? bias[j] : 0.0f);
  }
  for (int c = 0; c < dim; c++) {
    vec x[4];
    for (int i = 0; i < vectors; i++)
      x[i] = load(left + (c * vectors + i) * LANES);
    for (int j = 0; j < keys; j++)
      for (int i = 0; i < vectors; i++)
        sum[j][i] += x[i] * row[j][c];
  }
  for (int j = 0; j < keys; j++)
    for (int i = 0; i < vectors; i++)
      store(scores + (j * vectors + i) * LANES, sum[j][i]);
}

/* Rows that are read soon: too far ahead for the processor to see. */
INLINE void expect(const float *const *rows, int count, int dim) {
  for (int j = 0; j < count; j++)
    for (int c = 0; c < dim; c += 16)
      __builtin_prefetch(rows[j] + c);
}

/* `later`: rows that are read after these, key by key, or null. */
INLINE void all_scores(const int vectors, int64_t count, int dim,
                       const float *left, const float *const *rows,
                       const float *const *later, const float *bias,
                       float *scores) {
  const int keys = GROUP(vectors);
  for (int64_t j = 0; j < count; j += keys) {
    if (j + 2 * keys < count)
      expect(rows + j + 2 * keys, keys, dim);
    if (later)
      expect(later + j, keys, dim);
    scores_of(vectors, keys, dim, left, rows + j, bias ? bias + j : NULL,
              scores + j * vectors * LANES);
  }
}

/* out[c][query] += sum_key weights[key][query] * rows[key][c] */
INLINE void weighted(const int vectors, const int channels, int64_t count,
                     const float *weights, const float *const *rows, int c,
                     float *out) {
  vec sum[ACCUMULATORS][4];
  for (int a = 0; a < channels; a++)
    for (int i = 0; i < vectors; i++)
      sum[a][i] = load(out + ((c + a) * vectors + i) * LANES);
  for (int64_t j = 0; j < count; j++) {
    const float *row = rows[j] + c;
    /* Else the compiler keeps an index for every channel. */
    __asm__("" : "+r"(row));
    vec x[4];
    for (int i = 0; i < vectors; i++)
      x[i] = load(weights + (j * vectors + i) * LANES);
    for (int a = 0; a < channels; a++)
      for (int i = 0; i < vectors; i++)
        sum[a][i] += x[i] * row[a];
  }
  for (int a = 0; a < channels; a++)
    for (int i = 0; i < vectors; i++)
      store(out + ((c + a) * vectors + i) * LANES, sum[a][i]);
}

INLINE void all_weighted(const int vectors, int64_t count, int dim,
                         const float *weights, const float *const *rows,
                         float *out) {
  const int channels = ACCUMULATORS / vectors;
  int c = 0;
  for (; c + channels <= dim; c += channels)
    weighted(vectors, channels, count, weights, rows, c, out);
  for (; c < dim; c++)
    weighted(vectors, 1, count, weights, rows, c, out);
}

/* totals[key][c] += sum_query weights[key][query] * rows[query][c] */
INLINE void outer(const int vectors, const int keys, const int chunks,
                  int queries, const float *weights, const float *rows,
                  int64_t pitch, int c, int dim, float *const *totals) {
  vec sum[FMA_GROUP][2] = {{{0}}};
  for (int q = 0; q < queries; q++) {
    vec x[2];
    for (int i = 0; i < chunks; i++)
      x[i] = load(rows + q * pitch + c + i * LANES);
    for (int j = 0; j < keys; j++)
      for (int i = 0; i < chunks; i++)
        sum[j][i] += x[i] * weights[j * vectors * LANES + q];
  }
  for (int j = 0; j < keys; j++)
    for (int i = 0; i < chunks; i++) {
      float *to = totals[j] + c + i * LANES;
      int left = dim - c - i * LANES;
      if (left >= LANES) {
        store(to, load(to) + sum[j][i]);
      } else {
        float rest[LANES];
        store(rest, sum[j][i]);
        for (int a = 0; a < left; a++)
          to[a] += rest[a];
      }
    }
}

INLINE void all_outer(const int vectors, int64_t count, int dim, int queries,
                      const float *weights, const float *rows, int64_t pitch,
                      float *const *totals) {
  const int keys = ACCUMULATORS / 2 < FMA_GROUP ? ACCUMULATORS / 2 : FMA_GROUP;
  for (int64_t j = 0; j < count; j += keys) {
    const float *left = weights + j * vectors * LANES;
    int c = 0;
    if (j + keys < count)
      for (int a = 0; a < keys; a++)
        for (int b = 0; b < dim; b += 16)
          __builtin_prefetch(totals[j + keys + a] + b, 1);
    for (; c + LANES < dim; c += 2 * LANES)
      outer(vectors, keys, 2, queries, left, rows, pitch, c, dim, totals + j);
    if (c < dim)
      outer(vectors, keys, 1, queries, left, rows, pitch, c, dim, totals + j);
  }
}

/* What scores lack beyond the product: biases by offset, and who is seen. */
INLINE void adjust(const int vectors, const struct fma_job *job, int64_t start,
                   int64_t count, float *scores) {
  const int width = vectors * LANES;
  if (job->near_bias)
    for (int64_t j = start < job->far ? job->far - start : 0; j < count; j++) {
      float *row = scores + j * width;
      const float *table = job->near_bias + job->entry[start + j];
      /* Beyond the queries and on dead keys nothing may be read. */
      if (job->bias[start + j] == 0)
        for (int i = 0; i < job->queries; i++)
          row[i] += table[-job->lane_entry[i]] * FMA_LOG2E;
    }
  if (job->lane_row)
    for (int64_t j = 0; j < count; j++) {
      int32_t y = job->row[start + j], x = job->column[start + j];
      for (int i = 0; i < vectors; i++) {
        ivec row = load_int(job->lane_row + i * LANES);
        ivec column = load_int(job->lane_column + i * LANES);
        ivec dy = row - y, dx = column - x;
        ivec seen = (dy > 1) | (dy < -1) | (dx > 1) | (dx < -1);
        if (!job->top) {
          dy = (row >> 1) - (y >> 1), dx = (column >> 1) - (x >> 1);
          seen &= (dy <= 1) & (dy >= -1) & (dx <= 1) & (dx >= -1);
        }
        float *at = scores + (j * vectors + i) * LANES;
        store(at, visible(seen, load(at)));
      }
    }
  for (int64_t j = job->hidden_from > start ? job->hidden_from - start : 0;
       j < count; j++) {
    int32_t place = (int32_t)(job->index[start + j] - job->first);
    for (int i = 0; i < vectors; i++) {
      float *at = scores + (j * vectors + i) * LANES;
      ivec lane = load_int(job->position + i * LANES);
      store(at, visible(lane >= place, load(at)));
    }
  }
}

/* Factors of a key's weights: 0 where dropped. */
INLINE vec keep(const struct fma_job *job, int i, uint32_t number) {
  uvec x = (uvec)load_int(job->state + i * LANES) ^ number;
  x ^= x >> 16;
  x *= 0x85EBCA6Bu;
  x ^= x >> 13;
  x *= 0xC2B2AE35u;
  x ^= x >> 16;
  ivec kept = (ivec)(x >= job->threshold);
  return (vec)(kept & (ivec)all(job->keep_scale));
}

/* The next keys of the list, and their rows in float32. */
struct block {
  int64_t start, count;
  const float *const *key, *const *value;
  const float *rows[2][FMA_KEYS];
};

INLINE void take_block(const int vectors, const struct fma_job *job,
                       int64_t start, struct block *block) {
  int64_t most = FMA_BLOCK / (vectors * LANES);
  most = most < FMA_KEYS ? most : FMA_KEYS;
  block->start = start;
  block->count = job->count - start < most ? job->count - start : most;
  block->key = (const float *const *)job->key + start;
  block->value = (const float *const *)job->value + start;
  if (job->dtype == FMA_FLOAT32)
    return;
  const void *const *from[2] = {(const void *const *)job->key + start,
                                (const void *const *)job->value + start};
  for (int which = 0; which < 2; which++)
    for (int64_t j = 0; j < block->count; j++) {
      float *to = job->converted + (which * FMA_KEYS + j) * job->dim;
      fma_to_float(job->dtype, from[which][j], job->dim, to);
      block->rows[which][j] = to;
    }
  block->key = block->rows[0];
  block->value = block->rows[1];
}

INLINE void forward(const int vectors, const struct fma_job *job) {
  const int dim = job->dim;
  float *scores = job->scores;
  struct block block;
  for (int64_t start = 0; start < job->count; start += block.count) {
    take_block(vectors, job, start, &block);
    all_scores(vectors, block.count, dim, job->query, block.key, block.value,
               job->bias + start, scores);
    adjust(vectors, job, start, block.count, scores);
    vec maximum[4], sum[4];
    int moved = 0;
    for (int i = 0; i < vectors; i++) {
      vec before = load(job->maximum + i * LANES);
      vec top = before;
      for (int64_t j = 0; j < block.count; j++)
        top = greater(top, load(scores + (j * vectors + i) * LANES));
      vec share = power(before - top);
      maximum[i] = top;
      sum[i] = load(job->sum + i * LANES) * share;
      for (int lane = 0; lane < LANES; lane++)
        moved |= share[lane] != 1;
      if (moved)
        for (int c = 0; c < dim; c++) {
          float *at = job->out + (c * vectors + i) * LANES;
          store(at, load(at) * share);
        }
    }
    for (int64_t j = 0; j < block.count; j++)
      for (int i = 0; i < vectors; i++) {
        float *at = scores + (j * vectors + i) * LANES;
        vec weight = power(load(at) - maximum[i]);
        sum[i] += weight;
        if (job->state)
          weight *= keep(job, i, job->number[start + j]);
        store(at, weight);
      }
    for (int i = 0; i < vectors; i++) {
      store(job->maximum + i * LANES, maximum[i]);
      store(job->sum + i * LANES, sum[i]);
    }
    all_weighted(vectors, block.count, dim, scores, block.value, job->out);
  }
}

INLINE void add_bias_slopes(const int vectors, const struct fma_job *job,
                            int64_t start, int64_t count,
                            const float *slopes) {
  for (int64_t j = 0; j < count; j++) {
    const float *row = slopes + j * vectors * LANES;
    int32_t entry = job->entry[start + j];
    if (start + j < job->far && job->grad_far_bias) {
      float sum = 0;
      for (int i = 0; i < job->queries; i++)
        sum += row[i];
      job->grad_far_bias[entry] += sum;
    } else if (start + j >= job->far && job->grad_near_bias &&
               job->bias[start + j] == 0) {
      for (int i = 0; i < job->queries; i++)
        job->grad_near_bias[entry - job->lane_entry[i]] += row[i];
    }
  }
}

INLINE void backward(const int vectors, const struct fma_job *job) {
  const int dim = job->dim;
  float *weights = job->scores, *slopes = job->scores + FMA_BLOCK;
  struct block block;
  for (int64_t start = 0; start < job->count; start += block.count) {
    take_block(vectors, job, start, &block);
    int64_t count = block.count;
    all_scores(vectors, count, dim, job->query, block.key, block.value,
               job->bias + start, weights);
    adjust(vectors, job, start, count, weights);
    all_scores(vectors, count, dim, job->grad, block.value, NULL, NULL,
               slopes);
    for (int i = 0; i < vectors; i++) {
      vec lse = load(job->lse + i * LANES);
      vec delta = load(job->delta + i * LANES);
      for (int64_t j = 0; j < count; j++) {
        int64_t at = (j * vectors + i) * LANES;
        vec weight = power(load(weights + at) - lse);
        vec slope = load(slopes + at), kept = weight;
        if (job->state) {
          vec factor = keep(job, i, job->number[start + j]);
          slope *= factor;
          kept *= factor;
        }
        store(weights + at, kept);
        store(slopes + at, weight * (slope - delta));
      }
    }
    if (job->grad_near_bias || job->grad_far_bias)
      add_bias_slopes(vectors, job, start, count, slopes);
    all_weighted(vectors, count, dim, slopes, block.key, job->grad_query);
    all_outer(vectors, count, dim, job->queries, weights, job->grad_rows,
              job->pitch, job->grad_value + start);
    all_outer(vectors, count, dim, job->queries, slopes, job->query_rows,
              job->pitch, job->grad_key + start);
  }
}

#define BY_WIDTH(name)                                \
  static void name##_any(const struct fma_job *job) { \
    switch (job->width / LANES) {                     \
    case 1:                                           \
      name(1, job);                                   \
      break;                                          \
    case 2:                                           \
      name(2, job);                                   \
      break;                                          \
    default:                                          \
      name(4, job);                                   \
    }                                                 \
  }

BY_WIDTH(forward)
BY_WIDTH(backward)

/* to[j] = sum_c x[c] * rows[j][c]: channels lie across the lanes. */
INLINE void dots_of(const int count, int64_t dim, const float *x,
                    const float *rows, float *to) {
  vec sum[4] = {{0}};
  int64_t c = 0;
  for (; c + LANES <= dim; c += LANES) {
    vec here = load(x + c);
    for (int j = 0; j < count; j++)
      sum[j] += here * load(rows + j * dim + c);
  }
  for (int j = 0; j < count; j++) {
    float total = 0;
    for (int i = 0; i < LANES; i++)
      total += sum[j][i];
    for (int64_t k = c; k < dim; k++)
      total += x[k] * rows[j * dim + k];
    to[j] = total;
  }
}

static void dots(int64_t count, int64_t dim, const float *x, const float *rows,
                 float *to) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4)
    dots_of(4, dim, x, rows + j * dim, to + j);
  for (; j < count; j++)
    dots_of(1, dim, x, rows + j * dim, to + j);
}

const struct fma_kernels TABLE = {LANES, forward_any, backward_any, dots};
