/* The walk over tiles: lists, rows of a head, kernels, results.
 *
 * Forward, tiles are independent. Backward, a task owns an image, a head and
 * a band of tile rows. Tiles add to keys at most one tile row away, so bands
 * of at least two rows run in two rounds, the even ones and then the odd
 * ones: every sum has one order, whatever the number of threads. Summaries
 * are listed from further away: each band sums up its own, and the sums are
 * added band by band.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fma.h"

static size_t item_size(const struct fma_call *call) {
  return call->dtype == FMA_FLOAT32 ? 4 : 2;
}

/* Rows that ask: tokens, or packed summaries. */
static int64_t row_count(const struct fma_call *call) {
  return call->level ? call->total : call->grid[0] * call->grid[1];
}

/* ------------------------------------------------------------- bands */
struct bands {
  int64_t count, length; /* of tile rows */
  /* Summaries of a band, by level: packed rows [first, first + size) lie at
   * `start` of its own sums. */
  int64_t *first, *start; /* [count][FMA_MAX_LEVELS] */
  int64_t size;           /* of all bands, in rows of dim */
  float *sums;            /* [2][batch * heads][size][dim], or null */
  float *near, *far;      /* [batch * heads * count][entries], or null */
};

/* ------------------------------------------------------------- a thread's */
struct thread {
  const struct fma_call *call;
  const struct fma_kernels *kernels;
  void *memory;
  struct fma_tile tile, next;
  struct fma_list list;
  int64_t most; /* queries of a job */
  int64_t pitch;
  const void **key, **value;
  const float **rows;
  float **results, *shares;
  float *bias;
  uint32_t *number, *state;
  float **grad_key, **grad_value;
  float *query, *out, *scores, *converted, *maximum, *sum, *row;
  float *grad, *query_rows, *grad_rows, *lse, *delta, *grad_query, *junk;
  int32_t *lane_row, *lane_column, *lane_entry, *position;
};

/* Lays out a thread's memory at `at`; with a null, counts its bytes. */
static size_t lay_out(struct thread *t, char *at, int back) {
  const struct fma_call *call = t->call;
  int64_t keys = fma_list_size(call), queries = fma_tile_size(call);
  int64_t dim = call->dim, width = t->most;
  size_t used = 0;
  struct fma_tile *tiles[2] = {&t->tile, &t->next};
  for (int i = 0; i < 2; i++) {
    FMA_TAKE(tiles[i]->index, int64_t, queries);
    FMA_TAKE(tiles[i]->offset, int64_t, queries);
    FMA_TAKE(tiles[i]->parent, int64_t, queries);
    FMA_TAKE(tiles[i]->number, int64_t, queries);
    FMA_TAKE(tiles[i]->row, int32_t, queries);
    FMA_TAKE(tiles[i]->column, int32_t, queries);
  }
  FMA_TAKE(t->list.key, int64_t, keys);
  FMA_TAKE(t->list.value, int64_t, keys);
  FMA_TAKE(t->list.index, int64_t, keys);
  FMA_TAKE(t->list.bias, float, keys);
  FMA_TAKE(t->list.entry, int32_t, keys);
  FMA_TAKE(t->list.row, int32_t, keys);
  FMA_TAKE(t->list.column, int32_t, keys);
  FMA_TAKE(t->key, const void *, keys);
  FMA_TAKE(t->value, const void *, keys);
  FMA_TAKE(t->bias, float, keys);
  FMA_TAKE(t->number, uint32_t, call->dropout ? keys : 0);
  FMA_TAKE(t->state, uint32_t, width);
  FMA_TAKE(t->query, float, dim *width);
  FMA_TAKE(t->out, float, dim *width);
  FMA_TAKE(t->scores, float, (back ? 2 : 1) * FMA_BLOCK);
  FMA_TAKE(t->converted, float, call->dtype ? 2 * FMA_KEYS *dim : 0);
  FMA_TAKE(t->maximum, float, width);
  FMA_TAKE(t->sum, float, width);
  FMA_TAKE(t->row, float, call->dtype || call->level ? dim * width : 0);
  FMA_TAKE(t->rows, const float *, width);
  FMA_TAKE(t->results, float *, width);
  FMA_TAKE(t->shares, float, width);
  FMA_TAKE(t->lane_row, int32_t, width);
  FMA_TAKE(t->lane_column, int32_t, width);
  FMA_TAKE(t->lane_entry, int32_t, width);
  FMA_TAKE(t->position, int32_t, width);
  FMA_TAKE(t->junk, float, dim);
  if (back) {
    FMA_TAKE(t->grad_key, float *, keys);
    FMA_TAKE(t->grad_value, float *, keys);
    FMA_TAKE(t->grad, float, dim *width);
    FMA_TAKE(t->query_rows, float, width * t->pitch);
    FMA_TAKE(t->grad_rows, float, width * t->pitch);
    FMA_TAKE(t->lse, float, width);
    FMA_TAKE(t->delta, float, width);
    FMA_TAKE(t->grad_query, float, dim *width);
  }
  return used;
}

