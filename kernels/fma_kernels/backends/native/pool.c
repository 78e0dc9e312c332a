/* The pyramid of averages over real tokens, and its transpose.
 *
 * A sub-cell of a level is 2 ** d sub-cells of the level below, so sums are
 * carried upwards and divided once; gradients take the same way down.
 */
#include <string.h>

#include "fma.h"

/* Tokens that are added at once. */
#define FEW 4
/* Their channels, where they are converted. */
#define CHANNELS 256

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

/* --------------------------------------------------------- rows in parallel
 */
struct pass {
  const struct fma_pooling *call;
  struct fma_work work;
  int64_t level, rows, chunk;
  void (*row)(const struct fma_pooling *call, int64_t level, int64_t row);
};

static void body(void *context) {
  struct pass *pass = context;
  int64_t piece;
  while ((piece = fma_take(&pass->work)) >= 0)
    for (int64_t row = piece * pass->chunk;
         row < fma_min((piece + 1) * pass->chunk, pass->rows); row++)
      pass->row(pass->call, pass->level, row);
}

/* Calls `row` for rows of `cost` numbers each. */
static void run(const struct fma_pooling *call, int64_t level, int64_t rows,
                int64_t cost,
                void (*row)(const struct fma_pooling *, int64_t, int64_t)) {
  /* Pieces that are worth a thread's while */
  int64_t chunk = 16384 / (cost ? cost : 1) + 1;
  int64_t pieces = (rows + chunk - 1) / chunk;
  struct pass pass = {call, {.count = pieces}, level, rows, chunk, row};
  fma_parallel(call->threads, pieces, body, &pass);
}

/* -------------------------------------------------------------- averages */
/* total += the heads of `count` tokens, at most FEW. */
static void add_tokens(const struct fma_pooling *call, const char **tokens,
                       int count, float *total) {
  int64_t heads = call->heads, dim = call->dim, step = call->tokens.stride[3];
  int64_t size = item_size(call);
  if (step == dim) /* one long head */
    dim *= heads, heads = 1;
  for (int64_t head = 0; head < heads; head++)
    for (int64_t first = 0; first < dim; first += CHANNELS) {
      int64_t channels = fma_min(dim - first, CHANNELS);
      float *to = total + head * dim + first;
      float rows[FEW][CHANNELS];
      const float *from[FEW];
      for (int i = 0; i < count; i++) {
        const char *at = tokens[i] + (head * step + first) * size;
        from[i] = (const float *)at;
        if (call->dtype != FMA_FLOAT32) {
          fma_to_float((int)call->dtype, at, channels, rows[i]);
          from[i] = rows[i];
        }
      }
      if (count == FEW)
        for (int64_t c = 0; c < channels; c++)
          to[c] += (from[0][c] + from[1][c]) + (from[2][c] + from[3][c]);
      else
        for (int i = 0; i < count; i++)
          for (int64_t c = 0; c < channels; c++)
            to[c] += from[i][c];
    }
}

/* Sums of the sub-cell (y, x) of level 1. */
static void sum_tokens(const struct fma_pooling *call, int64_t image,
                       int64_t y, int64_t x, float *total) {
  const int64_t *grid = call->grid, *stride = call->tokens.stride;
  int64_t side[2] = {call->cell[0] / call->rank[0],
                     call->cell[1] / call->rank[1]};
  int64_t below = fma_min((y + 1) * side[0], grid[0]);
  int64_t right = fma_min((x + 1) * side[1], grid[1]);
  int64_t size = item_size(call), span = call->heads * stride[3] * size;
  /* Some 8 KiB ahead, for memory: to the right, or in 1D below. */
  int64_t soon = 8192 / (span + 1) + 1;
  int64_t ahead = soon * stride[1] * size;
  if (grid[1] > 1)
    ahead = (soon / (side[0] * side[1]) + 1) * side[1] * stride[2] * size;
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
        add_tokens(call, tokens, count, total);
        count = 0;
      }
    }
  add_tokens(call, tokens, count, total);
}

/* Sums of the sub-cells of the level below. */
static void sum_children(const struct fma_pooling *call, int64_t level,
                         int64_t image, int64_t y, int64_t x, float *total) {
  int64_t channels = call->heads * call->dim;
  int64_t below = fma_min(2 * y + 2, points(call, level - 1, 0));
  int64_t right = fma_min(2 * x + 2, points(call, level - 1, 1));
  for (int64_t v = 2 * y; v < below; v++)
    for (int64_t u = 2 * x; u < right; u++) {
      const float *part =
          packed_at(call, image, packed_row(call, level - 1, v, u));
      for (int64_t c = 0; c < channels; c++)
        total[c] += part[c];
    }
}

/* Sums of a row of sub-cells. */
static void sum_row(const struct fma_pooling *call, int64_t level,
                    int64_t row) {
  int64_t channels = call->heads * call->dim, rows = points(call, level, 0);
  int64_t image = row / rows, y = row % rows;
  for (int64_t x = 0; x < points(call, level, 1); x++) {
    float *total = packed_at(call, image, packed_row(call, level, y, x));
    memset(total, 0, (size_t)channels * sizeof *total);
    if (level > 1)
      sum_children(call, level, image, y, x, total);
    else
      sum_tokens(call, image, y, x, total);
  }
}

