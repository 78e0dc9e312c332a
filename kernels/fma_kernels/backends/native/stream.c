/* New tokens of texts against each other and against what was kept of the
 * past: causal attention over a sequence of which only the end is here.
 *
 * A tile is what the new tokens have of a leaf cell. Cells of the far field
 * that were finished before the call come from the state, later ones from
 * the summaries of the call. What the state holds, and in which slot, is said
 * in `fma_vision/models/lm/multipole_state.py`.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fma.h"

/* Floats of a row of all heads. */
static int64_t row_size(const struct fma_stream *s) {
  return s->heads * s->dim;
}

static int64_t state_rows(const struct fma_stream *s) {
  return (3 * s->levels + s->cells) * s->rank;
}

static int64_t tile_count(const struct fma_stream *s, int64_t text) {
  int64_t start = s->start[text];
  return (start + s->length - 1) / s->cell - start / s->cell + 1;
}

/* The tokens of a call [B, T, 3, heads, dim]; which: query, key, value. */
static const float *new_row(const struct fma_stream *s, int64_t text,
                            int64_t token, int which) {
  return s->qkv + ((text * s->length + token) * 3 + which) * row_size(s);
}

/* A row of all heads turned by angles [2][dim / 2] of cosines and sines. */
static void turn(const struct fma_stream *s, const float *from,
                 const float *angles, float *to) {
  int64_t half = s->dim / 2;
  if (!angles) {
    memcpy(to, from, row_size(s) * sizeof *to);
    return;
  }
  const float *cosine = angles, *sine = angles + half;
  for (int64_t head = 0; head < s->heads; head++, from += s->dim, to += s->dim)
    for (int64_t i = 0; i < half; i++) {
      float a = from[i], b = from[i + half];
      to[i] = a * cosine[i] - b * sine[i];
      to[i + half] = b * cosine[i] + a * sine[i];
    }
}

static const float *token_angles(const struct fma_stream *s, int64_t text,
                                 int64_t token) {
  return s->angles ? s->angles + (text * s->length + token) * s->dim : NULL;
}

/* ------------------------------------------------------------- the state */
/* The last 2 m tokens: token i in slot i modulo 2 m. A part of the slots. */
static void keep_near(const struct fma_stream *s, int64_t text, int64_t part,
                      int64_t parts) {
  int64_t size = row_size(s), slots = 2 * s->cell, start = s->start[text];
  int64_t last = start + s->count[text] - 1;
  int64_t values = s->batch * slots * size; /* behind the keys */
  for (int64_t slot = slots * part / parts; slot < slots * (part + 1) / parts;
       slot++) {
    int64_t at = (text * slots + slot) * size;
    int64_t token = last - ((last - slot) % slots + slots) % slots;
    if (token >= start) {
      token -= start;
      turn(s, new_row(s, text, token, 1), token_angles(s, text, token),
           s->new_near + at);
      memcpy(s->new_near + values + at, new_row(s, text, token, 2),
             size * sizeof *s->near);
    } else {
      memcpy(s->new_near + at, s->near + at, size * sizeof *s->near);
      memcpy(s->new_near + values + at, s->near + values + at,
             size * sizeof *s->near);
    }
  }
}

/* Adds the tokens of one leaf cell to the sums [2, B, levels, rank, heads,
 * dim] of the cells that hold it. */
static void add_to_sums(const struct fma_stream *s, int64_t text) {
  int64_t size = row_size(s), each = s->sums_levels * s->rank * size;
  for (int which = 0; which < 2; which++) {
    int64_t at = (which * s->batch + text) * each;
    memcpy(s->new_sums + at, s->sums + at, each * sizeof *s->sums);
    for (int64_t token = 0; token < s->count[text]; token++) {
      const float *x = new_row(s, text, token, 1 + which);
      for (int64_t level = 0; level < s->sums_levels; level++) {
        int64_t width = s->cell << level;
        int64_t place = (s->start[text] + token) % width;
        float *sums = s->new_sums + at + level * s->rank * size;
        float *own = sums + place / (width / s->rank) * size;
        for (int64_t i = 0; i < size; i++)
          own[i] += x[i];
        const float *taps = s->taps[which][level]; /* [rank, width, dim] */
        for (int64_t part = 0; taps && part < s->rank; part++) {
          const float *weight = taps + (part * width + place) * s->dim;
          float *to = sums + part * size;
          for (int64_t head = 0; head < s->heads; head++, to += s->dim)
            for (int64_t i = 0; i < s->dim; i++)
              to[i] += weight[i] * x[head * s->dim + i];
        }
      }
    }
  }
}