static int open_thread(struct thread *t, const struct fma_call *call,
                       int back) {
  int64_t queries = fma_tile_size(call);
  t->call = call;
  t->kernels = fma_kernels_for((int)call->isa, queries);
  int64_t lanes = t->kernels->lanes;
  /* Causal: of a tile's own tokens, few queries leave many out. */
  t->most = (call->causal ? 2 : 4) * lanes;
  t->pitch = (call->dim + lanes - 1) / lanes * lanes;
  size_t size = lay_out(t, NULL, back);
  t->memory = malloc(size + 64);
  if (!t->memory)
    return 0;
  char *aligned = (char *)(((uintptr_t)t->memory + 63) / 64 * 64);
  memset(aligned, 0, size);
  lay_out(t, aligned, back);
  return 1;
}

/* ------------------------------------------------------------- one head */
static const char *rows_at(const struct fma_call *call,
                           const struct fma_rows *rows, int64_t image,
                           int64_t head) {
  if (!rows->data)
    return NULL;
  return (const char *)rows->data +
         (image * rows->stride[0] + head * rows->stride[3]) *
             (int64_t)item_size(call);
}

/* The next tile, whose queries are asked for while this one is at work: each
 * is read once, and mostly lies in memory. */
static void take_tile(struct thread *t, int64_t image, int64_t head,
                      int64_t heads, int64_t number, int64_t last) {
  const struct fma_call *call = t->call;
  const struct fma_rows *rows =
      call->level ? &call->query_summaries : &call->query;
  int64_t size = (int64_t)item_size(call), columns = fma_tile_columns(call);
  struct fma_tile ready = t->next;
  t->next = t->tile;
  t->tile = ready;
  if (number + 1 > last)
    return;
  fma_make_tile(call, (number + 1) / columns, (number + 1) % columns,
                &t->next);
  for (; heads > 0; heads--, head++) {
    const char *base = rows_at(call, rows, image, head);
    for (int64_t i = 0; i < fma_min(t->next.count, 64); i++)
      for (int64_t at = 0; at < call->dim * size; at += 64)
        __builtin_prefetch(base + t->next.offset[i] * size + at, 0, 2);
  }
}

/* Pointers to the list's rows; dead keys up to a multiple of FMA_GROUP. */
static void point_at_keys(struct thread *t, int64_t image, int64_t head) {
  const struct fma_call *call = t->call;
  const struct fma_list *list = &t->list;
  int64_t size = (int64_t)item_size(call), far = list->far;
  const char *key = rows_at(call, &call->key_summaries, image, head);
  const char *value = rows_at(call, &call->value_summaries, image, head);
  for (int64_t j = 0; j < far; j++) {
    t->key[j] = key + list->key[j] * size;
    t->value[j] = value + list->value[j] * size;
  }
  key = rows_at(call, &call->key, image, head);
  value = rows_at(call, &call->value, image, head);
  for (int64_t j = far; j < list->count; j++) {
    t->key[j] = key + list->key[j] * size;
    t->value[j] = value + list->value[j] * size;
  }
  memcpy(t->bias, list->bias, list->count * sizeof *t->bias);
  if (call->far_bias) {
    const float *table = call->far_bias + head * call->far_entries;
    for (int64_t j = 0; j < far; j++)
      t->bias[j] += table[list->entry[j]] * FMA_LOG2E;
  }
  for (int64_t j = list->count; j % FMA_GROUP; j++) {
    t->key[j] = t->value[j] = t->junk;
    t->bias[j] = -INFINITY;
  }
}

