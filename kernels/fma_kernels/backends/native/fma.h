/* What the files of the fused CPU kernels share.
 *
 * Python fills one `struct fma_call` (its twin is in `call.py`) and calls an
 * entry point; every pointer's shape is stated here. A sequence is an image
 * of one column: two axes everywhere. Packed summaries, masses and numbers
 * of dropout are those of `geometry.py`.
 */
#ifndef FMA_H
#define FMA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define FMA_EXPORT __declspec(dllexport)
#else
#define FMA_EXPORT __attribute__((visibility("default")))
#endif

#define FMA_ABI 1
#define FMA_MAX_LEVELS 32
/* Keys come in groups of so many; a list is filled up with dead ones. */
#define FMA_GROUP 8
#define FMA_LOG2E 1.4426950408889634f
#define FMA_LN2 0.6931471805599453f

static inline int64_t fma_min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t fma_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Keys of a list that is filled up. */
static inline int64_t fma_padded(int64_t count) {
  return (count + FMA_GROUP - 1) / FMA_GROUP * FMA_GROUP;
}

/* Between what shares a block of memory: gaps that a sanitizer watches. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FMA_GAP 64
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)0)
#define FMA_GAP 0
#endif

/* The next array of a thread's memory, of which `used` bytes are taken; where
 * `at` is null, only counts. */
#define FMA_TAKE(field, type, count)                              \
  do {                                                            \
    size_t bytes = (size_t)(count) * sizeof(type);                \
    size_t size = (bytes + 63) / 64 * 64 + FMA_GAP;               \
    field = at ? (type *)(at + used) : NULL;                      \
    if (at)                                                       \
      ASAN_POISON_MEMORY_REGION(at + used + bytes, size - bytes); \
    used += size;                                                 \
  } while (0)

enum fma_dtype { FMA_FLOAT32, FMA_BFLOAT16, FMA_FLOAT16 };
enum fma_isa { FMA_PORTABLE, FMA_AVX2, FMA_AVX512 };
enum fma_status { FMA_OK, FMA_NO_MEMORY };

/* Rows of head_dim: [B, *grid, heads, head_dim], strides in elements of
 * batch, row, column (of packed summaries: 0), head; the last axis is
 * contiguous. */
struct fma_rows {
  void *data;
  int64_t stride[4];
};

struct fma_call {
  int64_t batch, heads, dim;
  int64_t dtype; /* of query, key, value, summaries and grad_out */
  int64_t threads, isa;
  int64_t ndim;
  int64_t grid[2];    /* tokens */
  int64_t cell[2];    /* tokens of a leaf cell, a side */
  int64_t tile[2];    /* of a tile of tokens: the cell,
                         unless everything is near */
  int64_t rank[2];    /* sub-cells of a cell, a side */
  int64_t levels;     /* of the far field */
  int64_t everything; /* every token is near */
  int64_t causal;
  int64_t total;                         /* M, summaries of all levels */
  int64_t level_grid[FMA_MAX_LEVELS][2]; /* cells */
  int64_t level_start[FMA_MAX_LEVELS];   /* in the packed axis */
  /* Pooled queries: the level that asks, from 1; 0 where tokens ask. Its
   * parents are the level above, or for tokens level 1. */
  int64_t level, has_parents, top;
  float scale;

  struct fma_rows query, key, value; /* tokens */
  struct fma_rows query_summaries, key_summaries, value_summaries;
  const uint8_t *mask;               /* [B, tokens], or null */
  const float *log_mass;             /* [B or 1, M], base 2; -inf: none */
  int64_t log_mass_stride;           /* of the batch, 0 where shared */
  const float *near_bias;            /* [heads, (4m - 1) ** d] or null */
  const float *far_bias;             /* [heads, levels, parts, 7 ** d] */
  int64_t near_entries, far_entries; /* of one head */

  int64_t dropout;
  uint64_t seed;
  uint32_t threshold;
  float keep_scale;

  /* Results of the forward pass, contiguous: out [B, rows, heads, dim] and
   * lse [B, rows, heads]; rows are tokens, or the M summaries. */
  float *out, *lse;
  const float *parent_out, *parent_lse; /* [B, M, heads, dim], [.., heads] */
  int64_t parent_total;                 /* their M */

  /* Backward, contiguous but grad_out: gradients of what arrives, and the
   * results, which but that of the query the caller has filled with zeros. */
  struct fma_rows grad_out;     /* tokens; float32 of summaries */
  const float *grad_lse;        /* as lse */
  float *grad_query;            /* as out */
  float *grad_key, *grad_value; /* [B, tokens, heads, dim] */
  float *grad_key_summaries, *grad_value_summaries; /* [B, M, heads, dim] */
  float *grad_near_bias, *grad_far_bias;            /* as the biases */
  float *grad_parent_out, *grad_parent_lse;
};