/* Keys of the state, turned to where they stand: far, then top. */
static void turn_state(const struct fma_stream *s, int64_t text) {
  int64_t size = row_size(s), rows = state_rows(s);
  int64_t far = 3 * s->levels * s->rank;
  for (int64_t i = 0; i < rows; i++) {
    const float *from = i < far
                            ? s->far + (text * far + i) * size
                            : s->top + (text * (rows - far) + i - far) * size;
    turn(s, from,
         s->state_angles ? s->state_angles + (text * rows + i) * s->dim : NULL,
         s->state_keys + (text * rows + i) * size);
  }
}

static const float *state_value(const struct fma_stream *s, int64_t text,
                                int64_t row) {
  int64_t far = 3 * s->levels * s->rank, rows = state_rows(s) - far;
  if (row < far)
    return s->far + ((s->batch + text) * far + row) * row_size(s);
  return s->top + ((s->batch + text) * rows + row - far) * row_size(s);
}

/* -------------------------------------------------------------- the list */
struct list {
  int64_t count, far, *index;
  const float **key, **value; /* of head 0 */
  float *bias;                /* base 2 */
};

static int64_t list_size(const struct fma_stream *s) {
  int64_t cells = s->cells + s->length / s->cell + 3 * FMA_MAX_LEVELS;
  return 2 * s->cell + cells * s->rank + FMA_GROUP;
}

static void add_row(struct list *list, const float *key, const float *value,
                    float bias, int64_t index) {
  int64_t at = list->count++;
  list->key[at] = key, list->value[at] = value;
  list->bias[at] = bias, list->index[at] = index;
}

static void add_cell(const struct fma_stream *s, int64_t text, int64_t level,
                     int64_t cell, struct list *list) {
  int64_t size = row_size(s), width = s->cell << (level - 1);
  int64_t done = s->start[text] / width; /* finished before this call */
  float bias = s->mass ? log2f((float)(width / s->rank)) : 0;
  int64_t row;
  if (cell >= done)
    row = s->own_start[level - 1] + (cell - done) * s->rank;
  else if (level == s->limit)
    row = (3 * s->levels + cell) * s->rank;
  else
    row = (3 * (level - 1) + (cell % 2 ? 2 : cell / 2 % 2)) * s->rank;
  for (int64_t i = row; i < row + s->rank; i++) {
    if (cell >= done) {
      int64_t at = (text * s->own_total + i) * size;
      add_row(list, s->own_keys + at, s->own_values + at, bias, 0);
    } else {
      add_row(list, s->state_keys + (text * state_rows(s) + i) * size,
              state_value(s, text, i), bias, 0);
    }
  }
}

/* What the queries of leaf cell `here` see; of tokens those before `end`. */
static void make_list(const struct fma_stream *s, int64_t text, int64_t here,
                      int64_t end, struct list *list) {
  int64_t size = row_size(s), start = s->start[text], slots = 2 * s->cell;
  list->count = 0;
  for (int64_t level = 1; level <= FMA_MAX_LEVELS; level++) {
    int64_t cell = here >> (level - 1), from = fma_max(2 * (cell / 2 - 1), 0);
    for (int64_t x = level == s->limit ? 0 : from; x < cell - 1; x++)
      add_cell(s, text, level, x, list);
    if (level == s->limit || cell < 2)
      break;
  }
  list->far = list->count;
  for (int64_t i = fma_max((here - 1) * s->cell, 0); i < end; i++) {
    int64_t at = (text * slots + i % slots) * size;
    if (i < start)
      add_row(list, s->near + at, s->near + s->batch * slots * size + at, 0,
              i);
    else
      add_row(list, s->keys + (text * s->length + i - start) * size,
              new_row(s, text, i - start, 2), 0, i);
  }
}