/* Numbers of keys that dropout hashes: tokens, then summaries. */
static void hash_keys(struct thread *t) {
  const struct fma_call *call = t->call;
  int64_t tokens = call->grid[0] * call->grid[1];
  for (int64_t j = 0; j < t->list.count; j++) {
    int64_t number = t->list.index[j] + (j < t->list.far ? tokens : 0);
    t->number[j] = fma_mix((uint32_t)number + 0x9E3779B9u);
  }
}

/* Whether a sub-cell that asks holds no real token: it may be NaN, and asks
 * with 0. */
static int is_absent(const struct fma_call *call, int64_t image,
                     int64_t index) {
  return call->level &&
         call->log_mass[image * call->log_mass_stride + index] == -INFINITY;
}

/* Some queries of the tile, from `first`: all that forward and backward have
 * in common. `raw` is scratch for one row. */
static void load_queries(struct thread *t, struct fma_job *job, int64_t image,
                         int64_t head, int64_t first) {
  const struct fma_call *call = t->call;
  int64_t dim = call->dim, lanes = t->kernels->lanes;
  int64_t count = fma_min(t->tile.count - first, t->most);
  int64_t width = count > 2 * lanes ? 4 * lanes
                  : count > lanes   ? 2 * lanes
                                    : lanes;
  const struct fma_rows *rows =
      call->level ? &call->query_summaries : &call->query;
  const char *base = rows_at(call, rows, image, head);
  *job = (struct fma_job){
      .queries = (int)count,
      .width = (int)width,
      .dim = (int)dim,
      .dtype = (int)call->dtype,
      .count = fma_padded(t->list.count),
      .far = t->list.far,
      .key = t->key,
      .value = t->value,
      .bias = t->bias,
      .index = t->list.index,
      .entry = t->list.entry,
      .row = t->list.row,
      .column = t->list.column,
      .query = t->query,
      .scores = t->scores,
      .converted = t->converted,
      .hidden_from = INT64_MAX,
      .top = (int)call->top,
      .number = t->number,
      .threshold = call->threshold,
      .keep_scale = call->keep_scale,
      .maximum = t->maximum,
      .sum = t->sum,
      .out = t->out,
      .pitch = t->pitch,
  };
  if (count < width)
    memset(t->query, 0, dim * width * sizeof *t->query);
  for (int64_t i = 0; i < count; i++) {
    const char *from =
        base + t->tile.offset[first + i] * (int64_t)item_size(call);
    float *copy = t->row ? t->row + i * dim : NULL;
    t->rows[i] = copy;
    if (is_absent(call, image, t->tile.index[first + i]))
      memset(copy, 0, dim * sizeof *copy);
    else if (call->dtype == FMA_FLOAT32)
      t->rows[i] = (const float *)from;
    else
      fma_to_float((int)call->dtype, from, dim, copy);
  }
  fma_to_columns(t->rows, count, dim, call->scale * FMA_LOG2E, width,
                 t->query);
  if (t->query_rows)
    for (int64_t i = 0; i < count; i++)
      for (int64_t c = 0; c < dim; c++)
        t->query_rows[i * t->pitch + c] = t->rows[i][c] * call->scale;
  if (call->level) {
    /* Lanes without a query see whatever they like. */
    memset(t->lane_row, 0, width * sizeof *t->lane_row);
    memset(t->lane_column, 0, width * sizeof *t->lane_column);
    memcpy(t->lane_row, t->tile.row + first, count * sizeof *t->lane_row);
    memcpy(t->lane_column, t->tile.column + first,
           count * sizeof *t->lane_column);
    job->lane_row = t->lane_row;
    job->lane_column = t->lane_column;
  }
  if (call->near_bias) {
    int64_t pitch = call->ndim == 1 ? 1 : 4 * call->cell[0] - 1;
    for (int64_t i = 0; i < count; i++)
      t->lane_entry[i] =
          (int32_t)((t->tile.row[first + i] - t->tile.row[0]) * pitch +
                    t->tile.column[first + i] - t->tile.column[0]);
    job->near_bias = call->near_bias + head * call->near_entries;
    job->lane_entry = t->lane_entry;
  }
  if (call->causal) {
    /* Near tokens are in order: those later than all are left out. */
    int64_t last = t->tile.index[first + count - 1], seen = t->list.count;
    while (seen > t->list.far && t->list.index[seen - 1] > last)
      seen--;
    job->count = fma_padded(seen);
    job->first = t->tile.index[first];
    while (seen > t->list.far && t->list.index[seen - 1] > job->first)
      seen--;
    job->hidden_from = seen;
    for (int64_t i = 0; i < width; i++)
      t->position[i] = i < count ? (int32_t)i : INT32_MAX;
    job->position = t->position;
  }
  if (call->dropout) {
    int64_t tokens = call->grid[0] * call->grid[1];
    for (int64_t i = 0; i < width; i++) {
      int64_t query = i < count ? t->tile.number[first + i] : 0;
      uint64_t row = (image * call->heads + head) * tokens + query;
      uint32_t state = fma_mix((uint32_t)row ^ (uint32_t)call->seed);
      t->state[i] = fma_mix(state ^ (uint32_t)(row >> 32) ^
                            (uint32_t)(call->seed >> 32));
    }
    job->state = t->state;
  }
}