/* ------------------------------------------------------------- lists.c */
/* The queries of a tile, which share one list. */
struct fma_tile {
  int64_t count;
  int64_t *index;        /* token, or packed summary */
  int64_t *offset;       /* of the query's row, in elements */
  int64_t *parent;       /* packed summary of the level above */
  int64_t *number;       /* token that decides about dropout */
  int32_t *row, *column; /* of its cell (levels), or in the grid (tokens) */
};

/* The keys of a tile: summaries first, then near tokens. */
struct fma_list {
  int64_t count, far;
  int64_t *key, *value;  /* offsets of head 0, in elements */
  int64_t *index;        /* token or packed summary */
  float *bias;           /* log2(mass), 0 for tokens */
  int32_t *entry;        /* in a bias table; of the tile's first query */
  int32_t *row, *column; /* of a summary's cell, where a level asks */
};

int64_t fma_tile_rows(const struct fma_call *call);
int64_t fma_tile_columns(const struct fma_call *call);
int64_t fma_tile_size(const struct fma_call *call);
int64_t fma_list_size(const struct fma_call *call);
void fma_make_tile(const struct fma_call *call, int64_t row, int64_t column,
                   struct fma_tile *tile);
void fma_make_list(const struct fma_call *call, int64_t image, int64_t row,
                   int64_t column, struct fma_list *list);
/* Cells of a level, along the first axis, that tile rows [first, last] may
 * list: [from, to). */
void fma_level_reach(const struct fma_call *call, int64_t level, int64_t first,
                     int64_t last, int64_t *from, int64_t *to);

/* -------------------------------------------------------------- tile.h */
/* Some queries of a tile and one head against the tile's list. `width` is
 * the number of queries, filled up to 1, 2 or 4 vectors. */
struct fma_job {
  int queries, width, dim, dtype;
  int64_t count;             /* a multiple of FMA_GROUP */
  int64_t far;               /* of these are summaries, the first ones */
  const void **key, **value; /* [count], rows of dim in the dtype */
  const float *bias;         /* [count], base 2 */
  const int64_t *index;      /* [count] */
  const int32_t *entry, *row, *column;
  const float *query; /* [dim][width], times scale and log2(e) */
  float *scores;      /* scratch [2][FMA_BLOCK] */
  float *converted;   /* scratch [2][FMA_KEYS][dim], for halves */
  /* What lanes see of a key. */
  int64_t hidden_from;     /* causal: keys from here on may be later */
  int64_t first;           /* the first query */
  const int32_t *position; /* [width]: counted from there */
  const int32_t *lane_row, *lane_column; /* [width]: cells; null: all seen */
  int top;                               /* no parents to compare */
  const float *near_bias;                /* table of the head, or null */
  const int32_t *lane_entry;             /* [width] */
  const uint32_t *state;  /* [width]: hash of the row; null: no dropout */
  const uint32_t *number; /* [count]: hash of the key */
  uint32_t threshold;
  float keep_scale;
  /* Forward: maximum (base 2) and sum of the softmax so far, and the sum of
   * values [dim][width]; they are carried on. */
  float *maximum, *sum, *out;
  /* Backward */
  const float *grad;                   /* [dim][width] */
  const float *query_rows, *grad_rows; /* [queries][pitch], times scale */
  int64_t pitch;                       /* dim, rounded up to whole vectors */
  const float *lse;                    /* [width], base 2; +inf: no key */
  const float *delta;                  /* [width] */
  float *grad_query;                   /* [dim][width], added to */
  float **grad_key, **grad_value;      /* [count], rows of dim, added to */
  float *grad_near_bias;               /* table of the head, added to */
  float *grad_far_bias;
};

/* Keys whose scores are held at once, times lanes; and keys alone. */
#define FMA_BLOCK 4096
#define FMA_KEYS 256

struct fma_kernels {
  int lanes;
  void (*forward)(const struct fma_job *job);
  void (*backward)(const struct fma_job *job);
  /* to[j] = sum_c x[c] * rows[j][c], rows [count, dim] */
  void (*dots)(int64_t count, int64_t dim, const float *x, const float *rows,
               float *to);
};

extern const struct fma_kernels fma_portable;
#if defined(__x86_64__)
extern const struct fma_kernels fma_avx2, fma_avx512;
#endif

void fma_to_float(int dtype, const void *from, int64_t count, float *to);
uint32_t fma_mix(uint32_t x);
/* The widest vectors that so many queries fill. */
const struct fma_kernels *fma_kernels_for(int isa, int64_t queries);
/* to[c][i] = rows[i][c] * scale, for `count` rows; `to` is [dim][width]. */
void fma_to_columns(const float *const *rows, int64_t count, int64_t dim,
                    float scale, int64_t width, float *to);
/* rows[i][c] = from[c][i] * scale[i]; `from` is [dim][width]. */
void fma_to_rows(const float *from, int64_t count, int64_t dim,
                 const float *scale, int64_t width, float *const *rows);

