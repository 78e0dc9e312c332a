/* The native kernels without Python: random cases against plain loops.
 *
 * So they can be tried on another processor, under emulation. Everything is
 * compared with the definition, pair by pair, in double precision.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fma.h"

struct problem {
  int64_t ndim, grid[2], cell, rank, levels, causal, batch, heads, dim;
  int64_t dtype, masked;
};

static uint64_t state = 1;

/* Uniform in [-1, 1) (splitmix64, public domain). */
static double uniform(void) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

static void *zeros(int64_t count, size_t size) {
  void *found = calloc((size_t)count + 1, size);
  if (!found)
    exit(2);
  return found;
}

/* Random numbers that the dtype holds exactly: `stored`, and as floats. */
static float *numbers(const struct problem *p, int64_t count, void **stored) {
  float *found = zeros(count, sizeof *found);
  uint16_t *halves = zeros(count, sizeof *halves);
  for (int64_t i = 0; i < count; i++) {
    found[i] = (float)uniform();
    uint32_t bits;
    memcpy(&bits, &found[i], sizeof bits);
    halves[i] = (uint16_t)(bits >> 16);
    if (p->dtype == FMA_FLOAT16) /* of an exponent from 2 ** -6 to 2 */
      halves[i] = (uint16_t)((bits >> 16 & 0x8000) | 0x2400 |
                             (bits >> 8 & 0x1fff) % 0x1800);
  }
  *stored = found;
  if (p->dtype != FMA_FLOAT32) {
    *stored = halves;
    fma_to_float((int)p->dtype, halves, count, found);
  } else {
    free(halves);
  }
  return found;
}

static struct fma_rows rows_of(const struct fma_call *call, void *data,
                               int packed) {
  int64_t row = call->heads * call->dim, count = call->total;
  if (packed)
    return (struct fma_rows){data, {count * row, row, 0, call->dim}};
  const int64_t *grid = call->grid;
  return (struct fma_rows){
      data, {grid[0] * grid[1] * row, grid[1] * row, row, call->dim}};
}

/* The sub-cell of a packed number: its level, cell and origin in tokens. */
struct place {
  int64_t level, cell[2], from[2], side[2];
};

static struct place place_of(const struct fma_call *call, int64_t index) {
  struct place found = {.level = 1};
  int64_t parts = call->rank[0] * call->rank[1];
  while (found.level < call->levels && index >= call->level_start[found.level])
    found.level++;
  index -= call->level_start[found.level - 1];
  int64_t columns = call->level_grid[found.level - 1][1];
  found.cell[0] = index / parts / columns;
  found.cell[1] = index / parts % columns;
  int64_t part[2] = {index % parts / call->rank[1],
                     index % parts % call->rank[1]};
  for (int axis = 0; axis < 2; axis++) {
    int64_t width = axis < call->ndim ? call->cell[0] << (found.level - 1) : 1;
    found.side[axis] = width / call->rank[axis];
    found.from[axis] =
        found.cell[axis] * width + part[axis] * found.side[axis];
  }
  return found;
}

static int64_t distance(const int64_t *a, const int64_t *b, int64_t divide) {
  int64_t y = llabs(a[0] / divide - b[0] / divide);
  int64_t x = llabs(a[1] / divide - b[1] / divide);
  return y > x ? y : x;
}

/* Whether a token sees a key: a token, then packed summaries. */
static int sees(const struct fma_call *call, int64_t token, int64_t key) {
  const int64_t *grid = call->grid;
  int64_t tokens = grid[0] * grid[1], cell = call->cell[0];
  int64_t at[2] = {token / grid[1], token % grid[1]};
  if (key < tokens) {
    int64_t other[2] = {key / grid[1], key % grid[1]};
    int near =
        call->everything ||
        (llabs(at[0] / cell - other[0] / cell) <= 1 &&
         (call->ndim == 1 || llabs(at[1] / cell - other[1] / cell) <= 1));
    return near && !(call->causal && key > token);
  }
  struct place place = place_of(call, key - tokens);
  int64_t width = cell << (place.level - 1);
  int64_t here[2] = {at[0] / width, call->ndim == 1 ? 0 : at[1] / width};
  if (distance(here, place.cell, 1) <= 1)
    return 0;
  if (place.level < call->levels && distance(here, place.cell, 2) > 1)
    return 0;
  return !(call->causal && place.cell[0] > here[0]);
}