/* -------------------------------------------------------------- forward */
static void begin_softmax(struct thread *t, const struct fma_job *job,
                          int64_t image, int64_t head, int64_t first) {
  const struct fma_call *call = t->call;
  int64_t width = job->width, dim = call->dim;
  memset(t->out, 0, dim * width * sizeof *t->out);
  for (int64_t i = 0; i < width; i++)
    t->maximum[i] = -FLT_MAX, t->sum[i] = 0;
  if (!call->has_parents)
    return;
  /* All that is farther is one key more, the first one. */
  for (int64_t i = 0; i < job->queries; i++) {
    int64_t at = (image * call->parent_total + t->tile.parent[first + i]) *
                     call->heads +
                 head;
    if (call->parent_lse[at] == -INFINITY)
      continue;
    t->maximum[i] = call->parent_lse[at] * FMA_LOG2E;
    t->sum[i] = 1;
    for (int64_t c = 0; c < dim; c++)
      t->out[c * width + i] = call->parent_out[at * dim + c];
  }
}

static void end_softmax(struct thread *t, const struct fma_job *job,
                        int64_t image, int64_t head, int64_t first) {
  const struct fma_call *call = t->call;
  int64_t width = job->width, dim = call->dim, rows = row_count(call);
  for (int64_t i = 0; i < job->queries; i++) {
    int64_t at =
        (image * rows + t->tile.index[first + i]) * call->heads + head;
    float sum = t->sum[i];
    t->results[i] = call->out + at * dim;
    t->shares[i] = sum == 0 ? 0 : 1 / sum;
    call->lse[at] = sum == 0 ? -INFINITY : t->maximum[i] * FMA_LN2 + logf(sum);
  }
  fma_to_rows(t->out, job->queries, dim, t->shares, width, t->results);
}

struct pass {
  const struct fma_call *call;
  struct fma_work work;
  int64_t chunk, failed;
  struct bands *bands;
  int64_t parity;
};

static void forward_body(void *context) {
  struct pass *pass = context;
  const struct fma_call *call = pass->call;
  struct thread t = {0};
  if (!open_thread(&t, call, 0)) {
    __atomic_store_n(&pass->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  int64_t columns = fma_tile_columns(call);
  int64_t tiles = fma_tile_rows(call) * columns;
  int64_t chunks = (tiles + pass->chunk - 1) / pass->chunk, task;
  struct fma_job job;
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t image = task / chunks, from = task % chunks * pass->chunk;
    int64_t last = fma_min(from + pass->chunk, tiles) - 1;
    fma_make_tile(call, from / columns, from % columns, &t.next);
    for (int64_t i = from; i <= last; i++) {
      take_tile(&t, image, 0, call->heads, i, last);
      fma_make_list(call, image, i / columns, i % columns, &t.list);
      if (call->dropout)
        hash_keys(&t);
      for (int64_t head = 0; head < call->heads; head++) {
        point_at_keys(&t, image, head);
        for (int64_t first = 0; first < t.tile.count; first += t.most) {
          load_queries(&t, &job, image, head, first);
          begin_softmax(&t, &job, image, head, first);
          t.kernels->forward(&job);
          end_softmax(&t, &job, image, head, first);
        }
      }
    }
  }
  free(t.memory);
}

int fma_forward(const struct fma_call *call) {
  int64_t tiles = fma_tile_rows(call) * fma_tile_columns(call);
  struct pass pass = {.call = call};
  /* Neighbours share keys: some tiles in a row, but work for every thread. */
  pass.chunk =
      fma_max(fma_min(tiles * call->batch / (16 * call->threads), 16), 1);
  pass.work.count = (tiles + pass.chunk - 1) / pass.chunk * call->batch;
  fma_parallel(call->threads, pass.work.count, forward_body, &pass);
  return pass.failed ? FMA_NO_MEMORY : FMA_OK;
}

/* ------------------------------------------------------------- backward */
/* Eight sums at once, for the compiler's vectors. */
static float product(const float *a, const float *b, int64_t count) {
  float sums[8] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; j++)
      sums[j] += a[i + j] * b[i + j];
  for (; i < count; i++)
    sum += a[i] * b[i];
  for (int j = 0; j < 8; j++)
    sum += sums[j];
  return sum;
}

