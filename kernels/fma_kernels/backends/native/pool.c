/* The pyramid of averages over real tokens, and its transpose.
 *
 * A sub-cell of a level is 2 ** d sub-cells of the level below, so sums are
 * carried upwards and divided once; gradients take the same way down.
 */
#include <stdlib.h>
#include <string.h>

#include "fma.h"

/* Tokens that are added at once. */
#define FEW 4

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* Sub-cells of a level along an axis. */
static int64_t points(const struct fma_pooling *call, int64_t level,
                      int axis) {
  return call->level_grid[level - 1][axis] * call->rank[axis];
}

/* The packed row of a sub-cell. */
static int64_t packed_row(const struct fma_pooling *call, int64_t level,
                          int64_t y, int64_t x) {
  const int64_t *rank = call->rank;
  int64_t cell = y / rank[0] * call->level_grid[level - 1][1] + x / rank[1];
  return call->level_start[level - 1] + cell * rank[0] * rank[1] +
         y % rank[0] * rank[1] + x % rank[1];
}

static float *packed_at(const struct fma_pooling *call, int64_t image,
                        int64_t row) {
  return call->packed + (image * call->total + row) * call->heads * call->dim;
}

static int64_t item_size(const struct fma_pooling *call) {
  return call->dtype == FMA_FLOAT32 ? 4 : 2;
}

struct pass {
  const struct fma_pooling *call;
  struct fma_work work;
  int64_t level, failed;
};

/* total += the heads of `count` tokens, at most FEW. */
static void add_tokens(const struct fma_pooling *call, const char **tokens,
                       int count, float *rows, float *total) {
  int64_t dim = call->dim, heads = call->heads;
  int64_t step = call->tokens.stride[3], channels = heads * dim;
  int64_t size = item_size(call);
  const float *from[FEW];
  for (int i = 0; i < count; i++) {
    from[i] = (const float *)tokens[i];
    if (call->dtype == FMA_FLOAT32 && step == dim)
      continue;
    for (int64_t head = 0; head < heads; head++)
      fma_to_float((int)call->dtype, tokens[i] + head * step * size, dim,
                   rows + i * channels + head * dim);
    from[i] = rows + i * channels;
  }
  if (count == FEW)
    for (int64_t c = 0; c < channels; c++)
      total[c] += (from[0][c] + from[1][c]) + (from[2][c] + from[3][c]);
  else
    for (int i = 0; i < count; i++)
      for (int64_t c = 0; c < channels; c++)
        total[c] += from[i][c];
}

/* Sums of the sub-cell (y, x) of level 1. */
static void sum_tokens(const struct fma_pooling *call, int64_t image,
                       int64_t y, int64_t x, float *rows, float *total) {
  const int64_t *grid = call->grid, *stride = call->tokens.stride;
  int64_t side[2] = {call->cell[0] / call->rank[0],
                     call->cell[1] / call->rank[1]};
  int64_t below = min((y + 1) * side[0], grid[0]);
  int64_t right = min((x + 1) * side[1], grid[1]);
  int64_t size = item_size(call), span = call->heads * stride[3] * size;
  /* Far enough ahead for memory: to the right, or in 1D below. */
  int64_t ahead =
      (grid[1] > 1 ? 2 * side[1] * stride[2] : 8 * stride[1]) * size;
  const char *base =
      (const char *)call->tokens.data + image * stride[0] * size;
  const char *tokens[FEW];
  int count = 0;
  for (int64_t v = y * side[0]; v < below; v++)
    for (int64_t u = x * side[1]; u < right; u++) {
      if (call->mask && !call->mask[(image * grid[0] + v) * grid[1] + u])
        continue;
      const char *token = base + (v * stride[1] + u * stride[2]) * size;
      for (int64_t at = 0; at < span; at += 64)
        __builtin_prefetch(token + ahead + at);
      tokens[count++] = token;
      if (count == FEW) {
        add_tokens(call, tokens, count, rows, total);
        count = 0;
      }
    }
  add_tokens(call, tokens, count, rows, total);
}