/* --------------------------------------------------------- a thread's part */
struct pass {
  const struct fma_stream *stream;
  struct fma_work work;
  int64_t tiles; /* of the text with most of them */
  int64_t parts; /* into which a tile is cut, so that no thread is idle */
  int64_t failed;
};

static void prepare_body(void *context) {
  struct pass *pass = context;
  const struct fma_stream *s = pass->stream;
  for (int64_t task; (task = fma_take(&pass->work)) >= 0;) {
    int64_t part = task % pass->parts, text = task / pass->parts / pass->tiles;
    int64_t tile = task / pass->parts % pass->tiles, start = s->start[text];
    if (!tile)
      keep_near(s, text, part, pass->parts);
    if (part)
      continue;
    int64_t cell = start / s->cell + tile;
    int64_t from = fma_max(cell * s->cell, start) - start;
    int64_t to = fma_min((cell + 1) * s->cell - start, s->count[text]);
    for (int64_t i = from; i < to; i++)
      turn(s, new_row(s, text, i, 1), token_angles(s, text, i),
           s->keys + (text * s->length + i) * row_size(s));
    if (tile)
      continue;
    turn_state(s, text);
    if (s->new_sums)
      add_to_sums(s, text);
  }
}

struct scratch {
  struct list list;
  const void **key, **value;
  const float **rows;
  float **results, *turned, *query, *out, *scores, *maximum, *sum, *shares;
  float *junk;
  int32_t *position;
};

/* Lays out a thread's memory at `at`; with a null, counts its bytes. */
static size_t lay_out(const struct fma_stream *s, int64_t most,
                      struct scratch *t, char *at) {
  int64_t keys = list_size(s), dim = s->dim;
  size_t used = 0;
  FMA_TAKE(t->list.index, int64_t, keys);
  FMA_TAKE(t->list.key, const float *, keys);
  FMA_TAKE(t->list.value, const float *, keys);
  FMA_TAKE(t->list.bias, float, keys);
  FMA_TAKE(t->key, const void *, keys);
  FMA_TAKE(t->value, const void *, keys);
  FMA_TAKE(t->rows, const float *, most);
  FMA_TAKE(t->results, float *, most);
  FMA_TAKE(t->turned, float, most *row_size(s));
  FMA_TAKE(t->query, float, dim *most);
  FMA_TAKE(t->out, float, dim *most);
  FMA_TAKE(t->scores, float, FMA_BLOCK);
  FMA_TAKE(t->maximum, float, most);
  FMA_TAKE(t->sum, float, most);
  FMA_TAKE(t->shares, float, most);
  FMA_TAKE(t->junk, float, dim);
  FMA_TAKE(t->position, int32_t, most);
  return used;
}

/* Queries [first, first + count) of a text, positions in the call, against a
 * list; of all heads a part. */