static void load_grads(struct thread *t, struct fma_job *job, int64_t image,
                       int64_t head, int64_t first) {
  const struct fma_call *call = t->call;
  int64_t dim = call->dim, width = job->width, rows = row_count(call);
  int dtype = call->level ? FMA_FLOAT32 : (int)call->dtype;
  int64_t size = dtype == FMA_FLOAT32 ? 4 : 2;
  const int64_t *stride = call->grad_out.stride;
  if (job->queries < width)
    memset(t->grad, 0, dim * width * sizeof *t->grad);
  memset(t->grad_query, 0, dim * width * sizeof *t->grad_query);
  for (int64_t i = 0; i < width; i++)
    t->lse[i] = INFINITY, t->delta[i] = 0;
  for (int64_t i = 0; i < job->queries; i++) {
    int64_t index = t->tile.index[first + i];
    int64_t at = (image * rows + index) * call->heads + head;
    int64_t y = call->level ? index : t->tile.row[first + i];
    int64_t x = call->level ? 0 : t->tile.column[first + i];
    int64_t offset =
        image * stride[0] + y * stride[1] + x * stride[2] + head * stride[3];
    float *row = t->grad_rows + i * t->pitch;
    fma_to_float(dtype, (const char *)call->grad_out.data + offset * size, dim,
                 row);
    t->rows[i] = row;
    t->delta[i] = product(row, call->out + at * dim, dim) - call->grad_lse[at];
    /* A query without any key keeps +inf: its weights are 0. */
    if (call->lse[at] != -INFINITY)
      t->lse[i] = call->lse[at] * FMA_LOG2E;
    else
      t->delta[i] = 0;
  }
  fma_to_columns(t->rows, job->queries, dim, 1, width, t->grad);
  job->grad = t->grad;
  job->query_rows = t->query_rows;
  job->grad_rows = t->grad_rows;
  job->lse = t->lse;
  job->delta = t->delta;
  job->grad_query = t->grad_query;
  job->grad_key = t->grad_key;
  job->grad_value = t->grad_value;
}

static void store_grads(struct thread *t, const struct fma_job *job,
                        int64_t image, int64_t head, int64_t first) {
  const struct fma_call *call = t->call;
  int64_t dim = call->dim, width = job->width, rows = row_count(call);
  for (int64_t i = 0; i < job->queries; i++) {
    int64_t index = t->tile.index[first + i];
    int64_t at = (image * rows + index) * call->heads + head;
    t->results[i] = call->grad_query + at * dim;
    t->shares[i] = is_absent(call, image, index) ? 0 : call->scale;
    if (!call->has_parents)
      continue;
    int64_t up = (image * call->parent_total + t->tile.parent[first + i]) *
                     call->heads +
                 head;
    float share = exp2f(call->parent_lse[up] * FMA_LOG2E - t->lse[i]);
    if (share == 0)
      continue;
    const float *grad = t->grad_rows + i * t->pitch;
    float sum = -t->delta[i];
    for (int64_t c = 0; c < dim; c++) {
      sum += grad[c] * call->parent_out[up * dim + c];
      call->grad_parent_out[up * dim + c] += grad[c] * share;
    }
    call->grad_parent_lse[up] += sum * share;
  }
  fma_to_rows(t->grad_query, job->queries, dim, t->shares, width, t->results);
}