/* One packed row times 1 / mass. */
static void scale_row(const struct fma_pooling *call, int64_t level,
                      int64_t row) {
  (void)level;
  int64_t image = row / call->total, at = row % call->total;
  float scale = call->scale[image * call->scale_stride + at];
  float *x = packed_at(call, image, at);
  for (int64_t c = 0; c < call->heads * call->dim; c++)
    x[c] *= scale;
}

static int64_t level_cost(const struct fma_pooling *call, int64_t level) {
  return points(call, level, 1) * call->heads * call->dim;
}

int fma_pool(const struct fma_pooling *call) {
  int64_t channels = call->heads * call->dim;
  for (int64_t level = 1; level <= call->levels; level++) {
    int64_t tokens = level > 1 ? 2
                               : call->cell[0] / call->rank[0] *
                                     (call->cell[1] / call->rank[1]);
    run(call, level, call->batch * points(call, level, 0),
        level_cost(call, level) * tokens, sum_row);
  }
  run(call, 0, call->batch * call->total, channels, scale_row);
  return FMA_OK;
}

/* --------------------------------------------------------- their transpose */
/* Adds to a row of sub-cells what the level above hands down. */
static void spread_row(const struct fma_pooling *call, int64_t level,
                       int64_t row) {
  int64_t channels = call->heads * call->dim, rows = points(call, level, 0);
  int64_t image = row / rows, y = row % rows;
  for (int64_t x = 0; x < points(call, level, 1); x++) {
    float *at = packed_at(call, image, packed_row(call, level, y, x));
    const float *up =
        packed_at(call, image, packed_row(call, level + 1, y / 2, x / 2));
    for (int64_t c = 0; c < channels; c++)
      at[c] += up[c];
  }
}

/* A row of tokens takes what level 1 hands down. */
static void token_row(const struct fma_pooling *call, int64_t level,
                      int64_t row) {
  int64_t rows = call->grid[0], columns = call->grid[1];
  int64_t channels = call->heads * call->dim;
  int64_t side[2] = {call->cell[0] / call->rank[0],
                     call->cell[1] / call->rank[1]};
  int64_t image = row / rows, y = row % rows;
  (void)level;
  for (int64_t x = 0; x < columns; x++) {
    int64_t token = row * columns + x;
    float *to = call->grad + token * channels;
    const float *up =
        packed_at(call, image, packed_row(call, 1, y / side[0], x / side[1]));
    if (!call->add)
      memset(to, 0, (size_t)channels * sizeof *to);
    if (!call->mask || call->mask[token])
      for (int64_t c = 0; c < channels; c++)
        to[c] += up[c];
  }
}

int fma_pool_backward(const struct fma_pooling *call) {
  int64_t channels = call->heads * call->dim;
  run(call, 0, call->batch * call->total, channels, scale_row);
  for (int64_t level = call->levels - 1; level >= 1; level--)
    run(call, level, call->batch * points(call, level, 0),
        level_cost(call, level), spread_row);
  run(call, 0, call->batch * call->grid[0], call->grid[1] * channels,
      token_row);
  return FMA_OK;
}

/* --------------------------------------------------------- weighted sums */
static void add_weighted(int64_t dim, const float *restrict taps,
                         const float *restrict token, float *restrict to) {
  for (int64_t c = 0; c < dim; c++)
    to[c] += taps[c] * token[c];
}

/* A row of cells: out[part] = sum over tokens of taps[part][token] * token. */
static void weigh_row(const struct fma_weighing *call, int64_t image,
                      int64_t y) {
  const int64_t *grid = call->grid, *width = call->width;
  const int64_t *stride = call->tokens.stride;
  int64_t heads = call->heads, dim = call->dim;
  int64_t below = fma_min((y + 1) * width[0], grid[0]);
  for (int64_t x = 0; x < call->cells[1]; x++) {
    int64_t right = fma_min((x + 1) * width[1], grid[1]);
    int64_t cell = (image * call->cells[0] + y) * call->cells[1] + x;
    float *out = call->out + cell * call->parts * heads * dim;
    memset(out, 0, (size_t)(call->parts * heads * dim) * sizeof *out);
    for (int64_t v = y * width[0]; v < below; v++)
      for (int64_t u = x * width[1]; u < right; u++) {
        const float *token = (const float *)call->tokens.data +
                             image * stride[0] + v * stride[1] + u * stride[2];
        int64_t place = (v - y * width[0]) * width[1] + u - x * width[1];
        for (int64_t part = 0; part < call->parts; part++) {
          const float *taps =
              call->taps + (part * width[0] * width[1] + place) * dim;
          float *to = out + part * heads * dim;
          for (int64_t head = 0; head < heads; head++, to += dim)
            add_weighted(dim, taps, token + head * stride[3], to);
        }
      }
  }
}

struct weighing_pass {
  const struct fma_weighing *call;
  struct fma_work work;
};

static void weigh_body(void *context) {
  struct weighing_pass *pass = context;
  int64_t rows = pass->call->cells[0], row;
  while ((row = fma_take(&pass->work)) >= 0)
    weigh_row(pass->call, row / rows, row % rows);
}

int fma_weigh(const struct fma_weighing *call) {
  struct weighing_pass pass = {call, {.count = call->batch * call->cells[0]}};
  fma_parallel(call->threads, pass.work.count, weigh_body, &pass);
  return FMA_OK;
}