/* ----------------------------------------------------------- threads.c */
/* Takes the next of `count` pieces of work, or -1. */
struct fma_work {
  int64_t count, next;
};
int64_t fma_take(struct fma_work *work);
/* Runs `body` on up to `threads` threads at once, this one included; alone
 * where there are fewer than two pieces of work. */
void fma_parallel(int64_t threads, int64_t pieces, void (*body)(void *),
                  void *context);

/* ----------------------------------------------------------- entry points */
FMA_EXPORT int fma_abi(void);
FMA_EXPORT int fma_best_isa(void);
/* Said in a forked child: no thread but the caller's is left. */
FMA_EXPORT void fma_forked(void);
FMA_EXPORT int fma_forward(const struct fma_call *call);
FMA_EXPORT int fma_backward(const struct fma_call *call);

/* Logarithms of masses; -inf of 0. */
FMA_EXPORT void fma_log2(int64_t count, const int64_t *mass, float *to);

/* Averages; `scale` is 1 / mass, [B or 1, M]. */
struct fma_pooling {
  int64_t batch, heads, dim, dtype, threads, levels, total, add;
  int64_t grid[2], cell[2], rank[2];
  int64_t level_grid[FMA_MAX_LEVELS][2];
  int64_t level_start[FMA_MAX_LEVELS];
  struct fma_rows tokens; /* forward: read */
  const uint8_t *mask;    /* [B, tokens], or null */
  const float *scale;
  int64_t scale_stride;
  float *packed; /* [B, M, heads, dim]; backward: overwritten */
  float *grad;   /* backward: [B, tokens, heads, dim] */
};
FMA_EXPORT int fma_pool(const struct fma_pooling *call);
FMA_EXPORT int fma_pool_backward(const struct fma_pooling *call);

/* Sums over the cells of one level, channel by channel. */
struct fma_weighing {
  int64_t batch, heads, dim, threads, parts;
  int64_t grid[2], cells[2], width[2];
  struct fma_rows tokens; /* float32 */
  const float *taps;      /* [parts, width0 * width1, dim] */
  float *out;             /* [B, cells0, cells1, parts, heads, dim] */
};
FMA_EXPORT int fma_weigh(const struct fma_weighing *call);

/* Causal attention of the next tokens of texts; see stream.c. Rows hold all
 * heads, [heads, dim] float32, and everything is contiguous. Angles are
 * cosines and sines, [2, dim / 2], or null where nothing is turned. */
struct fma_stream {
  int64_t batch, length, heads, dim; /* length: new tokens T of a text */
  int64_t threads, isa;
  int64_t cell, rank, mass;
  int64_t limit;       /* the level that lists all its cells, or 0 */
  int64_t levels;      /* of far */
  int64_t cells;       /* of top */
  int64_t sums_levels; /* of sums */
  float scale;
  const int64_t *start, *count; /* [B]: tokens read before, and now */
  const float *qkv;             /* [B, T, 3, ...], not turned */
  const float *angles;          /* [B, T, ...] */
  /* The state. Axis 0 is keys, values; near keys are turned, others not. */
  const float *near;         /* [2, B, 2 m, ...] */
  const float *far;          /* [2, B, levels, 3, rank, ...] */
  const float *top;          /* [2, B, cells, rank, ...] */
  const float *sums;         /* [2, B, sums_levels, rank, ...] */
  const float *state_angles; /* [B, (3 levels + cells) rank, ...] */
  /* What is added to the weights of a mean, [rank, width, dim], or null */
  const float *taps[2][FMA_MAX_LEVELS];
  /* Summaries of the new tokens alone, keys turned, as in geometry.py; used
   * where they begin with a cell. */
  const float *own_keys, *own_values; /* [B, own_total, ...] */
  int64_t own_total, own_start[FMA_MAX_LEVELS];
  float *keys;                /* scratch [B, T, ...] */
  float *state_keys;          /* scratch [B, (3 levels + cells) rank, ...] */
  float *new_near, *new_sums; /* as before; null: no sums are asked for, which
                                 needs tokens of one leaf cell */
  float *out;                 /* [B, T, ...] */
};
FMA_EXPORT int fma_stream(const struct fma_stream *stream);

/* A block around it, for few rows [B T, dim] of all heads; see block.c. What
 * attends reads `projected` as its qkv. */
struct fma_norm {
  const float *weight, *bias; /* [dim] */
  double epsilon;
};
struct fma_layer {
  const float *weight, *bias; /* [out, in]; [out] or null */
};
struct fma_block {
  const struct fma_stream *attention;
  int64_t hidden; /* channels inside the MLP */
  struct fma_norm norm1, norm2;
  struct fma_layer qkv, proj, fc1, fc2;
  const float *x;        /* [rows, dim] */
  float *y;              /* [rows, dim] */
  float *normal, *after; /* scratch [rows, dim] */
  float *projected;      /* scratch [rows, 3 dim] */
  float *between;        /* scratch [rows, hidden] */
};
FMA_EXPORT int fma_block(const struct fma_block *block);

#endif