/* Real tokens of a summary of an image. */
static int64_t mass_of(const struct fma_call *call, int64_t image,
                       int64_t index) {
  struct place place = place_of(call, index);
  const int64_t *grid = call->grid;
  int64_t mass = 0;
  for (int64_t y = place.from[0]; y < place.from[0] + place.side[0]; y++)
    for (int64_t x = place.from[1]; x < place.from[1] + place.side[1]; x++)
      mass += y < grid[0] && x < grid[1] &&
              call->mask[(image * grid[0] + y) * grid[1] + x];
  return mass;
}

static double worst;

/* Errors, in units of what is allowed. */
static void same(const float *found, const double *expected, int64_t count,
                 double tolerance) {
  for (int64_t i = 0; i < count; i++) {
    double error = fabs(found[i] - expected[i]);
    error = found[i] == expected[i] ? 0 : error;
    error /= tolerance * (1 + fabs(expected[i]));
    if (!(error <= worst))
      worst = isnan(error) ? INFINITY : error;
  }
}

static void try_case(const struct problem *p, int64_t isa, int64_t threads) {
  struct fma_call call = {
      .batch = p->batch,
      .heads = p->heads,
      .dim = p->dim,
      .dtype = p->dtype,
      .threads = threads,
      .isa = isa,
      .ndim = p->ndim,
      .grid = {p->grid[0], p->grid[1]},
      .cell = {p->cell, p->ndim == 1 ? 1 : p->cell},
      .rank = {p->rank, p->ndim == 1 ? 1 : p->rank},
      .levels = p->levels,
      .everything = !p->levels,
      .causal = p->causal,
      .scale = 0.7f,
  };
  for (int axis = 0; axis < 2; axis++) {
    call.tile[axis] = call.cell[axis];
    if (call.everything)
      call.tile[axis] = p->ndim == 2 ? 8 : axis ? 1 : 64;
  }
  for (int64_t level = 1; level <= p->levels; level++) {
    int64_t *cells = call.level_grid[level - 1];
    for (int axis = 0; axis < 2; axis++) {
      int64_t width = axis < p->ndim ? p->cell << (level - 1) : 1;
      cells[axis] = (p->grid[axis] + width - 1) / width;
    }
    call.level_start[level - 1] = call.total;
    call.total += cells[0] * cells[1] * call.rank[0] * call.rank[1];
  }
  int64_t tokens = p->grid[0] * p->grid[1], heads = p->heads, dim = p->dim;
  int64_t row = heads * dim, all = tokens + call.total;
  int64_t size = p->batch * tokens * row, far = p->batch * call.total * row;
  uint8_t *mask = zeros(p->batch * tokens, 1);
  for (int64_t i = 0; i < p->batch * tokens; i++)
    mask[i] = !p->masked || uniform() < 0.4;
  call.mask = mask;
  float *log_mass = zeros(p->batch * call.total, sizeof *log_mass);
  float *share = zeros(p->batch * call.total, sizeof *share);
  for (int64_t i = 0; i < p->batch * call.total; i++) {
    int64_t mass = mass_of(&call, i / call.total, i % call.total);
    log_mass[i] = log2f((float)mass);
    share[i] = 1 / (float)(mass ? mass : 1);
  }
  call.log_mass = log_mass;
  call.log_mass_stride = call.total;
  void *stored[6];
  float *x[6]; /* query, key, value, summaries, grad_out */
  for (int i = 0; i < 6; i++)
    x[i] = numbers(p, i == 3 || i == 4 ? far : size, &stored[i]);
  call.query = rows_of(&call, stored[0], 0);
  call.key = rows_of(&call, stored[1], 0);
  call.value = rows_of(&call, stored[2], 0);
  call.key_summaries = rows_of(&call, stored[3], 1);
  call.value_summaries = rows_of(&call, stored[4], 1);
  call.grad_out = rows_of(&call, stored[5], 0);
  float *out = zeros(size, sizeof *out);
  float *lse = zeros(size / dim, sizeof *lse);
  float *grad_lse = zeros(size / dim, sizeof *grad_lse);
  call.out = out, call.lse = lse, call.grad_lse = grad_lse;
  float *grad[5];
  for (int i = 0; i < 5; i++)
    grad[i] = zeros(i < 3 ? size : far, sizeof(float));
  call.grad_query = grad[0], call.grad_key = grad[1];
  call.grad_value = grad[2], call.grad_key_summaries = grad[3];
  call.grad_value_summaries = grad[4];

  /* The definition */
  double *expected[5], *average = zeros(far, sizeof *average);
  double *true_out = zeros(size, sizeof *true_out);
  double *true_lse = zeros(size / dim, sizeof *true_lse);
  double *logit = zeros(all, sizeof *logit);
  for (int i = 0; i < 5; i++)
    expected[i] = zeros(i < 3 ? size : far, sizeof(double));
  for (int64_t i = 0; i < size / dim; i++) {
    int64_t image = i / heads / tokens, token = i / heads % tokens;
    int64_t head = i % heads;
    const float *query = x[0] + i * dim;
    double sum = 0, delta = 0, slope_lse = uniform();
    for (int64_t key = 0; key < all; key++) {
      int64_t index = key < tokens ? key : key - tokens;
      int64_t many = key < tokens ? tokens : call.total;
      int64_t at = ((image * many + index) * heads + head) * dim;
      double bias = key < tokens
                        ? (mask[image * tokens + index] ? 0 : -INFINITY)
                        : log_mass[image * call.total + index] * log(2);
      double product = 0;
      for (int64_t c = 0; c < dim; c++)
        product += (double)query[c] * x[key < tokens ? 1 : 3][at + c];
      logit[key] =
          sees(&call, token, key) ? call.scale * product + bias : -INFINITY;
      double weight = exp(logit[key]);
      sum += weight;
      for (int64_t c = 0; c < dim; c++)
        true_out[i * dim + c] += weight * x[key < tokens ? 2 : 4][at + c];
    }
    for (int64_t c = 0; c < dim; c++) {
      true_out[i * dim + c] /= sum ? sum : 1;
      delta += true_out[i * dim + c] * x[5][i * dim + c];
    }
    true_lse[i] = log(sum);
    grad_lse[i] = sum ? (float)slope_lse : 0;
    for (int64_t key = 0; key < all && sum; key++) {
      int64_t index = key < tokens ? key : key - tokens;
      int64_t many = key < tokens ? tokens : call.total;
      int64_t at = ((image * many + index) * heads + head) * dim;
      int which = key < tokens ? 1 : 3;
      double weight = exp(logit[key]) / sum, slope = grad_lse[i] - delta;
      for (int64_t c = 0; c < dim; c++)
        slope += (double)x[5][i * dim + c] * x[which + 1][at + c];
      slope *= weight * call.scale;
      for (int64_t c = 0; c < dim; c++) {
        expected[0][i * dim + c] += slope * x[which][at + c];
        expected[which][at + c] += slope * query[c];
        expected[which + 1][at + c] += weight * x[5][i * dim + c];
      }
    }
  }
  if (fma_forward(&call) || fma_backward(&call))
    worst = INFINITY;
  same(out, true_out, size, 1e-5);
  same(lse, true_lse, size / dim, 1e-5);
  for (int i = 0; i < 5; i++)
    same(grad[i], expected[i], i < 3 ? size : far, 1e-4);

  /* Averages, and the way back of the summaries' gradients */
  struct fma_pooling pooling = {
      .batch = p->batch,
      .heads = heads,
      .dim = dim,
      .dtype = p->dtype,
      .threads = threads,
      .levels = p->levels,
      .total = call.total,
      .add = 1,
      .tokens = call.key,
      .mask = mask,
      .scale = share,
      .scale_stride = call.total,
      .packed = zeros(far, sizeof(float)),
      .grad = grad[1],
  };
  memcpy(pooling.grid, call.grid, sizeof call.grid);
  memcpy(pooling.cell, call.cell, sizeof call.cell);
  memcpy(pooling.rank, call.rank, sizeof call.rank);
  memcpy(pooling.level_grid, call.level_grid, sizeof call.level_grid);
  memcpy(pooling.level_start, call.level_start, sizeof call.level_start);
  for (int64_t i = 0; i < p->batch * call.total && call.total; i++) {
    int64_t image = i / call.total;
    struct place place = place_of(&call, i % call.total);
    for (int64_t t = 0; t < tokens; t++) {
      int64_t y = t / p->grid[1] - place.from[0];
      int64_t z = t % p->grid[1] - place.from[1];
      if (y < 0 || z < 0 || y >= place.side[0] || z >= place.side[1] ||
          !mask[image * tokens + t])
        continue;
      for (int64_t c = 0; c < row; c++) {
        int64_t at = (image * tokens + t) * row + c;
        average[i * row + c] += (double)share[i] * x[1][at];
        expected[1][at] += share[i] * expected[3][i * row + c];
      }
    }
  }
  if (p->levels) {
    if (fma_pool(&pooling))
      worst = INFINITY;
    same(pooling.packed, average, far, 1e-5);
    memcpy(pooling.packed, grad[3], (size_t)far * sizeof(float));
    if (fma_pool_backward(&pooling))
      worst = INFINITY;
    same(grad[1], expected[1], size, 1e-4);
  }
  for (int i = 0; i < 6; i++) {
    if (stored[i] != x[i])
      free(stored[i]);
    free(x[i]);
  }
  for (int i = 0; i < 5; i++)
    free(grad[i]), free(expected[i]);
  free(mask), free(log_mass), free(share), free(pooling.packed);
  free(out), free(lse), free(grad_lse), free(average);
  free(true_out), free(true_lse), free(logit);
}

