/* A block of a transformer for a few new tokens: norm, attention from a state,
 * norm, MLP, and both residuals.
 *
 * Its time is that of reading the weights, once for all rows: threads take
 * pieces of the outputs of a layer.
 */
#include <math.h>

#include "fma.h"

/* Outputs of a piece. */
#define PIECE 32

/* to = residual + act(layer(from)); rows of `in` and `out` channels. */
struct pass {
  const struct fma_layer *layer;
  const float *from, *residual; /* null: none */
  float *to;
  int64_t rows, in, out, gelu;
  const struct fma_kernels *kernels;
  struct fma_work work;
};

static void body(void *context) {
  struct pass *pass = context;
  const struct fma_layer *layer = pass->layer;
  for (int64_t piece; (piece = fma_take(&pass->work)) >= 0;) {
    int64_t first = piece * PIECE;
    int64_t count = fma_min(PIECE, pass->out - first);
    for (int64_t row = 0; row < pass->rows; row++) {
      int64_t at = row * pass->out + first;
      float *to = pass->to + at;
      pass->kernels->dots(count, pass->in, pass->from + row * pass->in,
                          layer->weight + first * pass->in, to);
      for (int64_t j = 0; j < count; j++) {
        if (layer->bias)
          to[j] += layer->bias[first + j];
        if (pass->gelu)
          to[j] *= 0.5f * (1 + erff(to[j] * 0.70710678f));
        if (pass->residual)
          to[j] += pass->residual[at + j];
      }
    }
  }
}

static void apply(int64_t threads, struct pass pass) {
  pass.work.count = (pass.out + PIECE - 1) / PIECE;
  fma_parallel(threads, pass.work.count, body, &pass);
}

static void normalise(const struct fma_norm *norm, const float *from,
                      int64_t rows, int64_t dim, float *to) {
  for (int64_t row = 0; row < rows; row++, from += dim, to += dim) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < dim; i++)
      sum += from[i];
    float mean = (float)(sum / dim);
    for (int64_t i = 0; i < dim; i++)
      squares += (from[i] - mean) * (from[i] - mean);
    float scale = (float)(1 / sqrt(squares / dim + norm->epsilon));
    for (int64_t i = 0; i < dim; i++)
      to[i] = (from[i] - mean) * scale * norm->weight[i] + norm->bias[i];
  }
}

int fma_block(const struct fma_block *block) {
  const struct fma_stream *s = block->attention;
  int64_t dim = s->heads * s->dim, hidden = block->hidden;
  int64_t rows = s->batch * s->length;
  struct pass pass = {.rows = rows,
                      .kernels = fma_kernels_for((int)s->isa, PIECE)};
  normalise(&block->norm1, block->x, rows, dim, block->normal);
  pass.layer = &block->qkv, pass.from = block->normal, pass.in = dim;
  pass.to = block->projected, pass.out = 3 * dim;
  apply(s->threads, pass);
  int status = fma_stream(s);
  if (status)
    return status;
  pass.layer = &block->proj, pass.from = s->out, pass.residual = block->x;
  pass.to = block->after, pass.out = dim;
  apply(s->threads, pass);
  normalise(&block->norm2, block->after, rows, dim, block->normal);
  pass.layer = &block->fc1, pass.from = block->normal, pass.residual = NULL;
  pass.to = block->between, pass.out = hidden, pass.gelu = 1;
  apply(s->threads, pass);
  pass.layer = &block->fc2, pass.from = block->between, pass.in = hidden;
  pass.residual = block->after, pass.gelu = 0;
  pass.to = block->y, pass.out = dim;
  apply(s->threads, pass);
  return FMA_OK;
}