/* Sums of a level; a task is a row of its sub-cells. */
static void sum_body(void *context) {
  struct pass *pass = context;
  const struct fma_pooling *call = pass->call;
  int64_t level = pass->level, channels = call->heads * call->dim, task;
  int64_t rows = points(call, level, 0), columns = points(call, level, 1);
  float *scratch = malloc((size_t)(FEW * channels) * sizeof *scratch);
  if (!scratch) {
    __atomic_store_n(&pass->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t image = task / rows, y = task % rows;
    for (int64_t x = 0; x < columns; x++) {
      float *total = packed_at(call, image, packed_row(call, level, y, x));
      memset(total, 0, (size_t)channels * sizeof *total);
      if (level > 1) {
        int64_t below = min(2 * y + 2, points(call, level - 1, 0));
        int64_t right = min(2 * x + 2, points(call, level - 1, 1));
        for (int64_t v = 2 * y; v < below; v++)
          for (int64_t u = 2 * x; u < right; u++) {
            const float *part =
                packed_at(call, image, packed_row(call, level - 1, v, u));
            for (int64_t c = 0; c < channels; c++)
              total[c] += part[c];
          }
        continue;
      }
      sum_tokens(call, image, y, x, scratch, total);
    }
  }
  free(scratch);
}

/* Rows times 1 / mass; a task is an image. */
static void scale_body(void *context) {
  struct pass *pass = context;
  const struct fma_pooling *call = pass->call;
  int64_t channels = call->heads * call->dim, task;
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t image = task / call->total, row = task % call->total;
    float scale = call->scale[image * call->scale_stride + row];
    float *at = packed_at(call, image, row);
    for (int64_t c = 0; c < channels; c++)
      at[c] *= scale;
  }
}

static void run(struct pass *pass, void (*body)(void *), int64_t count) {
  pass->work = (struct fma_work){.count = count};
  fma_parallel(min(pass->call->threads, count), body, pass);
}

int fma_pool(const struct fma_pooling *call) {
  struct pass pass = {.call = call};
  for (pass.level = 1; pass.level <= call->levels; pass.level++)
    run(&pass, sum_body, call->batch * points(call, pass.level, 0));
  run(&pass, scale_body, call->batch * call->total);
  return pass.failed ? FMA_NO_MEMORY : FMA_OK;
}

/* A level's share of the one above; a task is a row of sub-cells. */
static void spread_body(void *context) {
  struct pass *pass = context;
  const struct fma_pooling *call = pass->call;
  int64_t level = pass->level, channels = call->heads * call->dim, task;
  int64_t rows = points(call, level, 0), columns = points(call, level, 1);
  /* In 1D there is one column on every level. */
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t image = task / rows, y = task % rows;
    for (int64_t x = 0; x < columns; x++) {
      float *at = packed_at(call, image, packed_row(call, level, y, x));
      const float *up =
          packed_at(call, image, packed_row(call, level + 1, y / 2, x / 2));
      for (int64_t c = 0; c < channels; c++)
        at[c] += up[c];
    }
  }
}

/* The tokens' share of level 1; a task is a row of tokens. */
static void token_body(void *context) {
  struct pass *pass = context;
  const struct fma_pooling *call = pass->call;
  int64_t rows = call->grid[0], columns = call->grid[1], task;
  int64_t channels = call->heads * call->dim;
  int64_t side[2] = {call->cell[0] / call->rank[0],
                     call->cell[1] / call->rank[1]};
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t image = task / rows, y = task % rows;
    for (int64_t x = 0; x < columns; x++) {
      int64_t token = (image * rows + y) * columns + x;
      float *to = call->grad + token * channels;
      int real = !call->mask || call->mask[token];
      const float *up = packed_at(
          call, image, packed_row(call, 1, y / side[0], x / side[1]));
      if (!call->add)
        memset(to, 0, (size_t)channels * sizeof *to);
      if (real)
        for (int64_t c = 0; c < channels; c++)
          to[c] += up[c];
    }
  }
}

int fma_pool_backward(const struct fma_pooling *call) {
  struct pass pass = {.call = call};
  run(&pass, scale_body, call->batch * call->total);
  for (pass.level = call->levels - 1; pass.level >= 1; pass.level--)
    run(&pass, spread_body, call->batch * points(call, pass.level, 0));
  run(&pass, token_body, call->batch * call->grid[0]);
  return pass.failed ? FMA_NO_MEMORY : FMA_OK;
}