static void attend(const struct pass *pass, const struct fma_kernels *kernels,
                   struct scratch *t, int64_t text, int64_t part,
                   int64_t first, int64_t count) {
  const struct fma_stream *s = pass->stream;
  int64_t dim = s->dim, lanes = kernels->lanes, size = row_size(s);
  int64_t width = count > lanes ? 2 * lanes : lanes;
  const struct list *list = &t->list;
  /* Near tokens are in order: those later than all queries are left out. */
  int64_t at = s->start[text] + first, seen = list->count, hidden;
  while (seen > list->far && list->index[seen - 1] > at + count - 1)
    seen--;
  hidden = seen;
  while (hidden > list->far && list->index[hidden - 1] > at)
    hidden--;
  for (int64_t i = 0; i < count; i++)
    turn(s, new_row(s, text, first + i, 0), token_angles(s, text, first + i),
         t->turned + i * size);
  for (int64_t i = 0; i < width; i++)
    t->position[i] = i < count ? (int32_t)i : INT32_MAX;
  struct fma_job job = {
      .queries = (int)count,
      .width = (int)width,
      .dim = (int)dim,
      .count = fma_padded(seen),
      .far = list->far,
      .key = t->key,
      .value = t->value,
      .bias = list->bias,
      .index = list->index,
      .query = t->query,
      .scores = t->scores,
      .hidden_from = hidden,
      .first = at,
      .position = t->position,
      .maximum = t->maximum,
      .sum = t->sum,
      .out = t->out,
  };
  for (int64_t head = s->heads * part / pass->parts;
       head < s->heads * (part + 1) / pass->parts; head++) {
    int64_t shift = head * dim;
    for (int64_t j = 0; j < list->count; j++) {
      t->key[j] = list->key[j] + shift;
      t->value[j] = list->value[j] + shift;
    }
    for (int64_t j = list->count; j % FMA_GROUP; j++)
      t->key[j] = t->value[j] = t->junk;
    for (int64_t i = 0; i < count; i++) {
      t->rows[i] = t->turned + i * size + shift;
      t->results[i] = s->out + (text * s->length + first + i) * size + shift;
    }
    if (count < width)
      memset(t->query, 0, dim * width * sizeof *t->query);
    fma_to_columns(t->rows, count, dim, s->scale * FMA_LOG2E, width, t->query);
    memset(t->out, 0, dim * width * sizeof *t->out);
    for (int64_t i = 0; i < width; i++)
      t->maximum[i] = -FLT_MAX, t->sum[i] = 0;
    kernels->forward(&job);
    /* Every query sees itself. */
    for (int64_t i = 0; i < count; i++)
      t->shares[i] = 1 / t->sum[i];
    fma_to_rows(t->out, count, dim, t->shares, width, t->results);
  }
}

static void attend_body(void *context) {
  struct pass *pass = context;
  const struct fma_stream *s = pass->stream;
  /* Also for one query: AVX2 multiplies and adds in one go. */
  int64_t queries = fma_max(fma_min(s->length, s->cell), 8);
  const struct fma_kernels *kernels = fma_kernels_for((int)s->isa, queries);
  int64_t most = 2 * kernels->lanes;
  struct scratch t;
  char *memory = calloc(1, lay_out(s, most, &t, NULL) + 64);
  if (!memory) {
    __atomic_store_n(&pass->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  lay_out(s, most, &t, (char *)(((uintptr_t)memory + 63) / 64 * 64));
  for (int64_t task; (task = fma_take(&pass->work)) >= 0;) {
    int64_t part = task % pass->parts, text = task / pass->parts / pass->tiles;
    int64_t start = s->start[text];
    int64_t cell = start / s->cell + task / pass->parts % pass->tiles;
    int64_t from = fma_max(cell * s->cell, start);
    int64_t to = fma_min((cell + 1) * s->cell, start + s->count[text]);
    if (from >= to)
      continue;
    make_list(s, text, cell, to, &t.list);
    for (int64_t j = t.list.count; j % FMA_GROUP; j++)
      t.list.bias[j] = -INFINITY;
    for (; from < to; from += most)
      attend(pass, kernels, &t, text, part, from - start,
             fma_min(to - from, most));
  }
  free(memory);
}

int fma_stream(const struct fma_stream *s) {
  struct pass pass = {.stream = s};
  for (int64_t text = 0; text < s->batch; text++)
    pass.tiles = fma_max(pass.tiles, tile_count(s, text));
  int64_t pieces = s->batch * pass.tiles;
  pass.parts = pieces < s->threads ? fma_min(s->heads, s->threads) : 1;
  pieces *= pass.parts;
  pass.work.count = pieces;
  fma_parallel(s->threads, pieces, prepare_body, &pass);
  pass.work = (struct fma_work){.count = pieces};
  fma_parallel(s->threads, pieces, attend_body, &pass);
  return pass.failed ? FMA_NO_MEMORY : FMA_OK;
}