/* Where the gradients of the list's rows are summed up. */
static void point_at_sums(struct thread *t, const struct bands *bands,
                          int64_t image, int64_t head, int64_t band) {
  const struct fma_call *call = t->call;
  const struct fma_list *list = &t->list;
  int64_t dim = call->dim, heads = call->heads;
  int64_t tokens = call->grid[0] * call->grid[1];
  int64_t j = 0;
  if (bands->sums) {
    int64_t all = call->batch * heads * bands->size * dim;
    float *sums = bands->sums + (image * heads + head) * bands->size * dim;
    const int64_t *first = bands->first + band * FMA_MAX_LEVELS;
    const int64_t *start = bands->start + band * FMA_MAX_LEVELS;
    int64_t level = 0;
    for (; j < list->far; j++) {
      while (level + 1 < call->levels &&
             list->index[j] >= call->level_start[level + 1])
        level++;
      int64_t at = (start[level] + list->index[j] - first[level]) * dim;
      t->grad_key[j] = sums + at;
      t->grad_value[j] = sums + all + at;
    }
  }
  for (; j < list->far; j++) {
    int64_t at = ((image * call->total + list->index[j]) * heads + head) * dim;
    t->grad_key[j] = call->grad_key_summaries + at;
    t->grad_value[j] = call->grad_value_summaries + at;
  }
  for (; j < list->count; j++) {
    int64_t at = ((image * tokens + list->index[j]) * heads + head) * dim;
    t->grad_key[j] = call->grad_key + at;
    t->grad_value[j] = call->grad_value + at;
  }
  for (; j % FMA_GROUP; j++)
    t->grad_key[j] = t->grad_value[j] = t->junk;
}

/* The tile row after a band's last one. */
static int64_t band_end(const struct fma_call *call, const struct bands *bands,
                        int64_t band) {
  return band == bands->count - 1 ? fma_tile_rows(call)
                                  : (band + 1) * bands->length;
}

