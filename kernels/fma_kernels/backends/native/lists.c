/* From the geometry to tiles of queries and their lists of keys.
 *
 * A tile of tokens is one leaf cell. Where a level of pooled queries asks, a
 * tile is a square of whole parents, whose list is the union of its cells';
 * which of them a query sees is then decided by its cell.
 */
#include "fma.h"

/* Cells of a tile and axis, where a level asks: even, about one vector. */
static int64_t level_side(const struct fma_call *call) {
  return call->ndim == 1 ? 16 : 4;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t absolute(int64_t a) { return a < 0 ? -a : a; }

static int64_t tiles(const struct fma_call *call, int axis) {
  if (!call->level)
    return ceil_div(call->grid[axis], call->tile[axis]);
  return ceil_div(call->level_grid[call->level - 1][axis], level_side(call));
}

int64_t fma_tile_rows(const struct fma_call *call) { return tiles(call, 0); }

int64_t fma_tile_columns(const struct fma_call *call) {
  return tiles(call, 1);
}

int64_t fma_tile_size(const struct fma_call *call) {
  if (!call->level)
    return fma_min(call->tile[0], call->grid[0]) *
           fma_min(call->tile[1], call->grid[1]);
  int64_t size = 1;
  for (int axis = 0; axis < 2; axis++)
    size *=
        fma_min(level_side(call), call->level_grid[call->level - 1][axis]) *
        call->rank[axis];
  return size;
}

/* The window of cells that a span [first, last] of cells may list. */
static void window(const struct fma_call *call, int64_t level, int axis,
                   int64_t first, int64_t last, int64_t *from, int64_t *to) {
  int64_t size = call->level_grid[level - 1][axis];
  *from = 0, *to = size;
  if (level < call->levels || (call->level && !call->top)) {
    *from = fma_max(2 * (first / 2 - 1), 0);
    *to = fma_min(2 * (last / 2 + 2), size);
  }
}

int64_t fma_list_size(const struct fma_call *call) {
  int64_t parts = call->rank[0] * call->rank[1], size = 0;
  if (call->level) {
    int64_t cells = 1;
    for (int axis = 0; axis < 2; axis++) {
      int64_t grid = call->level_grid[call->level - 1][axis];
      cells *= call->top ? grid : fma_min(grid, level_side(call) + 4);
    }
    size = cells * parts;
  } else {
    int64_t tokens = 1;
    for (int axis = 0; axis < 2; axis++)
      tokens *= call->everything
                    ? call->grid[axis]
                    : fma_min(call->grid[axis], 3 * call->cell[axis]);
    size = tokens;
    for (int64_t level = 1; level <= call->levels; level++) {
      int64_t cells = 1;
      for (int axis = 0; axis < 2; axis++) {
        int64_t grid = call->level_grid[level - 1][axis];
        cells *= level == call->levels ? grid : fma_min(grid, 6);
      }
      size += cells * parts;
    }
  }
  return size + FMA_GROUP;
}

void fma_level_reach(const struct fma_call *call, int64_t level, int64_t first,
                     int64_t last, int64_t *from, int64_t *to) {
  int64_t shift = level - 1;
  window(call, level, 0, first >> shift, last >> shift, from, to);
}

/* ---------------------------------------------------------------- tiles */
static void token_tile(const struct fma_call *call, int64_t row,
                       int64_t column, struct fma_tile *tile) {
  const int64_t *grid = call->grid, *cell = call->tile, *rank = call->rank;
  /* Tokens of a sub-cell, a side; no tile is pooled where all is near. */
  const int64_t side[2] = {fma_max(cell[0] / rank[0], 1),
                           fma_max(cell[1] / rank[1], 1)};
  int64_t columns = ceil_div(grid[1], cell[1]), count = 0;
  int64_t first = (row * columns + column) * rank[0] * rank[1];
  int64_t bottom = fma_min((row + 1) * cell[0], grid[0]);
  int64_t right = fma_min((column + 1) * cell[1], grid[1]);
  for (int64_t y = row * cell[0]; y < bottom; y++)
    for (int64_t x = column * cell[1]; x < right; x++) {
      tile->index[count] = tile->number[count] = y * grid[1] + x;
      tile->offset[count] =
          y * call->query.stride[1] + x * call->query.stride[2];
      tile->parent[count] = first + (y - row * cell[0]) / side[0] * rank[1] +
                            (x - column * cell[1]) / side[1];
      tile->row[count] = (int32_t)y;
      tile->column[count] = (int32_t)x;
      count++;
    }
  tile->count = count;
}

static void level_tile(const struct fma_call *call, int64_t row,
                       int64_t column, struct fma_tile *tile) {
  int64_t level = call->level, side = level_side(call), count = 0;
  const int64_t *cells = call->level_grid[level - 1], *rank = call->rank;
  const int64_t *above = call->level_grid[level < FMA_MAX_LEVELS ? level : 0];
  int64_t parts = rank[0] * rank[1];
  /* Tokens of a sub-cell, a side */
  int64_t step[2] = {
      (call->cell[0] / rank[0]) << (level - 1),
      call->ndim == 1 ? 1 : (call->cell[1] / rank[1]) << (level - 1)};
  int64_t bottom = fma_min((row + 1) * side, cells[0]);
  int64_t right = fma_min((column + 1) * side, cells[1]);
  for (int64_t y = row * side; y < bottom; y++)
    for (int64_t x = column * side; x < right; x++)
      for (int64_t part = 0; part < parts; part++) {
        int64_t py = y * rank[0] + part / rank[1];
        int64_t px = x * rank[1] + part % rank[1];
        int64_t index =
            call->level_start[level - 1] + (y * cells[1] + x) * parts + part;
        /* The sub-cell of the level above that holds this one */
        int64_t qy = py / 2, qx = px / 2;
        tile->parent[count] =
            call->has_parents
                ? call->level_start[level] +
                      (qy / rank[0] * above[1] + qx / rank[1]) * parts +
                      qy % rank[0] * rank[1] + qx % rank[1]
                : 0;
        tile->index[count] = index;
        tile->offset[count] = index * call->query_summaries.stride[1];
        tile->number[count] = py * step[0] * call->grid[1] + px * step[1];
        tile->row[count] = (int32_t)y;
        tile->column[count] = (int32_t)x;
        count++;
      }
  tile->count = count;
}

void fma_make_tile(const struct fma_call *call, int64_t row, int64_t column,
                   struct fma_tile *tile) {
  (call->level ? level_tile : token_tile)(call, row, column, tile);
}

/* ---------------------------------------------------------------- lists */
/* Adds the real parts of one cell. */
static void add_cell(const struct fma_call *call, const float *log_mass,
                     int64_t level, int64_t y, int64_t x, int32_t entry,
                     int32_t entry_step, struct fma_list *list) {
  int64_t parts = call->rank[0] * call->rank[1];
  int64_t index = call->level_start[level - 1] +
                  (y * call->level_grid[level - 1][1] + x) * parts;
  for (int64_t part = 0; part < parts; part++, index++) {
    float bias = log_mass[index];
    if (bias == -__builtin_inff())
      continue;
    int64_t at = list->count++;
    list->index[at] = index;
    list->key[at] = index * call->key_summaries.stride[1];
    list->value[at] = index * call->value_summaries.stride[1];
    list->bias[at] = bias;
    list->entry[at] = entry + (int32_t)part * entry_step;
    list->row[at] = (int32_t)y;
    list->column[at] = (int32_t)x;
  }
}

static int64_t clamp3(int64_t offset) {
  return fma_min(fma_max(offset, -3), 3) + 3;
}

static void add_far(const struct fma_call *call, const float *log_mass,
                    int64_t row, int64_t column, struct fma_list *list) {
  int64_t parts = call->rank[0] * call->rank[1];
  int32_t step = call->ndim == 1 ? 7 : 49;
  for (int64_t level = 1; level <= call->levels; level++) {
    int64_t here[2] = {row >> (level - 1), column >> (level - 1)};
    int64_t from[2], to[2];
    for (int axis = 0; axis < 2; axis++)
      window(call, level, axis, here[axis], here[axis], &from[axis],
             &to[axis]);
    if (call->causal)
      to[0] = fma_min(to[0], here[0]);
    for (int64_t y = from[0]; y < to[0]; y++)
      for (int64_t x = from[1]; x < to[1]; x++) {
        int64_t dy = y - here[0], dx = x - here[1];
        if (absolute(dy) <= 1 && absolute(dx) <= 1)
          continue;
        int64_t offset = clamp3(dy);
        if (call->ndim == 2)
          offset = offset * 7 + clamp3(dx);
        add_cell(call, log_mass, level, y, x,
                 (int32_t)((level - 1) * parts * step + offset), step, list);
      }
  }
}

static void add_near(const struct fma_call *call, const uint8_t *mask,
                     int64_t row, int64_t column, struct fma_list *list) {
  const int64_t *grid = call->grid, *cell = call->tile;
  int64_t tile[2] = {row, column}, from[2], to[2];
  for (int axis = 0; axis < 2; axis++) {
    from[axis] = fma_max((tile[axis] - 1) * cell[axis], 0);
    to[axis] = fma_min((tile[axis] + 2) * cell[axis], grid[axis]);
    if (call->everything)
      from[axis] = 0, to[axis] = grid[axis];
  }
  if (call->causal)
    to[0] = fma_min(to[0], (row + 1) * cell[0]);
  /* Offsets run from -(2m - 1) to 2m - 1, row by row. */
  int64_t reach = 2 * call->cell[0] - 1;
  int64_t pitch = call->ndim == 1 ? 1 : 2 * reach + 1;
  int64_t centre = reach * pitch + (call->ndim == 1 ? 0 : reach);
  int64_t at = list->count;
  for (int64_t y = from[0]; y < to[0]; y++) {
    int64_t index = y * grid[1];
    int64_t key = y * call->key.stride[1], value = y * call->value.stride[1];
    for (int64_t x = from[1]; x < to[1]; x++) {
      if (mask && !mask[index + x])
        continue;
      list->index[at] = index + x;
      list->key[at] = key + x * call->key.stride[2];
      list->value[at] = value + x * call->value.stride[2];
      list->bias[at] = 0;
      list->entry[at] = (int32_t)((y - row * cell[0]) * pitch + x -
                                  column * cell[1] + centre);
      at++;
    }
  }
  list->count = at;
}

static void add_union(const struct fma_call *call, const float *log_mass,
                      int64_t row, int64_t column, struct fma_list *list) {
  int64_t side = level_side(call), tile[2] = {row, column}, from[2], to[2];
  for (int axis = 0; axis < 2; axis++)
    window(call, call->level, axis, tile[axis] * side,
           tile[axis] * side + side - 1, &from[axis], &to[axis]);
  for (int64_t y = from[0]; y < to[0]; y++)
    for (int64_t x = from[1]; x < to[1]; x++)
      add_cell(call, log_mass, call->level, y, x, 0, 0, list);
}

void fma_make_list(const struct fma_call *call, int64_t image, int64_t row,
                   int64_t column, struct fma_list *list) {
  const float *log_mass = call->log_mass;
  if (log_mass)
    log_mass += image * call->log_mass_stride;
  list->count = 0;
  if (call->level)
    add_union(call, log_mass, row, column, list);
  else
    add_far(call, log_mass, row, column, list);
  list->far = list->count;
  if (!call->level)
    add_near(call,
             call->mask ? call->mask + image * call->grid[0] * call->grid[1]
                        : NULL,
             row, column, list);
}