int main(void) {
  const struct problem problems[] = {
      {1, {1, 1}, 1, 1, 0, 0, 1, 1, 1, FMA_FLOAT32, 0},
      {1, {67, 1}, 4, 2, 3, 0, 1, 2, 8, FMA_FLOAT32, 0},
      {1, {67, 1}, 4, 1, 3, 1, 2, 1, 5, FMA_FLOAT32, 1},
      {1, {90, 1}, 20, 4, 1, 1, 1, 2, 4, FMA_BFLOAT16, 0},
      {1, {80, 1}, 2, 1, 0, 1, 1, 1, 33, FMA_FLOAT16, 1},
      {2, {13, 10}, 2, 1, 2, 0, 1, 2, 17, FMA_FLOAT32, 0},
      {2, {19, 9}, 3, 3, 2, 0, 2, 1, 4, FMA_FLOAT32, 1},
      {2, {18, 11}, 4, 2, 1, 0, 1, 5, 3, FMA_FLOAT16, 1},
      {2, {26, 9}, 1, 1, 4, 0, 1, 1, 24, FMA_BFLOAT16, 0},
      {2, {17, 19}, 8, 1, 1, 0, 1, 1, 16, FMA_FLOAT32, 0},
      {2, {9, 11}, 2, 1, 0, 0, 1, 2, 6, FMA_FLOAT32, 1},
  };
  int failed = 0;
  for (size_t i = 0; i < sizeof problems / sizeof *problems; i++)
    for (int64_t isa = fma_best_isa(); isa >= 0; isa--) {
      worst = 0;
      state = 7 * i + 1;
      try_case(&problems[i], isa, 1 + (int64_t)i % 3);
      printf("case %d, instruction set %d: %.2g of the tolerance\n", (int)i,
             (int)isa, worst);
      failed |= !(worst <= 1);
    }
  return failed;
}