static void backward_body(void *context) {
  struct pass *pass = context;
  const struct fma_call *call = pass->call;
  struct bands *bands = pass->bands;
  struct thread t = {0};
  if (!open_thread(&t, call, 1)) {
    __atomic_store_n(&pass->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  int64_t columns = fma_tile_columns(call);
  int64_t turns = (bands->count + 1 - pass->parity) / 2, task;
  struct fma_job job;
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t head = task / turns % call->heads;
    int64_t image = task / turns / call->heads;
    int64_t band = task % turns * 2 + pass->parity;
    int64_t owner = (image * call->heads + head) * bands->count + band;
    int64_t from = band * bands->length * columns;
    int64_t last = band_end(call, bands, band) * columns - 1;
    fma_make_tile(call, from / columns, from % columns, &t.next);
    for (int64_t i = from; i <= last; i++) {
      take_tile(&t, image, head, 1, i, last);
      fma_make_list(call, image, i / columns, i % columns, &t.list);
      if (call->dropout)
        hash_keys(&t);
      point_at_keys(&t, image, head);
      point_at_sums(&t, bands, image, head, band);
      for (int64_t first = 0; first < t.tile.count; first += t.most) {
        load_queries(&t, &job, image, head, first);
        load_grads(&t, &job, image, head, first);
        if (bands->near)
          job.grad_near_bias = bands->near + owner * call->near_entries;
        if (bands->far)
          job.grad_far_bias = bands->far + owner * call->far_entries;
        t.kernels->backward(&job);
        memset(t.junk, 0, call->dim * sizeof *t.junk);
        store_grads(&t, &job, image, head, first);
      }
    }
  }
  free(t.memory);
}

/* Sums of the bands, in their order; a task is an image. */
static void reduce_body(void *context) {
  struct pass *pass = context;
  const struct fma_call *call = pass->call;
  struct bands *bands = pass->bands;
  int64_t dim = call->dim, heads = call->heads, task;
  int64_t parts = call->rank[0] * call->rank[1];
  int64_t all = call->batch * heads * bands->size * dim;
  while ((task = fma_take(&pass->work)) >= 0) {
    int64_t image = task / heads, head = task % heads;
    const float *sums = bands->sums + task * bands->size * dim;
    for (int64_t band = 0; band < bands->count; band++)
      for (int64_t level = 0; level < call->levels; level++) {
        int64_t place = band * FMA_MAX_LEVELS + level, from, to;
        fma_level_reach(call, level + 1, band * bands->length,
                        band_end(call, bands, band) - 1, &from, &to);
        int64_t size = (to - from) * call->level_grid[level][1] * parts;
        for (int64_t i = 0; i < size; i++) {
          int64_t at =
              ((image * call->total + bands->first[place] + i) * heads +
               head) *
              dim;
          const float *key = sums + (bands->start[place] + i) * dim;
          for (int64_t c = 0; c < dim; c++) {
            call->grad_key_summaries[at + c] += key[c];
            call->grad_value_summaries[at + c] += key[all + c];
          }
        }
      }
  }
}

static void add_tables(const struct fma_call *call, const float *tables,
                       int64_t bands, int64_t entries, float *total) {
  for (int64_t owner = 0; owner < call->batch * call->heads * bands; owner++)
    for (int64_t i = 0; i < entries; i++)
      total[owner / bands % call->heads * entries + i] +=
          tables[owner * entries + i];
}

/* How many bands: by the problem alone, never by the threads. */
static int64_t band_count(const struct fma_call *call) {
  int64_t owners = call->batch * call->heads, count = 8;
  /* A list that holds everything leaves nobody apart. */
  if (call->everything ||
      (call->level && call->top && fma_tile_rows(call) > 1))
    return 1;
  if (owners >= 16)
    return 1;
  if (owners >= 3)
    count = owners >= 8 ? 2 : 4;
  return fma_max(fma_min(count, fma_tile_rows(call) / 2), 1);
}

static int open_bands(const struct fma_call *call, struct bands *bands) {
  int64_t owners = call->batch * call->heads;
  int64_t parts = call->rank[0] * call->rank[1];
  bands->count = band_count(call);
  bands->length = fma_tile_rows(call) / bands->count;
  if (bands->count > 1 && !call->level && call->levels) {
    size_t places = (size_t)bands->count * FMA_MAX_LEVELS;
    bands->first = calloc(2 * places, sizeof *bands->first);
    if (!bands->first)
      return 0;
    bands->start = bands->first + places;
    for (int64_t band = 0; band < bands->count; band++)
      for (int64_t level = 0; level < call->levels; level++) {
        int64_t place = band * FMA_MAX_LEVELS + level, from, to;
        int64_t columns = call->level_grid[level][1] * parts;
        fma_level_reach(call, level + 1, band * bands->length,
                        band_end(call, bands, band) - 1, &from, &to);
        bands->first[place] = call->level_start[level] + from * columns;
        bands->start[place] = bands->size;
        bands->size += (to - from) * columns;
      }
    bands->sums = calloc((size_t)(2 * owners * bands->size * call->dim) + 1,
                         sizeof *bands->sums);
    if (!bands->sums)
      return 0;
  }
  if (call->grad_near_bias) {
    bands->near = calloc((size_t)(owners * bands->count * call->near_entries),
                         sizeof *bands->near);
    if (!bands->near)
      return 0;
  }
  if (call->grad_far_bias) {
    bands->far =
        calloc((size_t)(owners * bands->count * call->far_entries) + 1,
               sizeof *bands->far);
    if (!bands->far)
      return 0;
  }
  return 1;
}

int fma_backward(const struct fma_call *call) {
  struct bands bands = {0};
  struct pass pass = {.call = call, .bands = &bands};
  int64_t owners = call->batch * call->heads;
  pass.failed = !open_bands(call, &bands);
  for (pass.parity = 0; pass.parity < 2 && !pass.failed; pass.parity++) {
    pass.work.next = 0;
    pass.work.count = (bands.count + 1 - pass.parity) / 2 * owners;
    if (pass.work.count)
      fma_parallel(call->threads, pass.work.count, backward_body, &pass);
  }
  if (bands.sums && !pass.failed) {
    pass.work.next = 0;
    pass.work.count = owners;
    fma_parallel(call->threads, owners, reduce_body, &pass);
  }
  if (bands.near && !pass.failed)
    add_tables(call, bands.near, bands.count, call->near_entries,
               call->grad_near_bias);
  if (bands.far && !pass.failed)
    add_tables(call, bands.far, bands.count, call->far_entries,
               call->grad_far_bias);
  free(bands.first);
  free(bands.sums);
  free(bands.near);
  free(bands.far);
  return pass.failed ? FMA_NO_MEMORY : FMA_OK;
}
